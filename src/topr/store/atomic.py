"""Files that are either whole or not there, whenever the writer is killed. No format is known here.

Content goes to a hidden temporary file next to its target, is synced, renamed, and the directory
is synced. One process writes a given target at a time; what a killed writer left behind has the
same temporary name, so the next writer of that target replaces it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topr.errors import RunDirectoryError

TEMPORARY_SUFFIX = ".tmp"


def refuse_existing(path: Path) -> None:
    """Raise a RunDirectoryError if something is at `path`."""
    if path.exists():
        raise RunDirectoryError(
            f"{path} exists already and is not overwritten: remove it, or write elsewhere"
        )


@contextmanager
def atomic_path(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary path to write to; on a clean exit it becomes `path`, else it is removed.

    Raises:
        RunDirectoryError: `path` exists and `overwrite` is false.

    """
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say of what
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8, replacing what was at `path`."""
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, replacing what was at `path`.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold: write None instead.

    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files that killed writers left in `directory`.

    Only for a directory in which nobody else is writing.
    """
    for leftover in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
