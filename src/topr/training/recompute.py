"""Log-probabilities of stored completions under a model: computed a window of rows at a time, and
kept in a cache file. Which model wrote which rows is in `topr.training.behavior`.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from topr.store import atomic_path
from topr.training.batches import CPU_TOKENS, GPU_TOKENS, Row
from topr.training.distributed import SINGLE_PROCESS, DistributedContext
from topr.training.fitting import forward_of
from topr.training.logprobs import Forward
from topr.training.memory import halved, ran_out

LogProbs = NDArray[np.float32]
"""Of the completion tokens of one row."""
WINDOW = 4096
"""Rows that are sorted into forward passes together: all that are in memory."""


def recompute(
    model: nn.Module,
    rows: Sequence[Row] | Dataset,
    *,
    forward: Forward | None = None,
    tokens: int | None = CPU_TOKENS,
    progress: Callable[[int], None] | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
    sharded: bool = False,
) -> list[LogProbs]:
    """Return log mu of each row's completion tokens under `model`, one float32 array per row.

    Where memory runs out, the tokens of a pass are halved.

    Args:
        model: on its device.
        rows: of `topr.training.data.ROW_SCHEMA`.
        forward: how the model is run; by default found by trying.
        tokens: of one forward pass at most; None: `GPU_TOKENS`.
        progress: receives the number of rows done.
        distributed: the processes that share the work; each gets the whole result.
        sharded: whether the weights are, over the processes.

    """
    windows = recompute_windows(
        model, rows, forward=forward or forward_of(model, rows), tokens=tokens, progress=progress,
        distributed=distributed, sharded=sharded,
    )  # fmt: skip
    return [values for window in windows for values in window]


@torch.no_grad()
def recompute_windows(
    model: nn.Module,
    rows: Sequence[Row] | Dataset,
    *,
    forward: Forward,
    tokens: int | None,
    progress: Callable[[int], None] | None,
    distributed: DistributedContext,
    sharded: bool,
) -> Iterator[list[LogProbs]]:
    """Yield `recompute`'s result for `WINDOW` rows at a time: all that is in memory together."""
    # The same parts for all, whatever one of them halves its own passes to.
    tokens = budget = min(filter(None, distributed.gather(tokens)), default=GPU_TOKENS)
    for start in range(0, len(rows), WINDOW):
        window = _slice(rows, start, min(start + WINDOW, len(rows)))
        own: dict[int, LogProbs] = {}
        parts = forward.split(window, tokens)
        for first in range(0, len(parts), distributed.world_size):
            # Where parts run out the last is done again: sharded weights need all processes.
            part = parts[min(first + distributed.rank, len(parts) - 1)]
            chosen = [window[i] for i in part]
            while True:
                try:
                    values = _logprobs(model, forward, chosen, budget)
                    break
                except RuntimeError as error:
                    if not ran_out(error):
                        raise
                    budget = halved(forward, chosen, budget, error, sharded=sharded)
            own |= zip(part, values, strict=True)
            if progress is not None:
                progress(sum(map(len, parts[first : first + distributed.world_size])))
        found = ChainMap(*distributed.gather(own))
        yield [found[i] for i in range(len(window))]


def _slice(rows: Sequence[Row] | Dataset, start: int, stop: int) -> Sequence[Row]:
    if not isinstance(rows, Dataset):
        return rows[start:stop]
    found: list[Row] = rows.__getitems__(list(range(start, stop)))
    return found


def _logprobs(
    model: nn.Module, forward: Forward, rows: Sequence[Row], tokens: int
) -> list[LogProbs]:
    """Return log pi of each row's completion tokens, from passes of at most `tokens`."""
    found: dict[int, LogProbs] = {}
    device = next(model.parameters()).device
    for part in forward.split(rows, tokens):
        batch = forward.batch([rows[i] for i in part]).to(device)
        values = forward.token_logprobs(model, batch).float().cpu()
        split = values.split_with_sizes(batch.lengths)
        found |= zip(part, (one.numpy().copy() for one in split), strict=True)
    return [found[i] for i in range(len(rows))]


def write_cache(path: Path, windows: Iterable[list[LogProbs]], rank: int) -> None:
    """Write log mu to a cache file, a window at a time.

    `rank` is that of the process: one of each machine writes, and some share their disk.
    """
    schema = pa.schema([("logprobs", pa.list_(pa.float32()))])
    own = path.with_name(f".{rank}-{path.name}")
    with (
        atomic_path(own, overwrite=True) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        for window in windows:
            writer.write_table(pa.table([pa.array(window, schema.types[0])], schema=schema))
    own.replace(path)


def read_cache(path: Path) -> Iterator[LogProbs]:
    """Yield the log mu of each row of a cache file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=WINDOW):
            yield from batch.column(0).to_numpy(zero_copy_only=False)
