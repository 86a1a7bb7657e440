"""The graded rows that a training reads, as often as they are needed. Not here: what is made of
them (`topr.training.data`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from topr.errors import DataError
from topr.interop import RowStream, table_of
from topr.store.cells import plain


class GradedRows:
    """The rows of several sources, in order. A pass over them has one part in memory."""

    def __init__(self, sources: Sequence[Path]) -> None:
        """Read directories of graded rollouts, or files with prompt, completion and reward.

        Raises:
            DataError: one of them is not there.

        """
        self._sources = {source: RowStream.open(source, arrays=True) for source in sources}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source, rows in self._sources.items():
            for number, (_, row) in enumerate(rows):
                if number == 0:
                    _require_text_or_ids(source, row)
                yield row

    def take(self, numbers: Sequence[int]) -> pa.Table:
        """Return the rows of these numbers, in this order."""
        wanted, last = set(numbers), max(numbers)
        found: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(self):
            if number in wanted:
                found[number] = row
            if number == last:
                break
        rows = [{name: plain(cell) for name, cell in found[n].items()} for n in numbers]
        return table_of(rows)


def _require_text_or_ids(source: Path, row: dict[str, Any]) -> None:
    for name in ("prompt", "completion"):
        if not {name, f"{name}_ids"} & row.keys():
            raise DataError(
                f"{source} has no column {name!r}: found {', '.join(row)}. Rename one, or make "
                "rollouts of the file with `topr import`, which takes other names"
            )
