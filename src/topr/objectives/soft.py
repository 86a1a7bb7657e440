"""Smooth gates of the ratio in place of clips: VESPO for completions, SAPO for tokens."""

from dataclasses import dataclass
from typing import ClassVar

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
from topr.objectives.relative import CENTRED, MaybeNormalized, group_normalized


@dataclass(frozen=True, kw_only=True, slots=True)
class VESPO(MaybeNormalized):
    """Variational sequence-level soft policy optimization (arXiv 2602.10693): A times

        phi(rho) = rho^k exp(lambda (1 - rho))

    with k and lambda by the sign of A; phi is 1 at rho = 1, rises to its peak at k / lambda and
    falls to 0 on both sides. TOPR's nearest relative: for negatives both fade as pi leaves them.
    For positives TOPR stays at 1 where VESPO fades too.
    """

    k_positive: NotNegative = 2.0
    lambda_positive: NotNegative = 3.0
    k_negative: NotNegative = 3.0
    lambda_negative: NotNegative = 2.0
    group_normalized: bool = True
    """As published; off, A = R - c as TOPR has it."""

    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A phi(rho). See `Objective.weights`."""
        rho, advantage = batch.log_rho("sequence"), self.advantages(batch)[:, None]
        k = torch.where(advantage >= 0, self.k_positive, self.k_negative)
        slope = torch.where(advantage >= 0, self.lambda_positive, self.lambda_negative)
        log_phi = k * rho + slope * (1 - rho.clamp(max=LOG_CAP).exp())
        return torch.where(batch.mask, log_phi.clamp(max=LOG_CAP).exp() * advantage, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SAPO:
    """Soft adaptive policy optimization (arXiv 2511.20347, eq. 6): the surrogate of each token is
    A (4 / tau) sigma(tau (rho_t - 1)), whose slope is 1 at rho_t = 1 and fades on both sides, a
    little faster where A <= 0.
    """

    tau_positive: Positive = 1.0
    tau_negative: Positive = 1.05

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "length"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A rho_t 4 sigma (1 - sigma). See `Objective.weights`."""
        advantage = group_normalized(batch)[:, None]
        ratio = batch.log_rho("token").clamp(max=LOG_CAP).exp()
        tau = torch.where(advantage > 0, self.tau_positive, self.tau_negative)
        gate = tau * (ratio - 1)
        slope = 4 * torch.sigmoid(gate) * torch.sigmoid(-gate)
        return torch.where(batch.mask, advantage * ratio * slope, 0.0)
