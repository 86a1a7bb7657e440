"""`--overwrite`: remove what topr made in a directory, and nothing else.

A file at another place than where topr writes it is somebody's own: then nothing is removed. Where
topr writes what is in `topr.runs.made`. Not here: who may write into a directory
(`topr.runs.directory`), and asking.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import RunDirectoryError
from topr.models.files import base_of, is_adapter
from topr.runs.made import is_known, made_files
from topr.store import locked
from topr.store.lock import LOCK_FILE, refuse_held
from topr.store.references import reference_in


def removable(directory: Path, reads: Iterable[str] = ()) -> list[Path]:
    """Return the files that `--overwrite` removes: all of a directory, if topr made all of it.

    Args:
        directory: of a run, a study or a training; one that is empty or not there holds none.
        reads: paths and names that what is started now reads: none may be among them, nor the
            rows and the weights that they leave in other files.

    Raises:
        RunDirectoryError: no run, study or training is there, something else is, too, it is read,
            or another process writes in a part of it.

    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return []
    if not is_known(directory):
        raise RunDirectoryError(
            f"{directory} holds nothing that topr knows as its own (a run has recipe.yaml and "
            "environment.json), so that --overwrite removes nothing there: give a new directory"
        )
    files = [path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir()]
    foreign = set(files) - made_files(directory)
    if foreign:
        names = sorted(str(path.relative_to(directory)) for path in foreign)
        raise RunDirectoryError(
            f"{directory} holds what topr did not make ({', '.join(names[:5])}), and --overwrite "
            "removes nothing then: move it elsewhere, or give a new directory"
        )
    _refuse_read(directory, reads)
    _refuse_nested(files)
    return [path for path in files if path != directory / LOCK_FILE]


def remove(directory: Path, files: Iterable[Path]) -> None:
    """Remove what `removable` returned, and the directories that are empty then.

    Raises:
        RunDirectoryError: another process is writing there.

    """
    files = list(files)
    with locked(directory):
        _refuse_nested(files)
        for path in files:
            path.unlink(missing_ok=True)
        folders = [path for path in directory.rglob("*") if path.is_dir()]
        for folder in sorted(folders, reverse=True):  # the deepest first
            with suppress(OSError):  # Something came in meanwhile: it stays.
                folder.rmdir()


def names_in(values: Any) -> Iterator[str]:
    """Yield every text in the nested values of a recipe: some are paths."""
    if isinstance(values, str) and values:
        yield values
    inner = values.values() if isinstance(values, Mapping) else values
    if isinstance(inner, Iterable) and not isinstance(inner, str):
        for value in inner:
            yield from names_in(value)


def _refuse_nested(files: Iterable[Path]) -> None:
    for path in files:
        if path.name == LOCK_FILE:
            refuse_held(path.parent)


def _refuse_read(directory: Path, reads: Iterable[str]) -> None:
    """Refuse to remove what is read, and what holds a part of it.

    graded/ is read, and leaves its completions in run/iteration-01/rollouts: `run` is kept
    """
    home = directory.resolve()
    for name in reads:
        start = _resolved(Path(name))
        left, seen = [start], set()
        while left:
            path = left.pop()
            if path is None or path in seen:
                continue
            seen.add(path)
            if path.is_relative_to(home):
                through = "" if path == start else f" (by way of {path})"
                raise RunDirectoryError(
                    f"{name} is read by what you start{through}, and --overwrite would remove it "
                    f"with {directory}: copy it elsewhere, or give a new directory"
                )
            left += map(_resolved, _left_in(path))


def _resolved(path: Path) -> Path | None:
    """Return where a path leads; None where nothing is, or where it is a text of another kind."""
    try:
        return path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # A prompt is too long for a name, for one.
        return None


def _left_in(path: Path) -> Iterator[Path]:
    """Yield where a file or a directory of shards, or an adapter, leaves a part of itself."""
    if path.is_dir() and is_adapter(path):
        yield Path(base_of(path)["path"])
    for file in path.glob("*.parquet") if path.is_dir() else [path]:
        if file.suffix != ".parquet":
            continue
        with suppress(pa.ArrowInvalid, OSError):  # Not a shard: whoever reads it says so.
            found = reference_in(pq.read_schema(file), file)
            if found is not None:
                yield found.path
