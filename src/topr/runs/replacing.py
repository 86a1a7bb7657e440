"""`--overwrite`: what is in a directory is moved aside, so that a run can begin anew there.

Nothing is deleted. Not here: who may write into a directory (`topr.runs.directory`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from topr.errors import RunDirectoryError
from topr.store.lock import LOCK_FILE, refuse_held
from topr.store.manifest import is_begun, read_manifest


def set_aside(directory: Path, reads: Iterable[str] = ()) -> Path | None:
    """Rename `runs/mine` to `runs/mine.old-1`, or the next number that is free.

    Args:
        directory: of a run, a study or a training.
        reads: paths and names that what is started now reads: none may be in the directory.

    Returns:
        Where it is now; None: it is empty, or not there.

    Raises:
        RunDirectoryError: it holds no run, study or training, is read, or is being written.

    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    training = directory / "training"
    is_run = (directory / "recipe.yaml").is_file() and (directory / "environment.json").is_file()
    if not (is_run or is_begun(training) or read_manifest(training)):
        raise RunDirectoryError(
            f"{directory} holds nothing that topr knows as its own (a run has recipe.yaml and "
            "environment.json), so --overwrite does not move it: give a new directory"
        )
    home = directory.resolve()
    for name in reads:
        with suppress(OSError, ValueError):  # a prompt is too long for a name, for one
            if Path(name).resolve(strict=True).is_relative_to(home):
                raise RunDirectoryError(
                    f"{name} is read by what you start, and --overwrite would move it with "
                    f"{directory}: give a new directory"
                )
    for lock in directory.rglob(LOCK_FILE):
        refuse_held(lock.parent)
    names = (home.with_name(f"{home.name}.old-{number}") for number in count(1))
    return directory.rename(next(path for path in names if not path.exists()))


def names_in(values: Any) -> Iterator[str]:
    """Yield every text in the nested values of a recipe: some are paths."""
    if isinstance(values, str) and values:
        yield values
    inner = values.values() if isinstance(values, Mapping) else values
    if isinstance(inner, Iterable) and not isinstance(inner, str):
        for value in inner:
            yield from names_in(value)
