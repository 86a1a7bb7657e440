"""Objectives that clip a ratio around 1: PPO and GRPO, GSPO, CISPO, written as weights.

For min(rho A, clip(rho) A) the weight of grad log pi is rho A where the clip is inactive and 0
where it is active: where A >= 0 and rho > 1 + high, or A < 0 and rho < 1 - low.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import LOG_CAP, Level, Normalization, NotNegative, Uses, log_rho
from topr.objectives.relative import CENTRED, group_normalized


@dataclass(frozen=True, kw_only=True, slots=True)
class PPO:
    """PPO's clipped surrogate (Schulman et al., arXiv 1707.06347, eq. 7); with
    `group_normalized`, GRPO (Shao et al., arXiv 2402.03300) without its KL term.
    """

    low: NotNegative = 0.2
    """Clipped below 1 - low."""
    high: NotNegative = 0.2
    """Clipped above 1 + high."""
    level: Level = "token"
    group_normalized: bool = False
    """Advantage minus the group's mean, over its standard deviation."""

    normalization: ClassVar[Normalization] = "length"

    @property
    def needs_group(self) -> bool:
        """See `Objective.needs_group`."""
        return self.group_normalized

    @property
    def uses(self) -> Uses:
        """See `Objective.uses`."""
        return CENTRED if self.group_normalized else Uses()

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return rho A where the clip is inactive, else 0. See `Objective.weights`."""
        if self.group_normalized:
            advantage = group_normalized(advantage, group)
        rho = log_rho(log_ratio, mask, self.level)
        return _unclipped(rho, advantage[:, None].float(), self.low, self.high, mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class GSPO:
    """Group sequence policy optimization (Zheng et al., arXiv 2507.18071): the geometric mean of
    the ratio, clipped close to 1, with group-normalised advantages. The 1/|y| of its gradient is
    the loss normalisation `length`.
    """

    low: NotNegative = 3e-4
    high: NotNegative = 4e-4

    needs_group: ClassVar[bool] = True
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "length"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return s A where the clip is inactive, else 0. See `Objective.weights`."""
        advantage = group_normalized(advantage, group)
        rho = log_rho(log_ratio, mask, "geometric")
        return _unclipped(rho, advantage[:, None], self.low, self.high, mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class CISPO:
    """Clipped importance-sampling weights (MiniMax-M1, arXiv 2506.13585, eq. 4): each token's
    ratio clipped and used as a weight, so that no token loses its gradient. There all tokens of
    the batch weigh alike, hence the normalisation `none`; their common factor, one over their
    number, is left to the learning rate.
    """

    low: NotNegative = 1.0
    """Clipped below 1 - low; 1 means no lower limit."""
    high: NotNegative = 0.2

    needs_group: ClassVar[bool] = True
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return clip(rho_t) A. See `Objective.weights`."""
        advantage = group_normalized(advantage, group)
        log_low = math.log1p(-self.low) if self.low < 1 else -math.inf
        rho = log_rho(log_ratio, mask, "token").clamp(log_low, math.log1p(self.high)).exp()
        return torch.where(mask, rho * advantage[:, None], 0.0)


def _unclipped(rho: Tensor, advantage: Tensor, low: float, high: float, mask: Tensor) -> Tensor:
    """Return rho A where min(rho A, clip(rho) A) = rho A has a gradient, else 0.

    `rho` is a logarithm, [B, T]; `advantage` is [B, 1].
    """
    lower = math.log1p(-low) if low < 1 else -math.inf
    active = torch.where(advantage >= 0, rho <= math.log1p(high), rho >= lower)
    return torch.where(mask & active, rho.clamp(max=LOG_CAP).exp() * advantage, 0.0)
