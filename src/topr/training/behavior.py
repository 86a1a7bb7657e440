"""The behaviour log-probabilities: as the sampler recorded them, or recomputed and cached.

And the gap between the two, which shows a generator in another numeric precision, a tokenizer
that differs, or sampling parameters that were not recorded, before they shut every negative off.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import nn

from topr.errors import DataError
from topr.store import atomic_path
from topr.training.cache_key import cache_key
from topr.training.distributed import SINGLE_PROCESS, DistributedContext
from topr.training.fitting import Layout, forward_of
from topr.training.logprobs import Forward
from topr.training.mapped_rows import (
    column_of,
    map_rows,
    numbers_of,
    write_once_per_node,
    write_rows,
)
from topr.training.recompute import LogProbs, recompute

logger = logging.getLogger(__name__)

COLUMN = "behavior_logprobs"
"""The column of log mu, once it is known."""
LOGPROBS = pa.schema([(COLUMN, pa.list_(pa.float32()))])

LOOKED_AT = (64, 256)
"""Rows that are scored only to be looked at: a twentieth of those that are trained on, within these
bounds. On a CPU scoring hundreds of them takes minutes."""
LARGE_GAP = 0.1
"""Largest difference of a completion's summed log-probability that passes without a warning: a
weight exp(-0.1) is off by a tenth already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BehaviorPolicies:
    """The models that wrote the rows, told apart by the rows' `revision`."""

    own: str | None
    """Revision of the model that is trained: its rows are scored with that model."""
    find: Callable[[str | None], nn.Module | None]
    """Loads the model of another revision, or (None) of rows that name none; None where it is not
    to be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogprobMismatch:
    """How far the recorded log-probabilities lie from the trainer's own, in nats."""

    rows: int
    token_mean: float
    """Mean absolute difference per token."""
    token_max: float
    sequence_mean: float
    """Mean absolute difference of a completion's sum."""
    sequence_max: float

    def as_log(self) -> dict[str, float]:
        """Return the numbers under the keys of the log."""
        names = (each.name for each in fields(self) if each.name != "rows")
        return {f"behavior_gap/{name}": getattr(self, name) for name in names}

    def say(self, *, trained_on: bool) -> None:
        """Log the numbers; warn of a large gap where the recorded ones are trained on."""
        logger.info(
            "recorded and recomputed log-probabilities differ by %.2g per token on average (%.2g "
            "at most) and by %.2g per completion at most, over %d completions",
            self.token_mean, self.token_max, self.sequence_max, self.rows,
        )  # fmt: skip
        if trained_on and self.sequence_max > LARGE_GAP:
            logger.warning(
                "the sampler's log-probabilities are not those of this model in the trainer's "
                "numerics: a completion's sum is off by up to %.2g. If the model that is trained "
                "wrote these completions, set behavior_logprobs=recompute; if another did, this "
                "is its distance from the model",
                self.sequence_max,
            )


def recorded(rows: Dataset) -> pa.ChunkedArray:
    """Return log mu as the sampler recorded it, a list of float32 for each row.

    Raises:
        DataError: a row has none, or was sampled from another distribution than is scored.

    """
    logprobs = column_of(rows, "logprobs")
    if logprobs.null_count:
        raise DataError(
            f"{logprobs.null_count} of {len(rows)} rows have no logprobs, so the sampler's can't "
            "be used; set behavior_logprobs=recompute to compute them with the model that wrote "
            "them (if that is not the one that is trained, name it: topr train --behavior-model "
            "DIR)"
        )
    truncated = int(numbers_of(rows, "truncated_sampling").sum())
    if truncated:
        raise DataError(
            f"{truncated} of {len(rows)} rows were sampled with top-k, top-p, a penalty or another "
            "parameter that makes the sampled distribution another one than softmax(logits / "
            "temperature): log rho would not be 0 for an unchanged model; set "
            "behavior_logprobs=recompute"
        )
    return logprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Behavior:
    """The model that is trained, the models that wrote its rows, and how they are run."""

    model: nn.Module
    forward: Forward
    given: nn.Module | BehaviorPolicies | None
    """Who wrote the rows: one model, several, or (None) `model` itself."""
    layout: Layout
    directory: Path
    """Of the cache."""
    tokens: int | None
    """Of one forward pass at most."""
    numerics: str
    """Name of the autocast that is on around calls."""
    distributed: DistributedContext = SINGLE_PROCESS
    """That share the work."""
    sharded: bool = False
    """Whether weights are, over the processes."""

    def logprobs(
        self, rows: Dataset, source: str, progress: Callable[[int], None] | None = None
    ) -> tuple[pa.ChunkedArray, LogprobMismatch | None]:
        """Return log mu of each row, and how far its two sources lie apart, which is logged.

        Args:
            rows: of the training.
            source: `sampler` (as recorded) or `recompute`.
            progress: receives the number of completions recomputed.

        """
        taken = recorded(rows) if source == "sampler" else self.recomputed(rows, progress)
        gap = self.gap(rows)
        if gap is not None:
            gap.say(trained_on=source == "sampler")
        return taken, gap

    def recomputed(
        self, rows: Dataset, progress: Callable[[int], None] | None = None
    ) -> pa.ChunkedArray:
        """Return log mu of each row under the model that wrote it, a list of float32 each."""
        revisions, writer_N = _revisions(rows)
        caches: list[Path] = []
        for number, revision in enumerate(revisions):
            indices = np.flatnonzero(writer_N == number)
            writer = None  # free the last one before the next is loaded
            writer = self._writer(revision)
            if writer is None:
                self._warn_of_unknown(revision, len(indices), len(rows))
            caches.append(self._cached(writer, rows.select(indices), progress))

        def write(path: Path) -> None:
            """Put the rows of all writers in order.

            With writer_N = [0, 1, 0] the first cache has rows 0 and 2, and the second has row 1.
            """
            readers = [iter(map_rows(cache)[COLUMN]) for cache in caches]
            found = (np.asarray(next(readers[k]).values) for k in writer_N)
            write_rows(path, LOGPROBS, ({COLUMN: values} for values in found))

        table, _ = write_once_per_node(self.directory, COLUMN, self.distributed, write)
        return table[COLUMN]

    def _cached(
        self, writer: nn.Module | None, rows: Dataset, progress: Callable[[int], None] | None
    ) -> Path:
        """Return the cache file of the rows of one writer, computing it where needed."""
        model = self.model if writer is None else writer
        forward = self._forward(writer, rows)
        key = cache_key(model, rows, forward, self.numerics)
        path = self.directory / f"behavior-logprobs-{key}.arrow"
        if all(self.distributed.gather(path.is_file())):
            return path
        logger.info("recomputing the behaviour log-probabilities of %d rows", len(rows))
        found = recompute(
            model, rows, forward=forward, tokens=self.tokens, progress=progress,
            distributed=self.distributed, sharded=self.sharded,
        )  # fmt: skip
        if self.distributed.local_rank == 0:
            own = path.with_name(f".{self.distributed.rank}-{path.name}")  # nodes may share a disk
            with atomic_path(own, overwrite=True) as temporary:
                write_rows(temporary, LOGPROBS, ({COLUMN: values} for values in found))
            own.replace(path)
        else:
            deque(found, maxlen=0)
        self.distributed.barrier()
        return path

    def gap(self, rows: Dataset) -> LogprobMismatch | None:
        """Return how far recorded log-probabilities lie from ours, on rows of one writer.

        Of the trained model's own where there are any; None where no row can be compared.
        """
        revisions, writer_N = _revisions(rows)
        recorded_N = ~numbers_of(rows, "truncated_sampling")
        recorded_N &= np.asarray(column_of(rows, "logprobs").is_valid())
        for number in sorted(range(len(revisions)), key=lambda k: not self._is_own(revisions[k])):
            usable = np.flatnonzero((writer_N == number) & recorded_N)
            if len(usable):
                sample = rows.select(_spread(usable))
                writer = self._writer(revisions[number])
                ours = recompute(
                    self.model if writer is None else writer,
                    sample,
                    forward=self._forward(writer, sample),
                    tokens=self.tokens,
                    distributed=self.distributed,
                    sharded=self.sharded,
                )
                return measure_gap(ours, [np.asarray(one.values) for one in recorded(sample)])
        return None

    def _writer(self, revision: str | None) -> nn.Module | None:
        """Return the model that wrote the rows of a revision; None: score with `model`."""
        if not isinstance(self.given, BehaviorPolicies):
            return self.given
        return None if self._is_own(revision) else self.given.find(revision)

    def _is_own(self, revision: str | None) -> bool:
        """Whether the trained model is known to have written the rows of a revision."""
        given = self.given
        return not isinstance(given, BehaviorPolicies) or (
            revision is not None and revision == given.own
        )

    def _warn_of_unknown(self, revision: str | None, count: int, total: int) -> None:
        if self._is_own(revision):
            return
        wrote = (
            "do not say which model wrote them"
            if revision is None
            else f"were written by another model (revision {revision}) than the one that is trained"
        )
        logger.warning(
            "%d of %d completions %s, and no behaviour model is given: log mu is recomputed with "
            "the model that is trained, so their ratio starts at 1 whatever wrote them. Where "
            "another model did, name it (topr train --behavior-model DIR)",
            count, total, wrote,
        )  # fmt: skip

    def _forward(self, writer: nn.Module | None, rows: Dataset) -> Forward:
        return self.forward if writer is None else forward_of(writer, rows, self.layout)


def _revisions(rows: Dataset) -> tuple[list[str | None], np.ndarray[Any, Any]]:
    """Return the revisions that the rows name, as they come up, and the number of each row's."""
    column = column_of(rows, "revision").dictionary_encode(null_encoding="encode").combine_chunks()
    return column.dictionary.to_pylist(), np.asarray(column.indices)


def rows_by_revision(rows: Dataset) -> dict[str, int]:
    """Return how many rows each model wrote, of those that say so."""
    revisions, writer_N = _revisions(rows)
    counts = np.bincount(writer_N, minlength=len(revisions)).tolist()
    return {name: count for name, count in zip(revisions, counts, strict=True) if name}


def measure_gap(ours: Iterable[LogProbs], theirs: Iterable[LogProbs]) -> LogprobMismatch:
    """Return how far two sources of log mu lie apart on the same rows."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    tokens = np.abs(np.concatenate(differences))
    sums = np.abs([difference.sum(dtype=np.float64) for difference in differences])
    return LogprobMismatch(
        rows=len(differences),
        token_mean=float(tokens.mean()),
        token_max=float(tokens.max()),
        sequence_mean=float(sums.mean()),
        sequence_max=float(sums.max()),
    )


def _spread(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return `looked_at` many of the numbers of rows, evenly spread."""
    most = looked_at(len(rows))
    return rows[:: max(1, len(rows) // most)][:most]


def looked_at(rows: int) -> int:
    """Return how many of so many trained rows are scored for people to look at, at most."""
    least, most = LOOKED_AT
    return min(most, max(least, rows // 20))
