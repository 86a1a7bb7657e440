"""`--resume` and `--overwrite` of the commands that make a run, a study or a training."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from topr.errors import ConfigError
from topr.runs.environment import launched

Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--overwrite",
        help="Continue what is in the directory, or remove what topr made there, after a "
        "question, and begin anew.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="With --overwrite: remove unasked.")]


def make_room(output: Path, reads: Iterable[str], *, resume: bool, yes: bool) -> None:
    """Remove what topr made in a directory, where that is wanted and somebody agrees.

    Raises:
        ConfigError: nobody can be asked, or there is nothing to agree to.
        RunDirectoryError: what is there is not topr's alone, or is read by what is started.
        typer.Abort: the answer is no.

    """
    if resume:
        if yes:
            raise ConfigError("--yes belongs to --overwrite: add that, or leave it out")
        return
    if launched()[1] > 1:
        raise ConfigError(
            "--overwrite is for a single process: remove the directory before several start"
        )
    from topr.runs.replacing import removable, remove

    files = removable(output, reads)
    if not files:
        return
    what = f"{len(files)} files that topr made in {output}"
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"--overwrite removes {what}, and there is no terminal to ask on: add --yes"
            )
        typer.confirm(f"Remove {what}?", abort=True)
    remove(output, files)
