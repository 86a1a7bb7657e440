"""The note that a stage leaves last: its presence says that the stage is done.

It describes what a directory holds; it does not decide whether the stage must run again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from topr._version import __version__
from topr.errors import RunDirectoryError
from topr.store.atomic import remove_leftovers, write_json_atomic
from topr.store.lock import LOCK_FILE, locked
from topr.store.schema import SCHEMA_VERSION

_NAME = "manifest.json"
STARTED_FILE = "started.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a finished stage wrote.

    >>> Manifest(stage="grade", fingerprint="5f3a", rows=64, files=("part-00000.parquet",)).rows
    64
    """

    stage: str
    """Name of the stage: generate, grade, curate, train, evaluate."""
    fingerprint: str
    """Hash of everything that fixes the result; another one means another result. Where a version
    of the stage's data plays a part, it stands in front: `v1:5f3a`."""
    rows: int
    """Rows in all files together."""
    files: tuple[str, ...]
    """Names of the files, relative to the directory."""
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else the stage has to say, in JSON's own types."""


@contextmanager
def begin(directory: Path, stage: str, fingerprint: str) -> Iterator[Manifest | None]:
    """Give the manifest of a stage that is done; else hold the directory and mark it as this one's.

    with begin(directory, "grade", fingerprint) as done:
        if done is not None:
            return done
        ...

    Raises:
        RunDirectoryError: what is there, finished or not, was made with other settings, or another
            process is making it.

    """
    # What is done is read by many at once, and may lie where nothing can be written.
    with nullcontext() if read_manifest(directory) else locked(directory):
        yield _begun(directory, stage, fingerprint)


def _begun(directory: Path, stage: str, fingerprint: str) -> Manifest | None:
    manifest, started = read_manifest(directory), directory / STARTED_FILE
    found = manifest.fingerprint if manifest else None
    others = {path.name for path in directory.iterdir()} - {STARTED_FILE, LOCK_FILE}
    if manifest is None and started.is_file() and others:
        # Alone, it is of a call that failed before it left anything.
        found = json.loads(started.read_text(encoding="utf-8"))["fingerprint"]
    if found not in (None, fingerprint):
        state = "a finished" if manifest else "an unfinished"
        why = "made with other settings or from other data"
        if found.rpartition(":")[0] != fingerprint.rpartition(":")[0]:
            why = (
                "begun by another version of topr, whose data are not mixed with this one's "
                "(`topr report` still reads the run; that version finishes it)"
            )
        raise RunDirectoryError(
            f"{directory} holds {state} {stage} with fingerprint {found}, expected {fingerprint}: "
            f"it was {why}. It is not overwritten: write elsewhere, or remove it yourself"
        )
    if found is None:
        write_json_atomic(started, {"stage": stage, "fingerprint": fingerprint})
    return manifest


def is_begun(directory: Path) -> bool:
    """Return whether a stage has marked `directory` as its own and not finished."""
    return (directory / STARTED_FILE).is_file()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Declare the stage in `directory` done. Call it last.

    Leftovers of killed writers are removed first: nobody writes there any more.
    """
    remove_leftovers(directory)
    stamp = {"topr_version": __version__, "schema": SCHEMA_VERSION}
    write_json_atomic(directory / _NAME, asdict(manifest) | stamp)
    (directory / STARTED_FILE).unlink(missing_ok=True)


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of `directory`; None where the stage is not done.

    Raises:
        RunDirectoryError: the file is not a manifest, or a newer topr wrote it.

    """
    path = directory / _NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    hint = "Remove it to run the stage again"
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not JSON: {error}. {hint}") from error
    names = [f.name for f in fields(Manifest)]
    if not isinstance(values, dict) or not {*names, "schema"} <= set(values):
        raise RunDirectoryError(
            f"{path} is not a manifest: it holds {_kind(values)}, expected the keys "
            f"{', '.join(names)}, schema. {hint}"
        )
    if values["schema"] != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} was written by topr {values.get('topr_version')} with schema "
            f"{values['schema']}, this topr knows schema {SCHEMA_VERSION}: use that version, or "
            "another output directory"
        )
    known = {name: values[name] for name in names}
    return Manifest(**known | {"files": tuple(known["files"])})


def _kind(values: Any) -> str:
    return f"the keys {', '.join(values)}" if isinstance(values, dict) else type(values).__name__
