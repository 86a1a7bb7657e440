"""Advantages relative to a prompt's other completions: AsymRE, mirror descent."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import BaselineRole, Finite, Normalization, NotNegative, Uses, log_rho

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


def group_normalized(advantage: Tensor, group: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return (A - mean) / (std + epsilon) over each group, [B]; GRPO, arXiv 2402.03300, eq. 3.

    A baseline c cancels out.
    """
    centered = advantage.float() - group_mean(advantage, group)
    deviation = group_mean(centered.square(), group).sqrt()
    return centered / (deviation + epsilon)


@dataclass(frozen=True, kw_only=True, slots=True)
class AsymRE:
    """Asymmetric REINFORCE (Arnal et al., arXiv 2506.20520): no ratio, A = R - V with the
    baseline V a little below (delta < 0) the mean reward of the behaviour policy on the prompt.
    """

    delta: Finite = -0.1

    needs_group: ClassVar[bool] = True
    uses: ClassVar[Uses] = Uses(ratio=False, baseline=BaselineRole.CANCELS)
    normalization: ClassVar[Normalization] = "length"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return R - (mean of R over the group) - delta. See `Objective.weights`."""
        relative = advantage.float() - group_mean(advantage, group) - self.delta
        return torch.where(mask, relative[:, None], 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorDescent:
    """Online policy mirror descent, as Kimi k1.5 trains (arXiv 2501.12599, eq. 3), with mu as the
    reference: the gradient of (R - mean R) log pi - tau/2 (log rho)^2.

    Instead of a taper, a restoring force: a completion's weight fades as log rho comes to
    (R - mean R) / tau, for positives and negatives alike.
    """

    tau: NotNegative = 0.1

    needs_group: ClassVar[bool] = True
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return R - (mean of R over the group) - tau log rho. See `Objective.weights`."""
        relative = advantage.float() - group_mean(advantage, group)
        weight = relative[:, None] - self.tau * log_rho(log_ratio, mask, "sequence")
        return torch.where(mask, weight, 0.0)
