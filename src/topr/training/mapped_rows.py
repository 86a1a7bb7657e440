"""Training rows in Arrow files that are mapped into memory: a process holds what it touches, so its
memory does not grow with the number of rows.

Not here: what a row is, and how it is checked (`topr.training.data`).
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import psutil
import pyarrow as pa
from datasets import Dataset

from topr.store.atomic import TEMPORARY_SUFFIX
from topr.training.distributed import DistributedContext

T = TypeVar("T")

PART = 512
"""Rows that are in memory together while a file is written."""


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to an Arrow file, a part at a time."""
    remaining = iter(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while part := list(islice(remaining, PART)):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))


def map_rows(path: Path) -> pa.Table:
    """Return the table of an Arrow file; its pages are read when they are touched."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def write_once_per_node(
    folder: Path, name: str, distributed: DistributedContext, write: Callable[[Path], T]
) -> tuple[pa.Table, T]:
    """Let one process of each machine write an Arrow file, and map it in all of them.

    The file is deleted (unlinked) when this returns; its space is freed when the last process ends.

    Args:
        folder: of the file.
        name: of the file, while it has one.
        distributed: the processes.
        write: writes it.

    Returns:
        The table, and what `write` returned.

    """
    # Its own name, since nobody keeps two trainings from one folder.
    mine = f".{name}-{socket.gethostname()}-"
    own = folder / f"{mine}{os.getpid()}{TEMPORARY_SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{mine}*{TEMPORARY_SUFFIX}"):  # by a process that was killed
        if not psutil.pid_exists(int(left.name.removeprefix(mine).removesuffix(TEMPORARY_SUFFIX))):
            left.unlink(missing_ok=True)
    try:
        path, found = distributed.run_once_per_node(lambda: (own, write(own)))
        table = map_rows(path)
        distributed.barrier()
    finally:
        with suppress(OSError):  # Others have not written theirs; Windows keeps a mapped file.
            own.unlink()
    return table, found


def dataset_of(table: pa.Table) -> Dataset:
    """Return a data set of a mapped table. Its name is random: by default all rows are hashed."""
    return Dataset(table, fingerprint=uuid4().hex)


def with_column(rows: Dataset, name: str, column: pa.ChunkedArray) -> Dataset:
    """Return the rows with one more column, without a copy."""
    return dataset_of(rows.data.table.append_column(name, column))


def column_of(rows: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column: mapped, or a copy where the rows were selected one by one."""
    return rows.select_columns([name]).with_format("arrow")[:][name]


def column_parts(rows: Dataset, name: str) -> Iterator[pa.Array]:
    """Yield a column part by part, so that never all of it is in memory."""
    for part in rows.select_columns([name]).with_format("arrow").iter(batch_size=PART):
        yield from part[name].chunks


def numbers_of(rows: Dataset, name: str) -> np.ndarray[Any, Any]:
    """Return a column of numbers, [N]."""
    return np.asarray(column_of(rows, name))
