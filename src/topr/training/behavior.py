"""The behaviour log-probabilities: as the sampler recorded them, or recomputed and cached.

And the gap between the two, which shows a generator in another numeric precision, a tokenizer
that differs, or sampling parameters that were not recorded, before they shut every negative off.
"""

import logging
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import nn

from topr.errors import DataError
from topr.store import atomic_path
from topr.training.batches import CPU_TOKENS, GPU_TOKENS, Row
from topr.training.cache_key import cache_key
from topr.training.fitting import Layout, forward_of
from topr.training.logprobs import Forward
from topr.training.memory import halved, ran_out
from topr.training.processes import ALONE, Processes

logger = logging.getLogger(__name__)

WINDOW = 4096
"""Rows that are sorted into forward passes together."""
LOOKED_AT = (64, 256)
"""Rows that are scored only to be looked at: a twentieth of those that are trained on, within these
bounds. On a CPU scoring hundreds of them takes minutes."""
LARGE_GAP = 0.1
"""Largest difference of a completion's summed log-probability that passes without a warning: a
weight exp(-0.1) is off by a tenth already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Writers:
    """The models that wrote the rows, told apart by the rows' `revision`."""

    own: str | None
    """Revision of the model that is trained: its rows are scored with that model."""
    find: Callable[[str | None], nn.Module | None]
    """Loads the model of another revision, or (None) of rows that name none; None where it is not
    to be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
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
        return {
            "behavior_gap/token_mean": self.token_mean,
            "behavior_gap/token_max": self.token_max,
            "behavior_gap/sequence_mean": self.sequence_mean,
            "behavior_gap/sequence_max": self.sequence_max,
        }

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


def recorded(rows: Dataset) -> list[np.ndarray[Any, Any]]:
    """Return log mu as the sampler recorded it, one float32 array per row.

    Raises:
        DataError: a row has none, or was sampled from another distribution than is scored.

    """
    missing = sum(value is None for value in rows["logprobs"])
    if missing:
        raise DataError(
            f"{missing} of {len(rows)} rows have no logprobs, so the sampler's can't be used; set "
            "behavior_logprobs=recompute to compute them with the model that wrote them (if that "
            "is not the one that is trained, name it: topr train --behavior-model DIR)"
        )
    truncated = sum(rows["truncated_sampling"])
    if truncated:
        raise DataError(
            f"{truncated} of {len(rows)} rows were drawn with top-k, top-p, a penalty or another "
            "parameter that makes the sampled distribution another one than softmax(logits / "
            "temperature): log rho would not be 0 for an unchanged model; set "
            "behavior_logprobs=recompute"
        )
    return [np.asarray(value, dtype=np.float32) for value in rows["logprobs"]]


@torch.no_grad()
def recompute(
    model: nn.Module,
    rows: Sequence[Row] | Dataset,
    *,
    forward: Forward | None = None,
    tokens: int | None = CPU_TOKENS,
    progress: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
    sharded: bool = False,
) -> list[np.ndarray[Any, Any]]:
    """Return log mu of each row's completion tokens under `model`, one float32 array per row.

    Where memory runs out, the tokens of a pass are halved.

    Args:
        model: on its device.
        rows: of `topr.training.data.ROW_SCHEMA`.
        forward: how the model is run; by default found by trying.
        tokens: of one forward pass at most; None: `GPU_TOKENS`.
        progress: told of rows done.
        processes: that share the work; each gets the whole result.
        sharded: whether the weights are, over the processes.

    """
    forward = forward or forward_of(model, rows)
    # The same parts for all, whatever one of them halves its own passes to.
    tokens = budget = min(filter(None, processes.all_of(tokens)), default=GPU_TOKENS)
    listed: list[Row] = list(rows)
    own: dict[int, np.ndarray[Any, Any]] = {}
    for start in range(0, len(listed), WINDOW):
        window = listed[start : start + WINDOW]
        parts = forward.split(window, tokens)
        for first in range(0, len(parts), processes.count):
            # Where parts run out the last is done again: sharded weights need all processes.
            part = parts[min(first + processes.rank, len(parts) - 1)]
            chosen = [window[i] for i in part]
            while True:
                try:
                    values = _logprobs(model, forward, chosen, budget)
                    break
                except RuntimeError as error:
                    if not ran_out(error):
                        raise
                    budget = halved(forward, chosen, budget, error, sharded=sharded)
            own |= zip((start + i for i in part), values, strict=True)
            if progress is not None:
                progress(sum(map(len, parts[first : first + processes.count])))
    found = ChainMap(*processes.all_of(own))
    return [found[i] for i in range(len(listed))]


def _logprobs(
    model: nn.Module, forward: Forward, rows: Sequence[Row], tokens: int
) -> list[np.ndarray[Any, Any]]:
    """Return log pi of each row's completion tokens, from passes of at most `tokens`."""
    found: dict[int, np.ndarray[Any, Any]] = {}
    device = next(model.parameters()).device
    for part in forward.split(rows, tokens):
        batch = forward.batch([rows[i] for i in part]).to(device)
        values = forward.token_logprobs(model, batch).float().cpu()
        split = values.split_with_sizes(batch.lengths)
        found |= zip(part, (one.numpy().copy() for one in split), strict=True)
    return [found[i] for i in range(len(rows))]


def recompute_cached(
    model: nn.Module,
    rows: Dataset,
    directory: Path,
    *,
    forward: Forward | None = None,
    tokens: int | None = CPU_TOKENS,
    numerics: str = "no",
    progress: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
    sharded: bool = False,
) -> list[np.ndarray[Any, Any]]:
    """Return `recompute`'s result from the cache in `directory`, computing it where needed."""
    forward = forward or forward_of(model, rows)
    key = cache_key(model, rows, forward, numerics)
    path = directory / f"behavior-logprobs-{key}.parquet"
    cached = processes.from_first(lambda: _read(path))
    if cached is not None:
        return cached
    logger.info("recomputing the behaviour log-probabilities of %d rows", len(rows))
    result = recompute(
        model, rows, forward=forward, tokens=tokens, progress=progress, processes=processes,
        sharded=sharded,
    )  # fmt: skip
    if processes.first:
        table = pa.table({"logprobs": pa.array(result, pa.list_(pa.float32()))})
        with atomic_path(path, overwrite=False) as temporary:
            pq.write_table(table, temporary)
    return result


def _read(path: Path) -> list[np.ndarray[Any, Any]] | None:
    if not path.is_file():
        return None
    column = pq.read_table(path).column("logprobs").to_pylist()
    return [np.asarray(value, dtype=np.float32) for value in column]


@dataclass(frozen=True, kw_only=True, slots=True)
class Behavior:
    """The model that is trained, the models that wrote its rows, and how they are run."""

    model: nn.Module
    forward: Forward
    given: nn.Module | Writers | None
    """Who wrote the rows: one model, several, or (None) `model` itself."""
    layout: Layout
    directory: Path
    """Of the cache."""
    tokens: int | None
    """Of one forward pass at most."""
    numerics: str
    """Name of the autocast that is on around calls."""
    processes: Processes = ALONE
    """That share the work."""
    sharded: bool = False
    """Whether weights are, over the processes."""

    def recomputed(
        self, rows: Dataset, progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """Return log mu of each row under the model that wrote it, one float32 array per row."""
        result: list[np.ndarray[Any, Any]] = [np.empty(0, np.float32)] * len(rows)
        for revision, indices in _by_revision(rows).items():
            writer = None  # let go of the last one before the next is loaded
            writer = self._writer(revision)
            if writer is None:
                self._warn_of_unknown(revision, len(indices), len(rows))
            own = rows.select(indices)
            found = recompute_cached(
                self.model if writer is None else writer,
                own,
                self.directory,
                forward=self._forward(writer, own),
                tokens=self.tokens,
                numerics=self.numerics,
                progress=progress,
                processes=self.processes,
                sharded=self.sharded,
            )
            for i, one in zip(indices, found, strict=True):
                result[i] = one
        return result

    def gap(self, rows: Dataset) -> Gap | None:
        """Return how far recorded log-probabilities lie from ours, on rows of one writer.

        Of the trained model's own where there are any; None where no row can be compared.
        """
        groups = _by_revision(rows)
        for revision in sorted(groups, key=lambda each: not self._is_own(each)):
            sample = gap_sample(rows.select(groups[revision]))
            if sample is not None:
                writer = self._writer(revision)
                ours = recompute(
                    self.model if writer is None else writer,
                    sample,
                    forward=self._forward(writer, sample),
                    tokens=self.tokens,
                    processes=self.processes,
                    sharded=self.sharded,
                )
                return measure_gap(ours, recorded(sample))
        return None

    def _writer(self, revision: str | None) -> nn.Module | None:
        """Return the model that wrote the rows of a revision; None: score with `model`."""
        if not isinstance(self.given, Writers):
            return self.given
        return None if self._is_own(revision) else self.given.find(revision)

    def _is_own(self, revision: str | None) -> bool:
        """Whether the trained model is known to have written the rows of a revision."""
        given = self.given
        return not isinstance(given, Writers) or (revision is not None and revision == given.own)

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


def _by_revision(rows: Dataset) -> dict[str | None, list[int]]:
    groups: dict[str | None, list[int]] = {}
    for i, revision in enumerate(rows["revision"]):
        groups.setdefault(revision, []).append(i)
    return groups


def measure_gap(
    ours: Sequence[np.ndarray[Any, Any]], theirs: Sequence[np.ndarray[Any, Any]]
) -> Gap:
    """Return how far two sources of log mu lie apart on the same rows."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    tokens = np.abs(np.concatenate(differences))
    sums = np.abs([difference.sum(dtype=np.float64) for difference in differences])
    return Gap(
        rows=len(differences),
        token_mean=float(tokens.mean()),
        token_max=float(tokens.max()),
        sequence_mean=float(sums.mean()),
        sequence_max=float(sums.max()),
    )


def gap_sample(rows: Dataset) -> Dataset | None:
    """Return evenly spread rows whose recorded log-probabilities can be compared, or None."""
    usable = [
        i
        for i, (value, cut) in enumerate(
            zip(rows["logprobs"], rows["truncated_sampling"], strict=True)
        )
        if value is not None and not cut
    ]
    if not usable:
        return None
    most = looked_at(len(usable))
    step = max(1, len(usable) // most)
    return rows.select(usable[::step][:most])


def looked_at(rows: int) -> int:
    """Return how many of so many trained rows are scored for people to look at, at most."""
    least, most = LOOKED_AT
    return min(most, max(least, rows // 20))
