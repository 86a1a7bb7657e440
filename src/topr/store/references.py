"""Shards that leave most of their columns in the files of another stage.

A run stores each completion once. Grading adds columns to the rows of a shard, curation chooses
rows of a directory; neither copies a completion:

    rollouts/part-00003.parquet   every completion, with all of its columns
    graded/part-00003.parquet     problem_id, sample, grade, reward, answer; the rest is there
    dataset/part-00000.parquet    problem_id, sample, reward, and row: its number in graded/

Where the other columns are stands in the file's metadata, as a path from the file's own directory.
`topr.store.shards` reads both as if they held the rows themselves.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from topr.errors import DataError
from topr.store.schema import REFERRING_VERSION, SCHEMA_KEY

REFERENCE_KEY = b"topr.reference"
KEYS = ("problem_id", "sample")
"""Stand in both files, and have to agree."""
CHOSEN_KEYS = (*KEYS, "reward")
"""The same of chosen rows: rewards may be all that differs in a file that was written again."""
ROW = "row"
"""Number of a chosen row in the directory or file that is referred to, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Where the rest of a shard's rows is.

    >>> Reference(path=Path("part-00000.parquet"), chosen=False, contents="64 rows, 5f3a").chosen
    False
    """

    path: Path
    """A file, or a directory of shards."""
    chosen: bool
    """Whether the shard names rows by their number; else it has every row, in the same order."""
    contents: str
    """`contents_of` the file or directory when the reference was made."""

    @property
    def keys(self) -> Sequence[str]:
        """The columns that stand in both files."""
        return CHOSEN_KEYS if self.chosen else KEYS


def with_reference(table: pa.Table, reference: Reference, directory: Path) -> pa.Table:
    """Return a table that says where its other columns are, to be written into `directory`."""
    target = reference.path.parent.resolve() / reference.path.name
    value: dict[str, Any] = {"chosen": reference.chosen, "contents": reference.contents}
    try:
        value["path"] = Path(os.path.relpath(target, directory.resolve())).as_posix()
    except ValueError:  # another drive
        value["path"] = target.as_posix()
    marks = {SCHEMA_KEY: str(REFERRING_VERSION).encode(), REFERENCE_KEY: json.dumps(value).encode()}
    return table.replace_schema_metadata(marks)


def reference_in(schema: pa.Schema, path: Path) -> Reference | None:
    """Return where the other columns of a file are; None: it holds all of them."""
    found = (schema.metadata or {}).get(REFERENCE_KEY)
    if found is None:
        return None
    value = json.loads(found)
    target = path.parent.resolve() / value["path"]
    return Reference(
        path=Path(os.path.normpath(target)), chosen=value["chosen"], contents=value["contents"]
    )


def check_contents(reference: Reference, found: str | None, *, where: Path) -> None:
    """Raise a DataError if what is referred to is not there, or is not what it was."""
    if found != reference.contents:
        now = "is not there" if found is None else f"is another one now ({found})"
        raise DataError(
            f"{where} does not hold the completions themselves: they are in {reference.path} "
            f"({reference.contents}), which {now}. Put back what was there, download it again if "
            "it came from the hub, or make this directory again (`topr export` writes a file that "
            "holds everything)"
        )


def check_keys(
    own: pa.Table, found: pa.Table, names: Sequence[str], *, where: Path, path: Path
) -> None:
    """Raise a DataError if rows that are referred to are of other completions."""
    for name in names:
        mine = own.column(name).combine_chunks()
        theirs = found.column(name).cast(mine.type).combine_chunks()
        if not mine.equals(theirs):
            row = pc.index(pc.equal(mine, theirs), False).as_py()
            raise DataError(
                f"{where} is about other completions than {path} holds now: {name} is "
                f"{mine[row].as_py()!r} in one and {theirs[row].as_py()!r} in the other. Put back "
                "the file that was there, or make this directory again"
            )
