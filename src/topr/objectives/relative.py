"""Advantages relative to a prompt's other completions."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import BaselineRole, Finite, GroupNeed, Normalization, ScoredBatch, Uses

CENTRED = Uses(baseline=BaselineRole.CANCELS)
"""What objectives use that subtract the group's mean reward."""


def group_mean(value: Tensor, group: Tensor) -> Tensor:
    """Return, for each sequence, the mean of `value` [B] over its group [B]; [B] float32."""
    _, member = torch.unique(group, return_inverse=True)
    total = torch.zeros(int(member.max()) + 1, device=value.device)
    count = total.clone()
    total.index_add_(0, member, value.float())
    count.index_add_(0, member, torch.ones_like(value, dtype=torch.float32))
    return (total / count)[member]


def group_max(value: Tensor, group: Tensor) -> Tensor:
    """Return, for each sequence, the largest `value` [B] of its group [B]; [B] float32."""
    numbers, member = torch.unique(group, return_inverse=True)
    lowest = torch.full((len(numbers),), -torch.inf, device=value.device)
    return lowest.scatter_reduce(0, member, value.float(), "amax")[member]


def group_centred(batch: ScoredBatch) -> Tensor:
    """Return A - mean of A over each group, [B]. A baseline c cancels out."""
    return batch.over_groups(lambda advantage, group: advantage - group_mean(advantage, group))


def group_normalized(batch: ScoredBatch) -> Tensor:
    """Return (A - mean) / (std + 1e-4) over each group, [B]; GRPO, arXiv 2402.03300, eq. 3."""
    return batch.over_groups(_normalized)


def _normalized(advantage: Tensor, group: Tensor) -> Tensor:
    centred = advantage - group_mean(advantage, group)
    return centred / (group_mean(centred.square(), group).sqrt() + 1e-4)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaybeNormalized:
    """What objectives have in common that take A = R - c, or GRPO's advantages."""

    group_normalized: bool = False
    """Advantage minus the group's mean, over its standard deviation."""

    @property
    def needs_group(self) -> GroupNeed:
        """See `Objective.needs_group`."""
        return "rewards" if self.group_normalized else None

    @property
    def uses(self) -> Uses:
        """See `Objective.uses`."""
        return CENTRED if self.group_normalized else Uses()

    def advantages(self, batch: ScoredBatch) -> Tensor:
        """Return the advantage of each completion, [B] float32."""
        return group_normalized(batch) if self.group_normalized else batch.advantage.float()


@dataclass(frozen=True, kw_only=True, slots=True)
class AsymRE:
    """Asymmetric REINFORCE (Arnal et al., arXiv 2506.20520): no ratio, A = R - V with the
    baseline V a little below (delta < 0) the mean reward of the behaviour policy on the prompt.
    """

    delta: Finite = -0.1

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = Uses(ratio=False, baseline=BaselineRole.CANCELS)
    normalization: ClassVar[Normalization] = "length"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return R - (mean of R over the group) - delta. See `Objective.weights`."""
        return torch.where(batch.mask, group_centred(batch)[:, None] - self.delta, 0.0)
