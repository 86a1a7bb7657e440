"""The behaviour log-probabilities: as the sampler recorded them, or recomputed and cached.

And the gap between the two, which shows a generator in another numeric precision, a tokenizer
that differs, or sampling parameters that were not recorded, before they shut every negative off.
"""

import hashlib
import logging
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
from topr.training.batches import CPU_TOKENS, Row, split_by_tokens
from topr.training.logprobs import Forward, forward_of

logger = logging.getLogger(__name__)

WINDOW = 4096
"""Rows that are sorted into forward passes together."""
GAP_ROWS = 256
"""Rows on which the gap is measured when nothing has to be recomputed."""
LARGE_GAP = 0.1
"""Largest difference of a completion's summed log-probability that passes without a warning: a
weight exp(-0.1) is off by a tenth already."""


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


def recorded(rows: Dataset) -> list[np.ndarray[Any, Any]]:
    """Return log mu as the sampler recorded it, one float32 array per row.

    Raises:
        DataError: a row has none, or was sampled from a part of the vocabulary only.

    """
    missing = sum(value is None for value in rows["logprobs"])
    if missing:
        raise DataError(
            f"{missing} of {len(rows)} rows have no logprobs, so the sampler's can't be used; set "
            "behavior_logprobs=recompute to compute them with the behaviour model"
        )
    truncated = sum(rows["truncated_sampling"])
    if truncated:
        raise DataError(
            f"{truncated} of {len(rows)} rows were drawn with top-k, top-p or temperature 0: "
            "their logprobs are those of a distribution renormalised over a part of the "
            "vocabulary, and log rho would not be 0 for an unchanged model; set "
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
) -> list[np.ndarray[Any, Any]]:
    """Return log mu of each row's completion tokens under `model`, one float32 array per row.

    Args:
        model: on its device.
        rows: of `topr.training.data.ROW_SCHEMA`.
        forward: how the model is run; none given: found by trying.
        tokens: of one forward pass at most.
        progress: told of rows done.

    """
    forward = forward or forward_of(model)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    listed: list[Row] = list(rows)
    result: list[np.ndarray[Any, Any]] = [np.empty(0, np.float32)] * len(listed)
    for start in range(0, len(listed), WINDOW):
        window = listed[start : start + WINDOW]
        for part in split_by_tokens(window, tokens, share=forward.share):
            batch = forward.batch([window[i] for i in part]).to(device)
            values = forward.token_logprobs(model, batch).float().cpu()
            for i, one in zip(part, values.split_with_sizes(batch.lengths), strict=True):
                result[start + i] = one.numpy().copy()
            if progress is not None:
                progress(len(part))
    model.train(was_training)
    return result


def recompute_cached(
    model: nn.Module,
    rows: Dataset,
    directory: Path,
    *,
    forward: Forward | None = None,
    tokens: int | None = CPU_TOKENS,
    numerics: str = "no",
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray[Any, Any]]:
    """Return `recompute`'s result from the cache in `directory`, computing it where needed."""
    path = directory / f"behavior-logprobs-{_fingerprint(model, rows, numerics)}.parquet"
    if path.is_file():
        column = pq.read_table(path).column("logprobs").to_pylist()
        return [np.asarray(value, dtype=np.float32) for value in column]
    logger.info("recomputing the behaviour log-probabilities of %d rows", len(rows))
    result = recompute(model, rows, forward=forward, tokens=tokens, progress=progress)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=False) as temporary:
        pq.write_table(pa.table({"logprobs": pa.array(result, pa.list_(pa.float32()))}), temporary)
    return result


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
    step = max(1, len(usable) // GAP_ROWS)
    return rows.select(usable[::step][:GAP_ROWS])


def _fingerprint(model: nn.Module, rows: Dataset, numerics: str) -> str:
    """Hash what recomputed log-probabilities depend on: weights, precision, tokens."""
    digest = hashlib.sha256(numerics.encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name}{tuple(values.shape)}{values.sum()}{values.square().sum()}".encode())
    for row in rows:
        digest.update(np.asarray(row["prompt_ids"], np.int64).tobytes())
        digest.update(np.asarray(row["completion_ids"], np.int64).tobytes())
        digest.update(np.float32(row["temperature"]).tobytes())
    return digest.hexdigest()[:16]
