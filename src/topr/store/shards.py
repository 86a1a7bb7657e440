"""Rollout tables on disk: numbered parquet files in a directory, each committed atomically.

A shard that is there is whole and never changes. Which rows to draw is not decided here.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError
from topr.store.atomic import atomic_path
from topr.store.schema import ROLLOUT_SCHEMA, check_version, conform

_SHARDS = "part-*.parquet"


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
        pq.write_table(table, temporary, compression="zstd")
    return path


def shard_paths(directory: Path) -> list[Path]:
    """Return the directory's shards in order of their number; none if it is not there."""
    return sorted(directory.glob(_SHARDS))


def read_table(source: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read rollouts from a directory of shards or one parquet file, in order.

    Args:
        source: the directory or file.
        columns: those to read; none given: the schema's, then any others there are.

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
    """Read those of `columns` that one parquet file has (none given: all), whoever wrote it.

    Raises:
        DataError: no such file, not parquet, or a rollout table of a newer topr.

    """
    try:
        # Not pq.read_table: it would make columns of directories named like `seed=1`.
        with pq.ParquetFile(path) as file:
            check_version(file.schema_arrow, where=str(path))
            if columns is not None:
                there = [name for name in columns if name in file.schema_arrow.names]
                # Keeps the row count and the names for a message when none is there.
                return file.read(columns=there) if there == list(columns) else file.read()
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: give a parquet file or a directory") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
