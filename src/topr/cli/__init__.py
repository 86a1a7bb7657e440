"""The command line: parse, call one function, print. Loads no torch until a command needs it."""

import logging
import sys
import time

import typer

from topr.cli import data, info, publishing, running, studies, training, verifying
from topr.cli.console import err, log_to_console
from topr.environment import launched
from topr.errors import ConfigError, ToprError

TOGETHER = ("train",)
"""Commands that several processes may run together."""
INTERRUPTED = 130
"""What typer ends with after Ctrl-C."""

app = typer.Typer(
    name="topr",
    help="Offline reinforcement learning for language models on tasks with checkable answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (running, training, verifying, studies, data, publishing, info):
    module.register(app)


@app.callback()
def options(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Also say what stages do inside."),
) -> None:
    """Offline reinforcement learning for language models on tasks with checkable answers."""
    rank, count = launched()
    if count > 1 and context.invoked_subcommand not in TOGETHER:
        raise ConfigError(
            f"topr {context.invoked_subcommand} was started as one of {count} processes, and only "
            f"{', '.join(TOGETHER)} can share its work: start it by itself. To train on several "
            "devices, draw, grade and curate first (topr generate, grade, curate), then `torchrun "
            f"--nproc_per_node {count} -m topr train DATASET ...`"
        )
    # What all processes have to say is said by the first.
    level = logging.INFO if verbose else logging.WARNING
    log_to_console(logging.ERROR if rank else level)


def main() -> None:
    """Run the command line. A user's error is one message; an interruption says how to go on."""
    try:
        app()
    except ToprError as error:
        rank, count = launched()
        time.sleep(5 if rank else 0)  # What all say is said once: the launcher then ends the rest.
        where = f" in process {rank} of {count}" if count > 1 else ""
        err.print(f"[bold red]error{where}:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("\ninterrupted; the same command goes on from here")
        raise


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
