"""Rows of problems, from a local file or from the hub, and the checks that name a bad one.

Files are read by `topr.store.read_rows`, hub datasets by `topr.hub`. What the columns
mean is each task's own matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topr import hub
from topr.errors import DataError
from topr.store import read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows and where they are from."""

    name: str
    """File or hub name, for messages."""
    rows: Sequence[Mapping[str, Any]]

    def fail(self, index: int, problem: str, advice: str) -> DataError:
        """Return an error about one row, counted from 0 here and from 1 in the message."""
        columns = ", ".join(self.rows[index]) or "none"
        return DataError(
            f"{self.name}, row {index + 1}: {problem} (columns found: {columns}). {advice}"
        )

    def value(self, index: int, column: str, advice: str) -> Any:
        """Return one cell.

        Raises:
            DataError: the column is not there, or has nothing in this row.

        """
        value = self.rows[index].get(column)
        if value is None:
            state = "is empty" if column in self.rows[index] else "is not there"
            raise self.fail(index, f"column {column!r} {state}", advice)
        return value

    def text(self, index: int, column: str, advice: str) -> str:
        """Return one cell that must be text.

        Raises:
            DataError: the column is not there, or holds no text in this row.

        """
        value = self.value(index, column, advice)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(
                index,
                f"column {column!r} holds {value!r:.80} ({type(value).__name__}), expected text",
                advice,
            )
        return value

    def identifier(self, index: int, column: str, advice: str) -> str:
        """Return one cell that names the problem: text or a whole number.

        Raises:
            DataError: the column is not there, or holds something else.

        """
        value = self.value(index, column, advice)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.fail(
                index,
                f"column {column!r} holds {value!r:.80} ({type(value).__name__}), expected a name "
                "or a whole number",
                advice,
            )
        return str(value)


def read_file(path: str) -> Source:
    """Read a local JSONL, JSON, parquet or CSV file, gzipped or not.

    Raises:
        DataError: there is no such file, it cannot be read, or it has no rows.

    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(
            f"{path}: there is no such file (looked in {Path.cwd()}). "
            "Give the path of a JSONL, JSON or parquet file"
        )
    try:
        rows = read_rows(place).to_pylist()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _filled(Source(name=path, rows=rows))


def read_hub(
    dataset: str, subset: str | None, split: str, *, instead: str, revision: str | None = None
) -> Source:
    """Read one split of a hub dataset.

    Args:
        dataset: hub name.
        subset: one of its configurations; None where it has one only.
        split: name of the split on the hub.
        instead: key of the recipe that takes a local file instead, for messages.
        revision: branch, tag or commit; None: the default branch.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset, configuration or split.

    """
    rows = hub.rows(dataset, subset, split, revision=revision, instead=_file(instead))
    name = f"{dataset} ({subset}, {split})" if subset else f"{dataset} ({split})"
    return _filled(Source(name=f"hub dataset {name}", rows=rows))


def read_hub_subsets(dataset: str, split: str, *, instead: str) -> Source:
    """Read one split of all configurations of a hub dataset, in the order of their names.

    Raises:
        DataError: as in `read_hub`.

    """
    subsets = hub.subsets(dataset, instead=_file(instead))
    parts = [read_hub(dataset, subset, split, instead=instead) for subset in subsets]
    return Source(
        name=f"hub dataset {dataset} ({split})", rows=[row for part in parts for row in part.rows]
    )


def read_file_or_hub(source: str, split: str, *, key: str) -> Source:
    """Read a local file where `source` is one or looks like one, else a hub dataset.

    Args:
        source: path, hub name, or `hf://datasets/owner/name[/file][@revision]`.
        split: name of the split, where it is a hub name.
        key: key of the recipe that holds `source`, for messages.

    Raises:
        DataError: as in `read_file` and `read_hub`.

    """
    if source.startswith("hf:"):
        name = hub.parse(source)
        if name is not None and not name.file:
            return read_hub(name.repo, None, split, instead=key, revision=name.revision)
        return read_file(str(hub.local(source)))
    if hub.looks_like_path(source) or Path(source).exists():
        return read_file(source)
    return read_hub(source, None, split, instead=key)


def _filled(source: Source) -> Source:
    if not source.rows:
        raise DataError(f"{source.name} has no rows, expected one problem a row")
    return source


def _file(key: str) -> str:
    return f"a local JSONL or parquet file as task.{key}"
