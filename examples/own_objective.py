"""An objective of your own, trained from a recipe and compared with TOPR in a study.

    topr run quickstart -o runs/mine train.objective=own_objective:Cautious
    topr study leaderboard --add own_objective:Cautious -o runs/leaderboard

Run in this directory, or where Python finds the module.
"""

from dataclasses import dataclass

import torch

from topr.objectives import ScoredBatch, Uses


@dataclass(frozen=True, kw_only=True)
class Cautious:
    """TOPR whose positives fade too, once the policy makes them `limit` times as probable."""

    limit: float = 2.0

    needs_group = None
    uses = Uses()  # of the ratio, the baseline and negatives: all three
    normalization = "length"

    def weights(self, batch: ScoredBatch) -> torch.Tensor:
        """Return A min(limit / rho, 1) where A >= 0, A min(rho, 1) elsewhere, [B, T]."""
        rho = batch.log_rho("sequence").clamp(max=40).exp()
        advantage = batch.advantage[:, None]
        kept = torch.where(advantage >= 0, self.limit / rho, rho).clamp(max=1.0)
        return torch.where(batch.mask, advantage * kept, 0.0)
