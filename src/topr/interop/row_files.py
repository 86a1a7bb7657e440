"""Rows in files that anybody may have written: JSON lines, JSON, CSV, parquet, or our shards.

The suffix says the format; all but parquet may end in `.gz`. Which columns mean what is not known
here: see `column_map` and `formats`. Files are written in `row_output`.

JSON and CSV are read with the standard library. The readers of pyarrow, pandas and `datasets` guess
one type for a whole column (`18`, then `"x+1"`, is an error; `2**70` another number), and their
errors do not say which row is wrong.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa

from topr.errors import DataError
from topr.store import read_batches, read_file, read_table, shard_paths
from topr.store.cells import clean, clean_text

T = TypeVar("T")
RawRow = dict[str, Any]
"""One row by column name, in Python's own values."""
PARQUET = ".parquet"
BATCH = 512
"""Rows of a table that are Python objects at a time."""


class RowStream:
    """Rows that are read one at a time, as often as needed: the whole is never in memory.

    >>> rows = RowStream.of([{"a": 1}, {"a": 2, "b": 3}])
    >>> rows.column_names, [place for place, _ in rows]
    (['a', 'b'], ['row 1', 'row 2'])
    """

    def __init__(self, read: Callable[[], Iterable[tuple[str, RawRow]]]) -> None:
        """Take a function that starts a pass over pairs of (place, for messages; row)."""
        self._read = read

    def __iter__(self) -> Iterator[tuple[str, RawRow]]:
        return iter(self._read())

    @classmethod
    def of(cls, rows: "RowStream | pa.Table | Iterable[RawRow]") -> "RowStream":
        """Return rows that are in memory already; a list is read again for every pass."""
        if isinstance(rows, RowStream):
            return rows
        if isinstance(rows, pa.Table):
            table = rows
            return cls(lambda: _numbered(rows_of(table.to_batches(max_chunksize=BATCH))))
        return cls(lambda: _numbered(rows))

    @classmethod
    def open(cls, source: str | Path, *, arrays: bool = False) -> "RowStream":
        """Return the rows of a file, or of a folder: our shards, else its JSONL and parquet files
        in the order of their numbers and names.

        Args:
            source: the file or folder.
            arrays: give lists of numbers in parquet files as numpy arrays; see `rows_of`.

        Raises:
            DataError: no such file, an unknown suffix, or a folder without such files. A broken
                line is reported during a pass.

        """
        files = data_files(Path(source))
        _refuse_empty(files)

        def read() -> Iterator[tuple[str, RawRow]]:
            for file in files:
                name = f"{file.name}, " if Path(source).is_dir() else ""
                for place, row in _numbered(_stream_file(file, arrays=arrays)):
                    yield f"{name}{place}", row

        return cls(read)

    @cached_property
    def column_names(self) -> list[str]:
        """Names in any row, in the order of their first use (one pass, the first time)."""
        return list(dict.fromkeys(name for _, row in self for name in row))

    def first(self) -> RawRow:
        """Return the first row.

        Raises:
            DataError: there is none.

        """
        for _, row in self:
            return row
        raise DataError("there are no rows: give a file that holds completions")


def data_files(source: Path) -> list[Path]:
    """Return the files that hold the rows of a file or folder, in the order of reading.

    10.jsonl comes after 9.jsonl, and notes (`*_metadata.jsonl`) are left out.

    Raises:
        DataError: there are none.

    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} is not there: give a file, or a folder of files")
    files = [
        path
        for path in source.iterdir()
        if re.fullmatch(r"[^.].*(?<!_metadata)\.(jsonl|jsonl\.gz|parquet)", path.name)
        and path.is_file()
    ]
    if not files:
        raise DataError(
            f"{source} holds no files that end in .jsonl or .parquet: name the file itself"
        )
    return shard_paths(source) or sorted(files, key=_by_number)


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
    if pick(_READERS, path) is _read_parquet:
        return _without_encodings(read_file(path))
    return table_of(list(_stream_file(path)))


def table_of(rows: Sequence[RawRow]) -> pa.Table:
    """Return rows as a table with the columns of all of them; values as `read_rows` says."""
    names = dict.fromkeys(name for row in rows for name in row)
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


def _refuse_empty(files: Sequence[Path]) -> None:
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty: expected rows. Was it written to its end?")


def pick(by_suffix: dict[str, T], path: Path) -> T:
    """Return what belongs to the suffix of `path`, `.gz` left aside."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in by_suffix or path.name.endswith(".parquet.gz"):
        raise DataError(
            f"{path}: unknown kind of file, expected a name that ends in {', '.join(by_suffix)}; "
            "all but .parquet may be gzipped (.gz)"
        )
    return by_suffix[suffix]


def _stream_file(path: Path, *, arrays: bool = False) -> Iterator[RawRow]:
    read = pick(_READERS, path)
    if read is _read_parquet:
        return rows_of(read_batches(path, rows=BATCH), arrays=arrays)
    return read(path)


def _numbered(rows: Iterable[RawRow]) -> Iterator[tuple[str, RawRow]]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _by_number(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def rows_of(batches: Iterable[pa.RecordBatch], *, arrays: bool = False) -> Iterator[RawRow]:
    """Yield the rows of Arrow batches.

    With `arrays`, a list of numbers is a numpy array, a view of the batch: token ids as Python
    objects take ten times the time and memory. A column that holds a null within a list is given
    as Python lists all the same.
    """
    for batch in batches:
        if not arrays:
            yield from batch.to_pylist()
            continue
        columns = {
            name: column.to_pylist() if (views := _views(column)) is None else views
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for cells in zip(*columns.values(), strict=True):
            yield dict(zip(columns, cells, strict=True))


def _views(column: pa.Array) -> list[Any] | None:
    """Return the lists of a column of numbers as numpy arrays; None where it is no such column."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    values, kind = column.values, column.type.value_type
    if values.null_count or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    numbers, valid = values.to_numpy(), column.is_valid().to_pylist()
    return [
        numbers[start:end] if there else None
        for (start, end), there in zip(pairwise(column.offsets.to_pylist()), valid, strict=True)
    ]


def _read_parquet(path: Path) -> Iterator[RawRow]:
    return rows_of(read_batches(path, rows=BATCH))


def _without_encodings(table: pa.Table) -> pa.Table:
    """Turn categories and views, which few functions take, into plain values."""
    for index, f in enumerate(table.schema):
        if pa.types.is_dictionary(f.type):
            table = table.set_column(index, f.name, table.column(index).cast(f.type.value_type))
        elif pa.types.is_string_view(f.type):
            table = table.set_column(index, f.name, table.column(index).cast(pa.string()))
    return table


def _read_csv(path: Path) -> Iterator[RawRow]:
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if not names or len(set(names)) < len(names):
            raise DataError(f"{path}, line 1: expected distinct column names, found {names}")
        for row in reader:
            # DictReader keeps surplus cells under None, and gives None for those that are missing.
            surplus = cast("dict[Any, Any]", row).pop(None, [])
            found = len(surplus) + sum(cell is not None for cell in row.values())
            if found != len(names):
                raise DataError(
                    f"{path}, line {reader.reader.line_num}: found {found} cells, expected "
                    f"{len(names)} ({', '.join(names)})"
                )
            yield row
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.reader.line_num}: not CSV ({error}). JSON lines hold any text"
        ) from error


def _read_json(path: Path) -> Iterator[RawRow]:
    """Read a list of objects (whole), or JSON lines: many tools give those this suffix."""
    opening = next((line for _, line in _lines(path) if line.strip()), "")
    if not opening.lstrip().startswith("["):
        yield from _read_jsonl(path)
        return
    rows = _loads("".join(line for _, line in _lines(path)), path, first_line=1)
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}, item {number}")


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    for number, line in _lines(path):
        if line.strip(" \t\r\n"):
            # Without its end: a line that stops too early would be reported as the next one.
            row = _loads(line.rstrip("\r\n"), path, first_line=number)
            yield _object(row, f"{path}, line {number}")


def _object(row: Any, place: str) -> RawRow:
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {type(row).__name__}, expected a JSON object")
    return row


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


def _loads(text: str, path: Path, *, first_line: int) -> Any:
    try:
        found = json.loads(text)
        if "\\ud" in text.lower():
            # Half a surrogate pair, which no file and no tokenizer takes: rare, only as an escape.
            found = clean(found)
        return found
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}: not JSON ({error.msg} at column {error.colno}). Expected one "
            "object a line, or in a .json file a list of objects"
        ) from error
    except (RecursionError, ValueError) as error:  # absurdly deep; an integer of 5000 digits
        raise DataError(f"{path}, line {first_line}: cannot be read as JSON ({error})") from error


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return clean_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    PARQUET: _read_parquet,
}
