"""Rollouts and other rows on disk: schema, shards, manifests, and other tools' files."""

from topr.store.atomic import atomic_path, write_json_atomic, write_text_atomic
from topr.store.cells import as_messages, column_values, has_column, nested_names, plain, value_at
from topr.store.columns import ColumnMap
from topr.store.exporters import EXPORTS, Export, Exported, export_rollouts
from topr.store.files import as_column, check_output, read_rows, write_rows
from topr.store.formats import FORMATS, Format
from topr.store.importers import import_rollouts
from topr.store.intake import Incoming, incoming, write_rollouts
from topr.store.intake import report as report_import
from topr.store.journal import Journal, journal_path
from topr.store.lock import locked
from topr.store.manifest import Manifest, begin, read_manifest, write_manifest
from topr.store.reading import Reading
from topr.store.rows import Rows, data_files
from topr.store.schema import (
    ROLLOUT_SCHEMA,
    SCHEMA_VERSION,
    rollouts_to_table,
    table_to_rollouts,
)
from topr.store.shards import (
    gather_tables,
    read_table,
    shard_number,
    shard_paths,
    stream_tables,
    write_shard,
)

__all__ = [
    "EXPORTS",
    "FORMATS",
    "ROLLOUT_SCHEMA",
    "SCHEMA_VERSION",
    "ColumnMap",
    "Export",
    "Exported",
    "Format",
    "Incoming",
    "Journal",
    "Manifest",
    "Reading",
    "Rows",
    "as_column",
    "as_messages",
    "atomic_path",
    "begin",
    "check_output",
    "column_values",
    "data_files",
    "export_rollouts",
    "gather_tables",
    "has_column",
    "import_rollouts",
    "incoming",
    "journal_path",
    "locked",
    "nested_names",
    "plain",
    "read_manifest",
    "read_rows",
    "read_table",
    "report_import",
    "rollouts_to_table",
    "shard_number",
    "shard_paths",
    "stream_tables",
    "table_to_rollouts",
    "value_at",
    "write_json_atomic",
    "write_manifest",
    "write_rollouts",
    "write_rows",
    "write_shard",
    "write_text_atomic",
]
