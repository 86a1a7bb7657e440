"""Token ratios that are truncated or masked, and used as weights: CISPO, DISPO, DPPO, M2PO.

Unlike a clipped surrogate they keep the gradient of a token whose ratio is out of bounds (CISPO,
DISPO), or choose by something else than the ratio which tokens lose theirs (DPPO, M2PO).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from topr.objectives.base import (
    LOG_CAP,
    GroupNeed,
    Normalization,
    NotNegative,
    Positive,
    ScoredBatch,
    Uses,
)
from topr.objectives.relative import CENTRED, group_normalized
from topr.objectives.taper import clipped_exp


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

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return clip(rho_t) A. See `Objective.weights`."""
        limits = (max(1 - self.low, 0.0), 1 + self.high)
        clipped = clipped_exp(batch.log_rho("token"), *limits)
        return torch.where(batch.mask, clipped * group_normalized(batch)[:, None], 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DISPO:
    """DISPO (Karaman et al., arXiv 2602.00983): CISPO with limits of its own for right and for
    wrong completions, the taper's four limits at the level of tokens.

    Clipping wrong completions closely is what the publication finds to end in collapse, and letting
    right ones stray far to wear the model down. The numbers are choices of this library along these
    findings: the publication's were not at hand.
    """

    low_positive: NotNegative = 0.2
    """Where A >= 0 the ratio is clipped below 1 - low_positive."""
    high_positive: NotNegative = 0.28
    low_negative: NotNegative = 1.0
    high_negative: NotNegative = 2.0

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return clip(rho_t) A, with limits by the sign of A. See `Objective.weights`."""
        rho, advantage = batch.log_rho("token"), group_normalized(batch)[:, None]
        clipped = torch.where(
            advantage >= 0,
            clipped_exp(rho, max(1 - self.low_positive, 0.0), 1 + self.high_positive),
            clipped_exp(rho, max(1 - self.low_negative, 0.0), 1 + self.high_negative),
        )
        return torch.where(batch.mask, clipped * advantage, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DPPO:
    """Divergence PPO (arXiv 2602.04879), its binary variants: a token loses its gradient where it
    would move pi further away from mu and the divergence of the two events "this token" and
    "another token" is above a threshold. A token's ratio may then be large where both of its
    probabilities are small.

    `tv`: |pi - mu| of the token. `kl`: KL(mu, pi) of the two events.
    """

    divergence: Literal["tv", "kl"] = "tv"
    threshold: Positive = 0.15
    """Of the divergence: 0.15 for `tv`; `kl` needs a smaller one, such as 0.05."""
    truncate: Positive = 20.0
    """The ratio is truncated above this."""

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return min(rho_t, truncate) A at tokens within the threshold, else 0. See
        `Objective.weights`.
        """
        rho, advantage = batch.log_rho("token"), group_normalized(batch)[:, None]
        log_mu = torch.where(batch.mask, batch.behavior_logprobs.float(), 0.0)
        mu, pi = log_mu.exp(), (log_mu + rho).clamp(max=0.0).exp()
        if self.divergence == "tv":
            distance = (pi - mu).abs()
        else:
            other = torch.log((1 - mu + 1e-8) / (1 - pi + 1e-8))
            distance = -mu * rho + (1 - mu) * other
        leaves = torch.where(advantage > 0, pi > mu, pi < mu)
        within = (distance <= self.threshold) | ~leaves
        weight = clipped_exp(rho, 0.0, self.truncate) * advantage
        return torch.where(batch.mask & within, weight, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class M2PO:
    """Second-moment trust policy optimization (Zheng et al., arXiv 2510.01161): the tokens with the
    largest squared log-ratios are left out, as many as it takes until the mean square of the others
    is below a bound; the others weigh rho_t A.

    It couples the tokens of a batch: all that one process holds, so with several processes each
    keeps the bound on its own part.
    """

    bound: Positive = 0.04
    """Of the mean of (log rho_t)^2."""

    needs_group: ClassVar[GroupNeed] = "ratios"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return rho_t A at the tokens that are kept, else 0. See `Objective.weights`."""
        rho, advantage = batch.log_rho("token"), group_normalized(batch)[:, None]
        square = rho.double().square()
        ascending = square[batch.mask].sort().values
        count = torch.arange(1, len(ascending) + 1, device=rho.device)
        # Squares 0.01, 0.02, 0.5: their means so far are 0.01, 0.015, 0.177, so 0.5 is the first
        # that must go, and all that are as large.
        beyond = ascending[ascending.cumsum(0) / count >= self.bound]
        limit = beyond[0] if len(beyond) else math.inf
        weight = rho.clamp(max=LOG_CAP).exp() * advantage
        return torch.where(batch.mask & (square < limit), weight, 0.0)
