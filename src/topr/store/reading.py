"""Rows of parquet files, with the columns that are in files they refer to. Not here: the schema,
which is checked by `topr.store.shards`, and what a reference is (`topr.store.references`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError
from topr.store.references import KEYS, ROW, Reference, check_contents, check_keys, reference_in
from topr.store.schema import ROLLOUT_SCHEMA, check_version, conform

SHARDS = "part-*.parquet"
ROW_GROUP = 4096
"""Rows of a row group: what a reader that goes through a store bit by bit holds at a time."""
OUT_OF_ORDER = 16_384
"""Rows that are gathered at a time where they do not stand in the files' order."""
BUFFER = 1 << 20
"""Bytes that such a reader takes from a file at once."""


def shard_paths(directory: Path) -> list[Path]:
    """Return the directory's shards in order of their number; none if it is not there."""
    return sorted(directory.glob(SHARDS))


def files_of(source: Path) -> list[Path]:
    """Return the shards of a directory, or the one file that is named."""
    return shard_paths(source) if source.is_dir() else [source]


def count_rows(path: Path) -> int:
    """Return the number of rows of a file."""
    return _footer(path)[0]


def contents_of(source: Path) -> str | None:
    """Return how many rows a file or a directory of shards has, and a hash of what tells them from
    others: the files' footers, with sizes and limits of every column. None: it is not there.
    """
    files = files_of(source)
    if not all(path.is_file() for path in files) or not files:
        return None
    footers = [_footer(path) for path in files]
    digest = hashlib.sha256("".join(digest for _, digest in footers).encode()).hexdigest()[:16]
    return f"{sum(rows for rows, _ in footers)} rows, {digest}"


def _footer(path: Path) -> tuple[int, str]:
    """Return the rows of a file, and a hash of its footer; read once while it stays the same."""
    found = path.stat()
    return _read_footer(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=65_536)
def _read_footer(path: Path, size: int, changed: int) -> tuple[int, str]:
    with opened(path) as file, path.open("rb") as raw:
        raw.seek(size - 8)  # the footer's length, and the mark of parquet
        length = int.from_bytes(raw.read(4), "little") + 8
        raw.seek(max(0, size - length))
        return int(file.metadata.num_rows), hashlib.sha256(raw.read()).hexdigest()


@contextmanager
def opened(path: Path, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """Open a parquet file that this topr can read, with errors that name it."""
    try:
        # Not pq.read_table: it would make columns of directories named like `seed=1`.
        with pq.ParquetFile(path, buffer_size=buffer_size) as file:
            check_version(file.schema_arrow, where=str(path))
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: give a parquet file or a directory") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as parquet, as rollouts are kept (`topr import` makes rollouts "
            f"of other files): {error}"
        ) from error


def refers(path: Path) -> bool:
    """Return whether a file leaves columns of its rows in another one."""
    if path.suffix != ".parquet":
        return False
    with opened(path) as file:
        return reference_in(file.schema_arrow, path) is not None


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read those of `columns` that one parquet file has (defaults to all), whoever wrote it.

    Raises:
        DataError: no such file, not parquet, a rollout table of a newer topr, or it refers to rows
            that are not there.

    """
    with opened(path) as file:
        if reference_in(file.schema_arrow, path) is None:
            return file.read(columns=_there(file, columns))
        rows = max(1, file.metadata.num_rows)
    parts = list(stream_file(path, columns, rows))
    return pa.concat_tables(parts or [ROLLOUT_SCHEMA.empty_table()], promote_options="default")


def stream_file(
    path: Path, columns: Sequence[str] | None, rows: int, chosen_N: np.ndarray | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of one file in order, `rows` at most at a time, with what it refers to.

    Args:
        path: whoever wrote it.
        columns: to read; all where one is not there, or without names.
        rows: of each part, at most.
        chosen_N: numbers of the rows to yield, ascending, [N] integers. Without it, all.

    """
    with opened(path, buffer_size=BUFFER) as file:
        reference = reference_in(file.schema_arrow, path)
        if reference is None:
            yield from _own_rows(file, columns, rows, chosen_N)
            return
        own = file.read()
    check_contents(reference, contents_of(reference.path), where=path)
    if chosen_N is not None:
        own = own.take(chosen_N)
    needed = _needed(reference, own, columns)
    if reference.chosen:
        numbers_N = own[ROW].to_numpy()
        # Files are read again for each part: not for parts of a few rows, nor often out of order.
        size = max(rows, ROW_GROUP if np.all(np.diff(numbers_N) > 0) else OUT_OF_ORDER)
        parts = gather(files_of(reference.path), numbers_N, size, needed)
    else:
        parts = stream_file(reference.path, needed, rows, chosen_N)
    first = 0
    for part in parts:
        mine = own.slice(first, len(part))
        first += len(part)
        yield _joined(reference, mine, part, columns, where=path)


def _own_rows(
    file: pq.ParquetFile, columns: Sequence[str] | None, rows: int, chosen_N: np.ndarray | None
) -> Iterator[pa.Table]:
    """Yield rows of a file that holds them, from those row groups that have any."""
    names, end = _there(file, columns), 0
    for group in range(file.num_row_groups):  # All together would keep what was read of each.
        first, end = end, end + file.metadata.row_group(group).num_rows
        if chosen_N is not None and not len(_between(chosen_N, first, end)):
            continue
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=names):
            part = pa.Table.from_batches([batch])
            if chosen_N is not None:
                part = part.take(_between(chosen_N, first, first + len(batch)) - first)
            first += len(batch)
            yield part


def _between(numbers_N: np.ndarray, first: int, end: int) -> np.ndarray:
    low, high = np.searchsorted(numbers_N, [first, end])
    return numbers_N[low:high]


def _needed(
    reference: Reference, own: pa.Table, columns: Sequence[str] | None
) -> Sequence[str] | None:
    """Return the columns to read of the file that is referred to: its keys among them."""
    if columns is None:
        return None
    added = () if reference.chosen else own.column_names
    return [*reference.keys, *(n for n in columns if n not in {*reference.keys, *added})]


def _joined(
    reference: Reference, own: pa.Table, part: pa.Table, columns: Sequence[str] | None, where: Path
) -> pa.Table:
    """Return rows with the columns of both files; one's own come first where both have them."""
    check_keys(own, part, reference.keys, where=where, path=reference.path)
    for name in own.column_names:
        if name in KEYS or reference.chosen:
            continue
        if name in part.column_names:
            part = part.set_column(part.column_names.index(name), name, own[name])
        else:
            part = part.append_column(name, own[name])
    if columns is None or not set(columns) <= set(part.column_names):
        return part  # where one is missing, a message names those that are there
    return part.select(columns)


def gather(
    paths: Sequence[Path], wanted_N: np.ndarray, rows: int, columns: Sequence[str] | None
) -> Iterator[pa.Table]:
    """Yield chosen rows of several files in a given order, `rows` at a time.

    For each part, every row group that holds one of its rows is read once: cheap where the order
    is that of the files or of several runs through them, dear where it is random.

    Args:
        paths: the files.
        wanted_N: row numbers, counted over all files, [N] integers.
        rows: of each part, but for the last.
        columns: to read, as for `stream_file`.

    """
    ends = np.cumsum([0, *map(count_rows, paths)])
    for start in range(0, len(wanted_N), rows):
        part_N = np.asarray(wanted_N[start : start + rows])
        order_N = np.argsort(part_N, kind="stable")
        ascending_N = part_N[order_N]
        pieces: list[pa.Table] = []
        for path, first, end in zip(paths, ends, ends[1:], strict=False):
            inside_N = _between(ascending_N, first, end) - first
            if len(inside_N):
                found = stream_file(path, columns, ROW_GROUP, inside_N)
                pieces += (conform(piece, where=str(path), columns=columns) for piece in found)
        table = pa.concat_tables(pieces, promote_options="permissive")
        yield table.take(np.argsort(order_N, kind="stable"))


def _there(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """Return the columns to read; all where one is missing, for a message that names them."""
    there = file.schema_arrow.names
    return list(columns) if columns is not None and set(columns) <= set(there) else None
