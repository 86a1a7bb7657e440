"""Rollout tables on disk: numbered parquet files in a directory, each committed atomically.

A shard that is there is whole and never changes. One that refers to the rows of another
(`topr.store.references`) is read as if it held them. Which rows to draw is not decided here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError
from topr.store.atomic import atomic_path
from topr.store.encoding import parquet_options
from topr.store.reading import ROW_GROUP, SHARDS, contents_of, files_of, read_file, stream_file
from topr.store.references import CHOSEN_KEYS, KEYS, ROW, Reference, with_reference
from topr.store.schema import ROLLOUT_SCHEMA, conform


def write_shard(directory: Path, index: int, table: pa.Table) -> Path:
    """Write rollouts as `part-00000.parquet` (by `index`) and return its path.

    Columns outside the schema are kept, after the schema's own.

    Raises:
        RunDirectoryError: that shard is there already.
        DataError: the table is not a rollout table.

    """
    path = _shard_path(directory, index)
    return _write(path, conform(table, where=f"the table for {path}"))


def write_columns(directory: Path, source: Path, table: pa.Table, added: Sequence[str]) -> Path:
    """Write columns that a stage adds to the rows of a shard, under the shard's name.

    Args:
        directory: of the stage.
        source: the shard, where the other columns stay.
        table: its rows, in order, with the columns that are added.
        added: names of these.

    """
    reference = _reference(source, chosen=False)
    own = conform(table.select([*KEYS, *added]), where=str(source), columns=[*KEYS, *added])
    path = _shard_path(directory, shard_number(source))
    return _write(path, with_reference(own, reference, directory))


def write_choice(directory: Path, source: Path, keys: pa.Table, rows_N: np.ndarray) -> Path:
    """Write which rows of a directory of shards, or of a file, were chosen, in their order.

    Args:
        directory: of the stage that chose them.
        source: where the rows stay.
        keys: `problem_id`, `sample` and `reward` of each chosen row.
        rows_N: its number among all rows of `source`, [N] integers.

    """
    reference = _reference(source, chosen=True)
    own = conform(keys, where=str(source), columns=CHOSEN_KEYS)
    own = own.append_column(ROW, pa.array(rows_N, pa.int64()))
    return _write(_shard_path(directory, 0), with_reference(own, reference, directory))


def _reference(source: Path, *, chosen: bool) -> Reference:
    contents = contents_of(source)
    if contents is None:
        raise DataError(f"{source} is not there any more: rows of it cannot be referred to")
    return Reference(path=source, chosen=chosen, contents=contents)


def copy_shard(path: Path, target: Path) -> None:
    """Write the rows of a shard to a file that refers to nothing, a part at a time.

    It is read twice: which columns there are, and of what types, is known at its end.
    """
    schemas = (table.schema for table in stream_tables([path]))
    schema = pa.unify_schemas([ROLLOUT_SCHEMA, *schemas], promote_options="permissive")
    with (
        atomic_path(target, overwrite=False) as temporary,
        pq.ParquetWriter(temporary, schema, **parquet_options(schema)) as writer,
    ):
        for table in stream_tables([path]):
            parts = [schema.empty_table(), table]
            whole = pa.concat_tables(parts, promote_options="permissive").select(schema.names)
            writer.write_table(whole.cast(schema))


def _write(path: Path, table: pa.Table) -> Path:
    with atomic_path(path, overwrite=False) as temporary:
        options = parquet_options(table.schema)
        pq.write_table(table, temporary, row_group_size=ROW_GROUP, **options)
    return path


def _shard_path(directory: Path, index: int) -> Path:
    return directory / f"part-{index:05d}.parquet"


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
    paths = files_of(source)
    if not paths:
        raise DataError(
            f"{source} holds no {SHARDS}: give a directory that a topr stage wrote, "
            "such as iteration-01/rollouts, or one parquet file"
        )
    tables = [conform(read_file(path, columns), where=str(path), columns=columns) for path in paths]
    return pa.concat_tables(tables, promote_options="default").replace_schema_metadata(
        ROLLOUT_SCHEMA.metadata
    )


def stream_tables(
    paths: Sequence[Path], columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP
) -> Iterator[pa.Table]:
    """Yield the rows of several parquet files in order, `rows` at most at a time.

    What is in memory is one such part, whatever the files hold. Arguments and errors are those of
    `read_table`.
    """
    for path in paths:
        for table in stream_file(path, columns, rows):
            yield conform(table, where=str(path), columns=columns)


def read_batches(path: Path, *, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one parquet file, whoever wrote it, `rows` at most at a time.

    Raises:
        DataError: no such file, not parquet, or a rollout table of a newer topr.

    """
    for table in stream_file(path, None, rows):
        yield from table.to_batches(max_chunksize=rows)
