"""Rollout tables on disk: numbered parquet files in a directory, each committed atomically.

A shard that is there is whole and never changes. Which rows to draw is not decided here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError
from topr.store.atomic import atomic_path
from topr.store.schema import ROLLOUT_SCHEMA, check_version, conform

_SHARDS = "part-*.parquet"
ROW_GROUP = 4096
"""Rows of a row group: what a reader that goes through a store bit by bit holds at a time."""
BUFFER = 1 << 20
"""Bytes that such a reader takes from a file at once."""


def write_shard(directory: Path, index: int, table: pa.Table) -> Path:
    """Write rollouts as `part-00000.parquet` (by `index`) and return its path.

    Columns outside the schema are kept, after the schema's own.

    Raises:
        RunDirectoryError: that shard is there already.
        DataError: the table is not a rollout table.

    """
    path = directory / f"part-{index:05d}.parquet"
    table = conform(table, where=f"the table for {path}")
    with atomic_path(path, overwrite=False) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP)
    return path


def shard_paths(directory: Path) -> list[Path]:
    """Return the directory's shards in order of their number; none if it is not there."""
    return sorted(directory.glob(_SHARDS))


def shard_number(path: Path) -> int:
    """Return the number in a shard's name."""
    return int(path.stem.removeprefix("part-"))


def read_table(source: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read rollouts from a directory of shards or one parquet file, in order.

    Args:
        source: the directory or file.
        columns: those to read; defaults to the schema's, then any others there are.

    Raises:
        DataError: nothing to read, not parquet, or not a rollout table of a version known here.

    """
    source = Path(source)
    paths = shard_paths(source) if source.is_dir() else [source]
    if not paths:
        raise DataError(
            f"{source} holds no {_SHARDS}: give a directory that a topr stage wrote, "
            "such as iteration-01/rollouts, or one parquet file"
        )
    tables = [
        conform(read_parquet(path, columns), where=str(path), columns=columns) for path in paths
    ]
    return pa.concat_tables(tables, promote_options="default").replace_schema_metadata(
        ROLLOUT_SCHEMA.metadata
    )


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read those of `columns` that one parquet file has (defaults to all), whoever wrote it.

    Raises:
        DataError: no such file, not parquet, or a rollout table of a newer topr.

    """
    with _opened(path) as file:
        return file.read(columns=_there(file, columns))


def stream_tables(
    paths: Sequence[Path], columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP
) -> Iterator[pa.Table]:
    """Yield the rows of several parquet files in order, `rows` at most at a time.

    What is in memory is one such part, whatever the files hold. Arguments and errors are those of
    `read_table`.
    """
    for path in paths:
        with _opened(path, buffer_size=BUFFER) as file:
            for batch in file.iter_batches(batch_size=rows, columns=_there(file, columns)):
                table = pa.Table.from_batches([batch])
                yield conform(table, where=str(path), columns=columns)


def read_batches(path: Path, *, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one parquet file, whoever wrote it, `rows` at most at a time.

    Raises:
        DataError: no such file, not parquet, or a rollout table of a newer topr.

    """
    with _opened(path, buffer_size=BUFFER) as file:
        for group in range(file.num_row_groups):  # All groups together keep what was read of each.
            yield from file.iter_batches(batch_size=rows, row_groups=[group])


def gather_tables(paths: Sequence[Path], wanted_N: np.ndarray, *, rows: int) -> Iterator[pa.Table]:
    """Yield chosen rows of several parquet files in a given order, `rows` at a time.

    For each part, every row group that holds one of its rows is read once: cheap where the order
    is that of the files or of several runs through them, dear where it is random.

    Args:
        paths: the files.
        wanted_N: row numbers, counted over all files, [N] integers.
        rows: of each part, but for the last.

    """
    groups: list[tuple[Path, int]] = []
    sizes: list[int] = []
    for path in paths:
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                groups.append((path, group))
                sizes.append(file.metadata.row_group(group).num_rows)
    ends_G = np.cumsum(sizes)
    for start in range(0, len(wanted_N), rows):
        part_N = np.asarray(wanted_N[start : start + rows])
        order_N = np.argsort(part_N, kind="stable")
        ascending_N = part_N[order_N]
        owner_N = np.searchsorted(ends_G, ascending_N, side="right")
        pieces: list[pa.Table] = []
        for owner in np.unique(owner_N):
            path, group = groups[owner]
            first = ends_G[owner] - sizes[owner]
            pieces += _rows_of_group(path, group, ascending_N[owner_N == owner] - first)
        table = pa.concat_tables(pieces, promote_options="default")
        yield table.take(np.argsort(order_N, kind="stable"))


def _rows_of_group(path: Path, group: int, inside: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows with these ascending numbers within one row group."""
    first = 0
    with _opened(path, buffer_size=BUFFER) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP, row_groups=[group]):
            low, high = np.searchsorted(inside, [first, first + len(batch)])
            if low < high:
                table = pa.Table.from_batches([batch]).take(inside[low:high] - first)
                yield conform(table, where=str(path))
            first += len(batch)


def _there(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """Return the columns to read; all where one is missing, for a message that names them."""
    there = file.schema_arrow.names
    return list(columns) if columns is not None and set(columns) <= set(there) else None


@contextmanager
def _opened(path: Path, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
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
