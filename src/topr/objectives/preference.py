"""Preference objectives on graded completions, written as weights: DPO, APO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.objectives.base import BaselineRole, Normalization, Positive, Uses, log_rho


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

    needs_group: ClassVar[bool] = True
    uses: ClassVar[Uses] = Uses(baseline=BaselineRole.THRESHOLD)
    normalization: ClassVar[Normalization] = "none"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return the summed weight of each completion's pairs. See `Objective.weights`."""
        rho = torch.where(mask, log_ratio.detach().float(), 0.0).sum(dim=-1)
        same = group[:, None] == group[None, :]
        chosen = advantage >= 0
        pair = same & chosen[:, None] & ~chosen[None, :]
        pairs_in_group = (same.float() @ pair.float().sum(dim=1)).clamp(min=1)
        strength = self.beta * torch.sigmoid(-self.beta * (rho[:, None] - rho[None, :])) * pair
        signed = strength.sum(dim=1) - strength.sum(dim=0)
        weight = signed * same.sum(dim=1) / (2 * pairs_in_group)
        return torch.where(mask, weight[:, None], 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class APO:
    """Anchored preference optimization, APO-zero (D'Oosterlinck et al., arXiv 2408.06266), whose
    two terms need no pairs: the loss is -sigma(beta log rho) of a right completion and
    +sigma(beta log rho) of a wrong one.

    sigma' fades on both sides: of what the model has learnt, and of what it has given up.
    """

    beta: Positive = 0.1

    needs_group: ClassVar[bool] = False
    uses: ClassVar[Uses] = Uses()
    normalization: ClassVar[Normalization] = "none"

    def weights(self, log_ratio: Tensor, advantage: Tensor, mask: Tensor, group: Tensor) -> Tensor:
        """Return A beta sigma'(beta log rho). See `Objective.weights`."""
        likes = torch.sigmoid(self.beta * log_rho(log_ratio, mask, "sequence"))
        weight = advantage[:, None].float() * self.beta * likes * (1.0 - likes)
        return torch.where(mask, weight, 0.0)
