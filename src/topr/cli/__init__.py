"""The command line: parse, call one function, print. Loads no torch until a command needs it."""

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.markup import escape

from topr._version import __version__
from topr.cli import advising, data, info, publishing, running, start, studies, training, verifying
from topr.cli.console import err, log_to_console
from topr.cli.overview import arrange
from topr.errors import ConfigError, ToprError
from topr.runs.environment import launched

TOGETHER = ("train",)
"""Commands that several processes may run together."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, a full quota and a limit of a file's size."""
INTERRUPTED = 130
"""What typer ends with after Ctrl-C."""

app = typer.Typer(
    name="topr",
    help="Offline reinforcement learning for language models on tasks with checkable answers.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (running, start, training, verifying, studies, data, publishing, info, advising):
    module.register(app)
arrange(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"topr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Also say what stages do inside."),
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
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
    """Run the command line. A user's error and a full disk are one message; an interruption says
    how to resume.
    """
    try:
        _refuse_dashes(sys.argv[1:])
        app()
    except ToprError as error:
        _end(str(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            err.print("\ninterrupted; the same command resumes here")
        raise
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        what = getattr(error, "filename", None) or "a file"
        _end(f"{what} could not be written: {reason}. Make room, and the same command resumes")


def _refuse_dashes(arguments: Sequence[str]) -> None:
    """Say how settings are written to somebody who writes `--train.learning_rate 1e-6`."""
    for argument in arguments:
        if found := re.match(r"--([a-z_]+(?:\.\w+)+)", argument):
            raise ConfigError(
                f"{argument}: settings are written without dashes, {found[1]}=VALUE. Options with "
                "dashes are those of `--help`"
            )


def _end(message: str) -> NoReturn:
    rank, count = launched()
    time.sleep(5 if rank else 0)  # What all say is said once: the launcher then ends the rest.
    where = f" in process {rank} of {count}" if count > 1 else ""
    err.print(f"[bold red]error{where}:[/] {escape(message)}", soft_wrap=True)
    sys.exit(1)


def _no_room(error: Exception) -> str | None:
    """Return what the system said where a file found no room; None for any other error."""
    for code in NO_ROOM:
        # safetensors has the number in its text alone.
        if getattr(error, "errno", None) == code or f"(os error {code})" in str(error):
            return os.strerror(code)
    if "inline_container.cc" in str(error):  # torch.save has no number: a write was cut short
        return "its writer stopped midway, as it does where the disk is full"
    return None
