"""Regressions on the log-ratio: mirror descent, DRO, OAPL, QRPO.

Each descends (target - beta log rho)^2 / (2 beta), whose gradient has the weight

    w = target - beta log rho

They differ by the target. Instead of a taper there is a restoring force, for positives and
negatives alike: the weight fades as log rho comes to target / beta, and turns beyond it. The
publications' constant factor in front, 2 beta, is left to the learning rate.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import (
    BaselineRole,
    GroupNeed,
    Level,
    Normalization,
    NotNegative,
    Positive,
    ScoredBatch,
    Uses,
)
from topr.objectives.relative import CENTRED, group_centred, group_max, group_mean


def _pull(target_B: Tensor, beta: float, batch: ScoredBatch, level: Level = "sequence") -> Tensor:
    """Return target - beta log rho at each token, [B, T]."""
    weight = target_B[:, None].float() - beta * batch.log_rho(level)
    return torch.where(batch.mask, weight, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorDescent:
    """Online policy mirror descent, as Kimi k1.5 trains (arXiv 2501.12599, eq. 3), with mu as the
    reference: target R - mean R of the prompt.
    """

    tau: NotNegative = 0.1

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return R - (mean of R over the group) - tau log rho. See `Objective.weights`."""
        return _pull(group_centred(batch), self.tau, batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class DRO:
    """Direct reward optimisation (Richemond et al., arXiv 2405.19107, eq. 5) with mu as the
    reference and the baseline c in place of a learned value: target A = R - c.
    """

    beta: NotNegative = 0.1
    level: Level = "sequence"
    """`token` is what verl trains as `dro`: each token is regressed by itself."""

    needs_group: ClassVar[GroupNeed] = None
    uses: ClassVar[Uses] = Uses()
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A - beta log rho. See `Objective.weights`."""
        return _pull(batch.advantage, self.beta, batch, self.level)


@dataclass(frozen=True, kw_only=True, slots=True)
class OAPL:
    """Optimal-advantage policy optimisation with a lagged inference policy (Ritter et al., arXiv
    2602.19362): target R - V*, with V* = beta1 log mean exp(R / beta1) over the prompt.

    V* lies between the mean reward (beta1 large) and the best one (beta1 small). `beta1` and
    `beta2` are choices of this library: the publication's numbers were not at hand.
    """

    beta1: Positive = 1.0
    beta2: NotNegative = 0.1

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = CENTRED
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return R - V* - beta2 log rho. See `Objective.weights`."""
        return _pull(batch.over_groups(self._optimal_advantage), self.beta2, batch)

    def _optimal_advantage(self, advantage: Tensor, group: Tensor) -> Tensor:
        below = advantage - group_max(advantage, group)
        # V* - max = beta1 log mean exp((R - max) / beta1): nothing overflows, the mean is > 0.
        return below - self.beta1 * group_mean((below / self.beta1).exp(), group).log()


@dataclass(frozen=True, kw_only=True, slots=True)
class QRPO:
    """Quantile reward policy optimisation (Matrenok et al., arXiv 2507.08068, eq. 11): target
    q - beta log Z, with q the share of the prompt's completions that are not better.

    For rewards that are numbers: with many completions q is then even between 0 and 1, which
    Z = beta (exp(1 / beta) - 1) is the normaliser of. With two values of the reward, wrong
    completions are pulled up too, and the trainer warns. The reference completions are the prompt's
    own, with the completion itself among them; a prompt with equal rewards has no weight.
    """

    beta: Positive = 0.1
    """A choice of this library; the publication tunes it."""

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = Uses(baseline=BaselineRole.CANCELS, signs=False)
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return q - beta log Z - beta log rho. See `Objective.weights`."""
        log_z = math.log(self.beta) + 1 / self.beta + math.log1p(-math.exp(-1 / self.beta))
        weight = _pull(batch.over_groups(_quantile) - self.beta * log_z, self.beta, batch)
        return torch.where(batch.over_groups(_differs)[:, None], weight, 0.0)


def _differs(advantage: Tensor, group: Tensor) -> Tensor:
    return (group_max(advantage, group) + group_max(-advantage, group)) > 0


def _quantile(advantage: Tensor, group: Tensor) -> Tensor:
    """Return the share of each completion's group that is not better, [M]."""
    same = group[:, None] == group[None, :]
    not_better = same & (advantage[None, :] <= advantage[:, None])
    return not_better.float().sum(dim=1) / same.float().sum(dim=1)
