"""`--resume` and `--overwrite` of the commands that make a run, a study or a training."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from topr.cli.console import say
from topr.errors import ConfigError
from topr.runs.environment import launched

Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--overwrite",
        help="Continue what is in the directory, or begin anew: what is there is moved to "
        "DIR.old-1, and nothing is deleted.",
    ),
]


def make_room(output: Path, reads: Iterable[str], *, resume: bool) -> None:
    """Move what is in a directory aside, where that is wanted.

    Raises:
        ConfigError: several processes were started.
        RunDirectoryError: what is there is not topr's, is read, or is being written.

    """
    if resume:
        return
    if launched()[1] > 1:
        raise ConfigError(
            "--overwrite is for a single process: move the directory before several start"
        )
    from topr.runs.replacing import set_aside

    if (place := set_aside(output, reads)) is not None:
        say(f"what was in {output} is in {place} now")
