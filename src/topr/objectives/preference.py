"""Objectives that take right and wrong completions apart instead of scaling by an advantage: DPO,
APO, NFT.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import BaselineRole, GroupNeed, Normalization, Positive, ScoredBatch, Uses
from topr.objectives.relative import group_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class DPO:
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290, eq. 7) with mu as the
    reference, over all pairs of a right and a wrong completion of one prompt.

    The gradient of -log sigma(margin), margin = beta (log rho_chosen - log rho_rejected), has
    weight +beta sigma(-margin) on the chosen completion and minus that on the rejected one. The
    pairs of a group are averaged, times half its completions, so that a pair on its own has
    exactly these weights and large groups weigh no less per completion.
    """

    beta: Positive = 0.1

    needs_group: ClassVar[GroupNeed] = "ratios"
    uses: ClassVar[Uses] = Uses(baseline=BaselineRole.THRESHOLD)
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return the summed weight of each completion's pairs. See `Objective.weights`."""
        rho = batch.log_rho("token").sum(dim=-1)
        same = batch.group[:, None] == batch.group[None, :]
        chosen = batch.advantage >= 0
        pair = same & chosen[:, None] & ~chosen[None, :]
        pairs_in_group = (same.float() @ pair.float().sum(dim=1)).clamp(min=1)
        strength = self.beta * torch.sigmoid(-self.beta * (rho[:, None] - rho[None, :])) * pair
        signed = strength.sum(dim=1) - strength.sum(dim=0)
        weight = signed * same.sum(dim=1) / (2 * pairs_in_group)
        return torch.where(batch.mask, weight[:, None], 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class APO:
    """Anchored preference optimization, APO-zero (D'Oosterlinck et al., arXiv 2408.06266), whose
    two terms need no pairs: the loss is -sigma(beta log rho) of a right completion and
    +sigma(beta log rho) of a wrong one.

    sigma' fades on both sides: of what the model has learnt, and of what it has given up.
    """

    beta: Positive = 0.1

    needs_group: ClassVar[GroupNeed] = None
    uses: ClassVar[Uses] = Uses()
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A beta sigma'(beta log rho). See `Objective.weights`."""
        likes = torch.sigmoid(self.beta * batch.log_rho("sequence"))
        weight = batch.advantage[:, None].float() * self.beta * likes * (1.0 - likes)
        return torch.where(batch.mask, weight, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class NFT:
    """Negative-aware fine-tuning (Chen et al., arXiv 2505.18116, eq. 9): right completions are
    supervised; wrong ones train the policy through the one that would have written them,

        pi-(t) = (1 - r rho_t) / (1 - r) mu(t)        with r the share right of the prompt,

    by -log(max(pi- / mu, 1)), whose gradient is kept below the maximum. A prompt weighs 1 - r, and
    nothing where all its completions are alike.
    """

    least: Positive = 1.0
    """pi- / mu counts as this where it is smaller."""

    needs_group: ClassVar[GroupNeed] = "rewards"
    uses: ClassVar[Uses] = Uses(baseline=BaselineRole.THRESHOLD)
    normalization: ClassVar[Normalization] = "none"

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return 1 - r at right completions and -r rho_t / max(pi- / mu, least) at wrong ones. See
        `Objective.weights`.
        """
        right = batch.advantage >= 0
        share = batch.over_groups(_share_right)
        mixed = (share > 0) & (share < 1)
        share = share.clamp(0.02, 0.98)[:, None]  # as the authors' code has it
        ratio = batch.log_rho("token").clamp(max=10.0).exp()
        implicit = ((1 - share * ratio) / (1 - share)).clamp(min=self.least)
        weight = torch.where(right[:, None], 1 - share, -share * ratio / implicit)
        return torch.where(batch.mask & mixed[:, None], weight, 0.0)


def _share_right(advantage: Tensor, group: Tensor) -> Tensor:
    return group_mean((advantage >= 0).float(), group)
