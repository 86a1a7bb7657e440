"""Log-probabilities of stored completions under a model, computed a window of rows at a time.

Which model wrote which rows, and where they are kept, is in `topr.training.behavior`.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import nn

from topr.training.batches import CPU_TOKENS, GPU_TOKENS, Row
from topr.training.distributed import SINGLE_PROCESS, DistributedContext
from topr.training.logprobs import Forward
from topr.training.memory import halved, ran_out

LogProbs = NDArray[np.float32]
"""Of the completion tokens of one row."""
WINDOW = 4096
"""Rows that are sorted into forward passes together: all that are in memory."""


@torch.no_grad()
def recompute(
    model: nn.Module,
    rows: Dataset,
    *,
    forward: Forward,
    tokens: int | None = CPU_TOKENS,
    progress: Callable[[int], None] | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
    sharded: bool = False,
) -> Iterator[LogProbs]:
    """Yield log mu of each row's completion tokens under `model`, one float32 array per row.

    `WINDOW` rows are in memory together. Where memory runs out, the tokens of a pass are halved.

    Args:
        model: on its device.
        rows: of `topr.training.data.ROW_SCHEMA`.
        forward: how the model is run (`topr.training.fitting.forward_of` finds a way).
        tokens: of one forward pass at most; None: `GPU_TOKENS`.
        progress: receives the number of rows done.
        distributed: the processes that share the work; each gets the whole result.
        sharded: whether the weights are, over the processes.

    """
    # The same parts for all, whatever one of them halves its own passes to.
    tokens = budget = min(filter(None, distributed.gather(tokens)), default=GPU_TOKENS)
    for start in range(0, len(rows), WINDOW):
        numbers = list(range(start, min(start + WINDOW, len(rows))))
        window: list[Row] = rows.__getitems__(numbers)
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
        yield from (found[i] for i in range(len(window)))


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
