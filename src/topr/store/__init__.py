"""topr's own files: schema, shards, manifests, atomic writes. Others' are in `topr.interop`."""

from topr.store.atomic import atomic_path, write_json_atomic, write_text_atomic
from topr.store.cells import as_messages, column_values, has_column, nested_names, value_at
from topr.store.encoding import parquet_options
from topr.store.journal import Journal, journal_path
from topr.store.lock import locked
from topr.store.manifest import Manifest, begin, read_manifest, write_manifest
from topr.store.reading import read_file, refers, shard_paths
from topr.store.schema import ROLLOUT_SCHEMA, SCHEMA_VERSION, rollouts_to_table, table_to_rollouts
from topr.store.shards import (
    copy_shard,
    read_batches,
    read_table,
    stream_tables,
    write_choice,
    write_columns,
    write_shard,
)

__all__ = [
    "ROLLOUT_SCHEMA",
    "SCHEMA_VERSION",
    "Journal",
    "Manifest",
    "as_messages",
    "atomic_path",
    "begin",
    "column_values",
    "copy_shard",
    "has_column",
    "journal_path",
    "locked",
    "nested_names",
    "parquet_options",
    "read_batches",
    "read_file",
    "read_manifest",
    "read_table",
    "refers",
    "rollouts_to_table",
    "shard_paths",
    "stream_tables",
    "table_to_rollouts",
    "value_at",
    "write_choice",
    "write_columns",
    "write_json_atomic",
    "write_manifest",
    "write_shard",
    "write_text_atomic",
]
