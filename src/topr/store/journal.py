"""Rollouts noted one by one while their shard is sampled, so that a killed process loses none.

A hidden file of JSON lines next to the shards, removed once its shard is there. It belongs to one
writer at a time. Which rollouts are still to be sampled is not decided here.
"""

import errno
import json
import os
from pathlib import Path
from typing import Self

import pyarrow as pa

from topr.errors import RunDirectoryError
from topr.records import Rollout
from topr.store.lock import locks
from topr.store.schema import ROLLOUT_SCHEMA, rollouts_to_table, table_to_rollouts


def journal_path(directory: Path, index: int) -> Path:
    """Return where the rollouts of a shard that is not there yet are noted."""
    return directory / f".part-{index:05d}.partial.jsonl"


class Journal:
    """The rollouts of one shard, as they come.

    with Journal(path) as journal:
        known = journal.rollouts
        journal.add(rollout)
    """

    def __init__(self, path: Path) -> None:
        """Note in a file, which is made when the journal is entered."""
        self.path = path
        self.rollouts: list[Rollout] = []
        """What was noted earlier; `add` leaves it alone."""

    def __enter__(self) -> Self:
        """Read what an earlier writer noted, without a last line that it did not finish.

        Raises:
            RunDirectoryError: another process writes the file, or it holds something else.

        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        if not locks(self._file.fileno(), self.path.parent):
            self._file.close()
            raise RunDirectoryError(
                f"another process draws into {self.path.parent}: wait for it, or stop it first"
            )
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            self.rollouts = _read(self.path, content[:whole])
        except RunDirectoryError:
            self._file.close()
            raise
        self._file.truncate(whole)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; it stays."""
        self._file.close()

    def add(self, rollout: Rollout) -> None:
        """Note a rollout. It is there when this returns, also if the process is killed then.

        Not synced: after a power cut the last ones may be missing, and are sampled again.
        """
        (row,) = rollouts_to_table([rollout]).to_pylist()
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            error.filename = str(self.path)
            raise
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def _read(path: Path, content: bytes) -> list[Rollout]:
    try:
        rows = [json.loads(line) for line in content.splitlines()]
        return list(table_to_rollouts(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)))
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RunDirectoryError(
            f"{path} cannot be read as rollouts ({error}): expected what an interrupted draw noted "
            "there. Remove it, and they are drawn again"
        ) from error
