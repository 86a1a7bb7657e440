"""Rows written to files for other tools: JSON lines, JSON, CSV or parquet, by the suffix.

Files are read in `row_files`; which columns other tools want is in `exporters`.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from topr.interop.row_files import BATCH, PARQUET, pick, rows_of
from topr.store.atomic import atomic_path, refuse_existing


def write_rows(path: Path, table: pa.Table) -> None:
    """Write all rows in the format that the suffix of `path` names, whole or not at all.

    JSON has no NaN and no infinity: they become null. CSV knows text alone: a null becomes an
    empty cell, lists and objects become JSON. The same rows give the same bytes, also gzipped.

    Raises:
        RunDirectoryError: `path` exists already.
        DataError: an unknown suffix.

    """
    write = pick(_WRITERS, Path(path))
    with atomic_path(Path(path), overwrite=False) as temporary:
        if write is None:
            pq.write_table(table, temporary, compression="zstd")
            return
        compression = "gzip" if Path(path).suffix == ".gz" else None
        with (
            pa.output_stream(temporary, compression=compression) as raw,
            io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
        ):
            write(file, table)


def check_output(path: Path) -> None:
    """Refuse now what `write_rows` would refuse after the work was done.

    Raises:
        RunDirectoryError: `path` exists already.
        DataError: an unknown suffix.

    """
    pick(_WRITERS, path)
    refuse_existing(path)


def _write_jsonl(file: IO[str], table: pa.Table) -> None:
    for row in rows_of(table.to_batches(max_chunksize=BATCH)):
        file.write(_dumps(row) + "\n")


def _write_json(file: IO[str], table: pa.Table) -> None:
    separator = "[\n"
    for row in rows_of(table.to_batches(max_chunksize=BATCH)):
        file.write(separator + _dumps(row))
        separator = ",\n"
    file.write("\n]\n" if table.num_rows else "[]\n")


def _write_csv(file: IO[str], table: pa.Table) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in rows_of(table.to_batches(max_chunksize=BATCH)):
        writer.writerow(_dumps(c) if isinstance(c, list | dict) else c for c in row.values())


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # NaN or infinity somewhere in it
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, ensure_ascii=False)


_WRITERS: dict[str, Callable[[IO[str], pa.Table], None] | None] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    PARQUET: None,  # pyarrow's own, which takes no text file
}
