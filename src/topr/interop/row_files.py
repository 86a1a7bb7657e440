"""Rows in files that anybody may have written: JSON lines, JSON, CSV, parquet, or our shards.

The suffix says the format; all but parquet may end in `.gz`. Columns are not interpreted here:
see `schema` for rollouts and `importers` for other tools' completions.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError, RunDirectoryError
from topr.interop.row_reader import Row, csv_lines, pick, stream_file
from topr.store.atomic import atomic_path
from topr.store.cells import clean_text
from topr.store.shards import read_parquet, read_table


def read_rows(source: str | Path) -> pa.Table:
    """Read all rows of a file, or of a directory of our shards.

    JSON objects with differing keys give the union of columns, null where a key was not there.
    A column whose values have no common type (`18`, then `"x+1"`) becomes text: strings stay as
    they are, any other value becomes its JSON. Integers among floats become floats. Every CSV
    column is text, an empty cell is an empty string.

    Raises:
        DataError: no such file, an unknown suffix, or a broken line (named by its number).

    """
    path = Path(source)
    if path.is_dir():
        return read_table(path)
    if not path.is_file():
        raise DataError(f"{path} is not there: give a file or a directory of topr's shards")
    reader = pick(_READERS, path)
    return reader(path)


def write_rows(path: Path, table: pa.Table) -> None:
    """Write all rows in the format that the suffix of `path` names, whole or not at all.

    JSON has no NaN and no infinity: they become null. CSV knows text alone: a null becomes an
    empty cell, lists and objects become JSON.

    Raises:
        RunDirectoryError: `path` exists already.
        DataError: an unknown suffix.

    """
    path = Path(path)
    writer = pick(_WRITERS, path)
    with atomic_path(path, overwrite=False) as temporary:
        writer(temporary, path.suffix == ".gz", table)


def check_output(path: Path) -> None:
    """Refuse now what `write_rows` would refuse after the work was done.

    Raises:
        RunDirectoryError: `path` exists already.
        DataError: an unknown suffix.

    """
    pick(_WRITERS, path)
    if path.exists():
        raise RunDirectoryError(
            f"{path} exists already and is not overwritten: remove it, or write elsewhere"
        )


def _read_lines(path: Path) -> pa.Table:
    return _table(stream_file(path))


def _read_csv(path: Path) -> pa.Table:
    names, *rows = csv_lines(path)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table(
        {name: pa.array(cells, pa.string()) for name, cells in zip(names, columns, strict=True)}
    )


def _read_parquet(path: Path) -> pa.Table:
    """Read one file; categories and views, which few functions take, become plain values."""
    table = read_parquet(path)
    for index, f in enumerate(table.schema):
        if pa.types.is_dictionary(f.type):
            table = table.set_column(index, f.name, table.column(index).cast(f.type.value_type))
        elif pa.types.is_string_view(f.type):
            table = table.set_column(index, f.name, table.column(index).cast(pa.string()))
    return table


def _table(rows: Iterable[Row]) -> pa.Table:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table(
        {clean_text(name): as_column([row.get(name) for row in rows]) for name in names}
    )


def as_column(values: list[Any]) -> pa.Array:
    """Return values as a column; those without a common type become text, as `read_rows` says."""
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pa.array([_as_text(value) for value in values], pa.string())
    if pa.types.is_struct(array.type) and array.type.num_fields == 0:  # parquet has none
        return pa.array([_as_text(value) for value in values], pa.string())
    return array


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return clean_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _write_jsonl(path: Path, gzipped: bool, table: pa.Table) -> None:
    with _open_text(path, gzipped) as file:
        for row in _rows(table):
            file.write(_dumps(row) + "\n")


def _write_json(path: Path, gzipped: bool, table: pa.Table) -> None:
    with _open_text(path, gzipped) as file:
        separator = "[\n"
        for row in _rows(table):
            file.write(separator + _dumps(row))
            separator = ",\n"
        file.write("\n]\n" if table.num_rows else "[]\n")


def _write_csv(path: Path, gzipped: bool, table: pa.Table) -> None:
    with _open_text(path, gzipped) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        for row in _rows(table):
            writer.writerow(
                [_dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in row.values()]
            )


def _write_parquet(path: Path, gzipped: bool, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd")


@contextmanager
def _open_text(path: Path, gzipped: bool) -> Iterator[IO[str]]:
    """Open for writing. No name and no time in the gzip header: same rows, same bytes."""
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("wb"))
        if gzipped:
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
            raw = cast("IO[bytes]", stack.enter_context(packed))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # NaN or infinity somewhere in it
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        return json.dumps(finite, ensure_ascii=False)


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_lines,
    ".json": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, bool, pa.Table], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
