"""Rows of plain values, read one at a time and as often as needed: the whole is never in memory.

Which columns mean what is not known here: see `formats` and `columns`.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from topr.errors import DataError
from topr.store.cells import clean
from topr.store.shards import read_batches, shard_paths

Row = dict[str, Any]
_OF_FOLDERS = (".jsonl", ".parquet")


class Rows:
    """Rows that can be gone through again and again.

    >>> rows = Rows.of([{"a": 1}, {"a": 2, "b": 3}])
    >>> rows.column_names, [place for place, _ in rows]
    (['a', 'b'], ['row 1', 'row 2'])
    """

    def __init__(self, read: Callable[[], Iterable[tuple[str, Row]]]) -> None:
        """Take what starts a pass over pairs of (where it is, for messages; the row)."""
        self._read = read

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        return iter(self._read())

    @classmethod
    def of(cls, rows: "Rows | pa.Table | Iterable[Row]") -> "Rows":
        """Return rows that are in memory already; a list is read again for every pass."""
        if isinstance(rows, Rows):
            return rows
        if isinstance(rows, pa.Table):
            table = rows
            return cls(lambda: _numbered(_of_batches(table.to_batches(max_chunksize=512))))
        return cls(lambda: _numbered(rows))

    @classmethod
    def open(cls, source: str | Path) -> "Rows":
        """Return the rows of a file, or of a folder: our shards, else its JSONL and parquet files
        in the order of their numbers and names.

        Raises:
            DataError: no such file, an unknown suffix, or a folder without such files. A broken
                line is named on the way through.

        """
        path = Path(source)
        if path.is_file():
            return cls(lambda: _numbered(stream_file(path)))
        files = data_files(path)
        return cls(
            lambda: (
                (f"{file.name}, {place}", row)
                for file in files
                for place, row in _numbered(stream_file(file))
            )
        )

    @cached_property
    def column_names(self) -> list[str]:
        """Names in any row, in the order in which they come up (one pass, the first time)."""
        return list(dict.fromkeys(name for _, row in self for name in row))

    def first(self) -> Row:
        """Return the first row.

        Raises:
            DataError: there is none.

        """
        for _, row in self:
            return row
        raise DataError("there are no rows: give a file that holds completions")


def stream_file(path: Path) -> Iterator[Row]:
    """Yield the rows of one file, by its suffix; all but parquet may end in `.gz`.

    Raises:
        DataError: an unknown suffix, or a broken line (named by its number).

    """
    rows: Iterator[Row] = pick(_STREAMS, path)(path)
    return rows


def data_files(source: Path) -> list[Path]:
    """Return the files that hold the rows of a file or folder, in the order of reading.

    10.jsonl comes after 9.jsonl, and notes (`*_metadata.jsonl`) are no data.

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
        if path.is_file()
        and path.name.removesuffix(".gz").endswith(_OF_FOLDERS)
        and not path.name.startswith(".")
        and not path.name.endswith("_metadata.jsonl")
    ]
    if not files:
        raise DataError(
            f"{source} holds no files that end in {', '.join(_OF_FOLDERS)}: name the file itself"
        )
    return shard_paths(source) or sorted(files, key=_by_number)


def pick(choices: dict[str, Any], path: Path) -> Any:
    """Return what `choices` has for the suffix of `path`, `.gz` left aside.

    Raises:
        DataError: nothing.

    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in choices or path.name.endswith(".parquet.gz"):
        raise DataError(
            f"{path}: unknown kind of file, expected a name that ends in {', '.join(choices)}; "
            "all but .parquet may be gzipped (.gz)"
        )
    return choices[suffix]


def csv_lines(path: Path) -> Iterator[list[str]]:
    """Yield the cells of each line, those of the names first.

    Raises:
        DataError: a broken line, or one with another number of cells.

    """
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names) or not names:
            raise DataError(f"{path}, line 1: expected distinct column names, found {names}")
        yield names
        for cells in reader:
            if len(cells) not in (0, len(names)):
                raise DataError(
                    f"{path}, line {reader.line_num}: found {len(cells)} cells, expected "
                    f"{len(names)} ({', '.join(names)})"
                )
            if cells:
                yield cells
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not CSV ({error}). JSON lines hold any text"
        ) from error


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _by_number(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    for batch in batches:
        yield from batch.to_pylist()


def _stream_parquet(path: Path) -> Iterator[Row]:
    return _of_batches(read_batches(path, rows=512))


def _stream_csv(path: Path) -> Iterator[Row]:
    lines = csv_lines(path)
    names = next(lines)
    return (dict(zip(names, cells, strict=True)) for cells in lines)


def _stream_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip(" \t\r\n"):
            yield _parse(line, path, number)


def _stream_json(path: Path) -> Iterator[Row]:
    """Read a list of objects (whole), or JSON lines: many tools give those this suffix."""
    opening = next((line for _, line in _lines(path) if line.strip()), "")
    if not opening.lstrip().startswith("["):
        yield from _stream_jsonl(path)
        return
    rows = _loads("".join(line for _, line in _lines(path)), path, first_line=1)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, item {number}: found {type(row).__name__}, expected an object"
            )
        yield row


def _parse(line: str, path: Path, number: int) -> Row:
    # Without its end: a line that stops too early would be reported as the next one.
    row = _loads(line.rstrip("\r\n"), path, first_line=number)
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: found {type(row).__name__}, expected one JSON object a line"
        )
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
        # Half a surrogate pair, which no file and no tokenizer takes: rare, and only as an escape.
        return clean(found) if "\\ud" in text or "\\uD" in text else found
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}: not JSON ({error.msg} at column {error.colno}). Expected one "
            "object a line, or in a .json file a list of objects"
        ) from error
    except (RecursionError, ValueError) as error:  # absurdly deep; an integer of 5000 digits
        raise DataError(f"{path}, line {first_line}: cannot be read as JSON ({error})") from error


_STREAMS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _stream_jsonl,
    ".json": _stream_json,
    ".csv": _stream_csv,
    ".parquet": _stream_parquet,
}
