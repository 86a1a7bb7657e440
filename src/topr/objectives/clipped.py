"""Surrogates that are clipped around a ratio of 1, written as weights: PPO and GRPO, GSPO, GMPO.

For min(rho A, clip(rho) A) the weight of grad log pi is rho A where the clip is inactive and 0
where it is active: where A >= 0 and rho > 1 + high, or A < 0 and rho < 1 - low.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import (
    LOG_CAP,
    GroupNeed,
    Level,
    Normalization,
    NotNegative,
    ScoredBatch,
    Uses,
    log_rho,
)
from topr.objectives.relative import CENTRED, MaybeNormalized, group_normalized


@dataclass(frozen=True, kw_only=True, slots=True)
class PPO(MaybeNormalized):
    """PPO's clipped surrogate (Schulman et al., arXiv 1707.06347, eq. 7); with
    `group_normalized`, GRPO (Shao et al., arXiv 2402.03300) without its KL term.
    """

    low: NotNegative = 0.2
    """Clipped below 1 - low."""
    high: NotNegative = 0.2
    """Clipped above 1 + high."""
    level: Level = "token"
    normalization: ClassVar[Normalization] = "length"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return rho A where the clip is inactive, else 0. See `Objective.weights`."""
        advantage, rho = self.advantages(batch), batch.log_rho(self.level)
        active = _inactive_clip(rho, advantage, *_log_limits(self.low, self.high))
        return _ratio_weights(rho, advantage, active & batch.mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class GSPO:
    """Group sequence policy optimization (Zheng et al., arXiv 2507.18071): the geometric mean of
    the ratio, clipped close to 1, with group-normalised advantages. The 1/|y| of its gradient is
    the loss normalisation `length`.
    """

    low: NotNegative = 3e-4
    high: NotNegative = 4e-4

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "length"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return s A where the clip is inactive, else 0. See `Objective.weights`."""
        advantage, rho = group_normalized(batch), batch.log_rho("geometric")
        active = _inactive_clip(rho, advantage, *_log_limits(self.low, self.high))
        return _ratio_weights(rho, advantage, active & batch.mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class GMPO:
    """Geometric-mean policy optimization (Zhao et al., arXiv 2507.20673, eq. 4): the geometric mean
    of token ratios, each clipped by itself, with group-normalised advantages. The 1/|y| of its
    gradient is the loss normalisation `length`.
    """

    low: NotNegative = 0.4
    """log rho_t is clipped below -low."""
    high: NotNegative = 0.4
    """log rho_t is clipped above high."""

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "length"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A exp(mean of the clipped log rho_t) at tokens whose clip is inactive, else 0. See
        `Objective.weights`.
        """
        advantage, rho = group_normalized(batch), batch.log_rho("token")
        active = _inactive_clip(rho, advantage, -self.low, self.high) & batch.mask
        # Where A >= 0 the smaller of log rho_t and its clipped value counts, else the larger.
        limited = torch.where(
            advantage[:, None] >= 0, rho.clamp(max=self.high), rho.clamp(min=-self.low)
        )
        mean = log_rho(limited, batch.mask, "geometric")
        return _ratio_weights(mean, advantage, active)


def _log_limits(low: float, high: float) -> tuple[float, float]:
    """Return the logarithms of 1 - low and 1 + high."""
    return math.log1p(-low) if low < 1 else -math.inf, math.log1p(high)


def _inactive_clip(rho: Tensor, advantage: Tensor, lower: float, upper: float) -> Tensor:
    """Return where min(rho A, clip(rho) A) = rho A has a gradient, [B, T] bool.

    `rho`, [B, T], and the limits are logarithms; `advantage` is [B].
    """
    return torch.where(advantage[:, None] >= 0, rho <= upper, rho >= lower)


def _ratio_weights(rho: Tensor, advantage: Tensor, active: Tensor) -> Tensor:
    """Return exp(rho) A where `active`, else 0, [B, T]."""
    return torch.where(active, rho.clamp(max=LOG_CAP).exp() * advantage[:, None], 0.0)
