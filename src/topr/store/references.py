"""Shards that leave most of their columns in the files of another stage.

A run stores each completion once. Grading adds columns to the rows of a shard, curation chooses
rows of a directory; neither copies a completion:

    rollouts/part-00003.parquet   every completion, with all of its columns
    graded/part-00003.parquet     problem_id, sample, grade, reward, answer; the rest is there
    dataset/part-00000.parquet    problem_id, sample, row: its number in graded/, where the rest is

Where the other columns are stands in the file's metadata, as a path from the file's own directory.
`topr.store.shards` reads both as if they held the rows themselves.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from topr.errors import DataError
from topr.store.schema import ROLLOUT_SCHEMA

REFERENCE_KEY = b"topr.reference"
KEYS = ("problem_id", "sample")
"""Stand in both files, and have to agree."""
ROW = "row"
"""Number of a chosen row in the directory or file that is referred to, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Where the rest of a shard's rows is.

    >>> Reference(path=Path("rollouts/part-00000.parquet"), chosen=False, rows=64).rows
    64
    """

    path: Path
    """A file, or a directory of shards."""
    chosen: bool
    """Whether the shard names rows by their number; else it has every row, in the same order."""
    rows: int
    """Rows of the file or directory when the reference was made."""


def with_reference(table: pa.Table, reference: Reference, directory: Path) -> pa.Table:
    """Return a table that says where its other columns are, to be written into `directory`."""
    target = reference.path.parent.resolve() / reference.path.name
    value: dict[str, Any] = {"chosen": reference.chosen, "rows": reference.rows}
    try:
        value["path"] = Path(os.path.relpath(target, directory.resolve())).as_posix()
    except ValueError:  # another drive
        value["path"] = target.as_posix()
    marks = (ROLLOUT_SCHEMA.metadata or {}) | {REFERENCE_KEY: json.dumps(value).encode()}
    return table.replace_schema_metadata(marks)


def reference_in(schema: pa.Schema, path: Path) -> Reference | None:
    """Return where the other columns of a file are; None: it holds all of them."""
    found = (schema.metadata or {}).get(REFERENCE_KEY)
    if found is None:
        return None
    value = json.loads(found)
    target = path.parent.resolve() / value["path"]
    return Reference(
        path=Path(os.path.normpath(target)), chosen=value["chosen"], rows=value["rows"]
    )


def check_rows(reference: Reference, rows: int, *, where: Path) -> None:
    """Raise a DataError if what is referred to is not there, or has other rows than it had."""
    if rows != reference.rows:
        found = f"now holds {rows}" if rows else "is not there"
        raise DataError(
            f"{where} does not hold the completions themselves: they are {reference.rows} rows in "
            f"{reference.path}, which {found}. Put back what was there (`topr export` writes a "
            "file that holds everything)"
        )


def check_keys(own: pa.Table, found: pa.Table, *, where: Path, path: Path) -> None:
    """Raise a DataError if rows that are referred to are of other completions."""
    for name in KEYS:
        mine = own.column(name).combine_chunks()
        theirs = found.column(name).cast(mine.type).combine_chunks()
        if not mine.equals(theirs):
            row = pc.index(pc.equal(mine, theirs), False).as_py()
            raise DataError(
                f"{where} is about other completions than {path} holds now: {name} is "
                f"{mine[row].as_py()!r} in one and {theirs[row].as_py()!r} in the other. Put back "
                "the file that was there, or make this directory again"
            )
