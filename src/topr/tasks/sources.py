"""Rows of problems, from a local file or from the hub, and the checks that name a bad one.

Files are read by `topr.interop.RowStream`, each value as it stands, hub datasets by `topr.hub`.
What the columns mean is each task's own matter.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from topr import hub
from topr.errors import ConfigError, DataError
from topr.interop import RowStream
from topr.store import as_messages, has_column, nested_names, value_at

logger = logging.getLogger(__name__)

MadeT = TypeVar("MadeT")


class EmptyCellError(DataError):
    """A row has nothing where something must be: it can be left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One row, and where it is from."""

    source: str
    """File or hub name, for messages."""
    index: int
    """Counted from 0; from 1 in messages."""
    cells: Mapping[str, Any]

    def fail(self, problem: str, advice: str, kind: type[DataError] = DataError) -> DataError:
        """Return an error about the row."""
        columns = ", ".join(nested_names(self.cells)) or "none"
        where = f"{self.source}, row {self.index + 1}"
        return kind(f"{where}: {problem} (columns found: {columns}). {advice}")

    def value(self, column: str, advice: str) -> Any:
        """Return one cell; a field of a nested column is named with dots.

        Raises:
            EmptyCellError: the column is not there, or has nothing in this row.

        """
        value = value_at(self.cells, column)
        if value is None or (isinstance(value, str) and not value.strip()):
            state = "is empty" if has_column(self.cells, column) else "is not there"
            raise self.fail(f"column {column!r} {state}", advice, EmptyCellError)
        return value

    def messages(self, column: str, advice: str) -> Any:
        """Return one cell, a chat that is written as text as a list of messages.

        Raises:
            DataError: as `value`, or it is written in another way than JSON.

        """
        value = self.value(column, advice)
        try:
            return as_messages(value)
        except DataError as error:
            raise self.fail(str(error), advice) from error

    def text(self, column: str, advice: str) -> str:
        """Return one cell that must be text.

        Raises:
            DataError: the column is not there, or holds no text in this row.

        """
        value = self.value(column, advice)
        if not isinstance(value, str):
            raise self.fail(
                f"column {column!r} holds {value!r:.80} ({type(value).__name__}), expected text",
                advice,
            )
        return value

    def identifier(self, column: str, advice: str) -> str:
        """Return one cell that names the problem: text or a whole number.

        Raises:
            DataError: the column is not there, or holds something else.

        """
        value = self.value(column, advice)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self.fail(
                f"column {column!r} holds {value!r:.80} ({type(value).__name__}), expected a name "
                "or a whole number",
                advice,
            )
        return str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows and where they are from."""

    name: str
    """File or hub name, for messages."""
    rows: Sequence[Mapping[str, Any]]

    def each(self, make: Callable[[SourceRow], MadeT | None]) -> list[MadeT]:
        """Return what `make` makes of each row. Rows in which a cell is empty are left out and
        counted in a warning; so are those of which it makes None, without one.

        Raises:
            DataError: a row holds what it may not, or a cell is empty in every row.

        """
        made, empty = [], []
        for index, cells in enumerate(self.rows):
            try:
                made.append(make(SourceRow(source=self.name, index=index, cells=cells)))
            except EmptyCellError as error:
                empty.append(error)
        if empty and not made:
            raise empty[0]
        if empty:
            logger.warning(
                "%s: %d of %d rows left out, in which something is missing. The first: %s",
                self.name, len(empty), len(self.rows), empty[0],
            )  # fmt: skip
        return [one for one in made if one is not None]


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
        rows = [row for _, row in RowStream.open(place)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    nothing = dict.fromkeys(name for row in rows for name in row)
    return _filled(Source(name=path, rows=[nothing | row for row in rows]))


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
    rows = list(hub.table(dataset, subset, split, revision=revision, instead=_file(instead)))
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


def read_file_or_hub(
    source: str, split: str, *, key: str, subset: str | None = None, chosen: bool = False
) -> Source:
    """Read a local file where `source` is one or looks like one, else a hub dataset.

    Args:
        source: path, hub name, or `hf://datasets/owner/name[/file][@revision]`.
        split: name of the split, where it is a hub name.
        key: key of the recipe that holds `source`, for messages.
        subset: configuration, where it is a hub name.
        chosen: the user named the split: a file has none.

    Raises:
        ConfigError: a subset or split of a file.
        DataError: as in `read_file` and `read_hub`.

    """
    name = hub.parse(source) if source.startswith("hf:") else None
    if name is not None and not name.file:
        return read_hub(name.repo, subset, split, instead=key, revision=name.revision)
    if name is None and not hub.looks_like_path(source) and not Path(source).exists():
        return read_hub(source, subset, split, instead=key)
    if subset is not None or chosen:
        raise ConfigError(
            f"task.{key}={source} is a file, which has no configurations and splits: leave out "
            "those keys of the task, or give the name of a hub dataset"
        )
    return read_file(source if name is None else str(hub.local(source)))


def _filled(source: Source) -> Source:
    if not source.rows:
        raise DataError(f"{source.name} has no rows, expected one problem a row")
    return source


def _file(key: str) -> str:
    return f"a local JSONL or parquet file as task.{key}"
