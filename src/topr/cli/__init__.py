"""The command line: parse, call one function, print. Loads no torch until a command needs it."""

import logging
import sys

import typer

from topr.cli import data, info, publishing, running, studies, training, verifying
from topr.cli.console import err, log_to_console
from topr.errors import ToprError

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
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Also say what stages do inside."),
) -> None:
    """Offline reinforcement learning for language models on tasks with checkable answers."""
    log_to_console(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line. A user's error is one message; an interruption says how to go on."""
    try:
        app()
    except ToprError as error:
        err.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("\ninterrupted; the same command goes on from here")
        raise


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
