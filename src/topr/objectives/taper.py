"""The taper: a ratio clipped by two pairs of limits, one for each sign of the advantage.

Le Roux et al., "Tapered Off-Policy REINFORCE", arXiv 2503.14286 (2025):

    grad J = sum over A >= 0 of  mu(tau) [rho]_{a+}^{b+}  A  grad log pi(tau)
           + sum over A <  0 of  mu(tau) [rho]_{a-}^{b-}  A  grad log pi(tau)

with [z]_a^b = min(max(z, a), b) and rho = pi(y|x) / mu(y|x) over the whole completion.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topr.errors import ConfigError
from topr.objectives.base import LOG_CAP, GroupNeed, Level, Normalization, ScoredBatch, Uses


@dataclass(frozen=True, kw_only=True, slots=True)
class Taper:
    """TOPR and its family.

    >>> Taper()  # TOPR itself
    Taper(positive=(1.0, 1.0), negative=(0.0, 1.0), level='sequence', lookahead=0.0, \
normalization='length')
    """

    positive: tuple[float, float] = (1.0, 1.0)
    """[a+, b+], for A >= 0."""
    negative: tuple[float, float] = (0.0, 1.0)
    """[a-, b-], for A < 0."""
    level: Level = "sequence"
    lookahead: float = 0.0
    """lambda: negatives are weighed by rho^(1 + lambda). It is what future policy approximation
    (Oh et al., arXiv 2509.19893) leaves without its normaliser, which needs the whole vocabulary of
    both models at every token and would make weights smaller still."""

    normalization: Normalization = "length"
    """See `Objective.normalization`."""

    needs_group: ClassVar[GroupNeed] = None

    @property
    def uses(self) -> Uses:
        """See `Objective.uses`."""
        of_positives = self.positive[0] < self.positive[1]
        of_negatives = self.negative[0] < self.negative[1]
        idle = {"level": of_positives or of_negatives, "lookahead": of_negatives}
        return Uses(
            ratio=of_positives or of_negatives,
            negatives=self.negative[1] > 0.0,
            taper=self.negative,
            idle=frozenset(name for name, acts in idle.items() if not acts),
        )

    def __post_init__(self) -> None:
        """Refuse limits that are not an interval."""
        for name in ("positive", "negative"):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high or low == math.inf:
                raise ConfigError(
                    f"taper limits {name}=[{low}, {high}]: expected 0 <= lower <= upper, and a "
                    "finite lower one"
                )
        if not 0.0 <= self.lookahead < math.inf:
            raise ConfigError(f"taper lookahead={self.lookahead}: expected 0 or more")

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return A [rho]_a^b, or A [rho^]_a^b. See `Objective.weights`."""
        rho, advantage = batch.log_rho(self.level), batch.advantage[:, None].float()
        clipped = torch.where(
            advantage >= 0,
            clipped_exp(rho, *self.positive),
            clipped_exp((1.0 + self.lookahead) * rho, *self.negative),
        )
        return torch.where(batch.mask, advantage * clipped, 0.0)


def clipped_exp(log_z: Tensor, low: float, high: float) -> Tensor:
    """Return [exp(log_z)]_low^high, clipped in log space so that nothing overflows."""
    log_low = math.log(low) if low > 0 else -math.inf
    log_high = min(math.log(high), LOG_CAP) if high > 0 else -math.inf
    return log_z.clamp(log_low, log_high).exp()
