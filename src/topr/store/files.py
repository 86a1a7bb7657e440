"""Rows in files that anybody may have written: JSON lines, JSON, CSV, parquet, or our shards.

The suffix says the format; all but parquet may end in `.gz`. Columns are not interpreted here:
see `schema` for rollouts and `importers` for other tools' completions.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from topr.errors import DataError, RunDirectoryError
from topr.store.atomic import atomic_path
from topr.store.schema import clean_text
from topr.store.shards import read_parquet, read_table

Row = dict[str, Any]


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
    reader = _pick(_READERS, path)
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
    writer = _pick(_WRITERS, path)
    with atomic_path(path, overwrite=False) as temporary:
        writer(temporary, path.suffix == ".gz", table)


def check_output(path: Path) -> None:
    """Refuse now what `write_rows` would refuse after the work was done.

    Raises:
        RunDirectoryError: `path` exists already.
        DataError: an unknown suffix.

    """
    _pick(_WRITERS, path)
    if path.exists():
        raise RunDirectoryError(
            f"{path} exists already and is not overwritten: remove it, or write elsewhere"
        )


def _pick(choices: dict[str, Callable[..., Any]], path: Path) -> Callable[..., Any]:
    suffix = _suffix(path)
    if suffix not in choices or path.name.endswith(".parquet.gz"):
        raise DataError(
            f"{path}: unknown kind of file, expected a name that ends in {', '.join(choices)}; "
            "all but .parquet may be gzipped (.gz)"
        )
    return choices[suffix]


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end). Only \\n ends a line: texts hold others."""
    number = 0
    opener = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with cast("IO[bytes]", opener(path, "rb")) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason}). Convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: broken gzip after line {number} ({error}). Download or write it again"
        ) from error


def _read_jsonl(path: Path) -> pa.Table:
    return _table(
        _parse(line, path, number) for number, line in _lines(path) if line.strip(" \t\r\n")
    )


def _read_json(path: Path) -> pa.Table:
    """Read a list of objects, or JSON lines: many tools give those this suffix."""
    text = "".join(line for _, line in _lines(path))
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    rows = _loads(text, path, first_line=1)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, item {number}: found {type(row).__name__}, expected an object"
            )
    return _table(rows)


def _parse(line: str, path: Path, number: int) -> Row:
    # Without its end: a line that stops too early would be reported as the next one.
    row = _loads(line.rstrip("\r\n"), path, first_line=number)
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: found {type(row).__name__}, expected one JSON object a line"
        )
    return row


def _loads(text: str, path: Path, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}: not JSON ({error.msg} at column {error.colno}). Expected one "
            "object a line, or in a .json file a list of objects"
        ) from error
    except (RecursionError, ValueError) as error:  # absurdly deep; an integer of 5000 digits
        raise DataError(f"{path}, line {first_line}: cannot be read as JSON ({error})") from error


def _read_csv(path: Path) -> pa.Table:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    rows: list[list[str]] = []
    try:
        names = next(reader, [])
        if len(set(names)) < len(names) or not names:
            raise DataError(f"{path}, line 1: expected distinct column names, found {names}")
        for cells in reader:
            if len(cells) not in (0, len(names)):
                raise DataError(
                    f"{path}, line {reader.line_num}: found {len(cells)} cells, expected "
                    f"{len(names)} ({', '.join(names)})"
                )
            if cells:
                rows.append(cells)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not CSV ({error}). JSON lines hold any text"
        ) from error
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
    return pa.table({clean_text(name): _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
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
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, bool, pa.Table], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
