"""Batches for the tests of objectives."""

import torch

from topr.objectives import OBJECTIVES, ScoredBatch


def batch_of(log_ratio, advantage, mask=None, group=None, log_mu=None) -> ScoredBatch:
    """A batch of one group, all tokens real, log mu -1 each, where nothing else is said."""
    rows = len(log_ratio)
    return ScoredBatch(
        log_ratio=torch.as_tensor(log_ratio),
        advantage=torch.as_tensor(advantage, dtype=torch.float32),
        mask=torch.ones(log_ratio.shape, dtype=torch.bool) if mask is None else mask,
        group=torch.zeros(rows, dtype=torch.long) if group is None else group,
        behavior_logprobs=torch.full(log_ratio.shape, -1.0) if log_mu is None else log_mu,
    )


def weigh(name, *args, **kwargs) -> torch.Tensor:
    """The weights of a built-in objective on `batch_of(...)`."""
    return OBJECTIVES[name].weights(batch_of(*args, **kwargs))
