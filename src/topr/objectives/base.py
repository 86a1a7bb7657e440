"""What all objectives share: their protocol, the level of a ratio, the scale of a loss.

Axes: B sequences, T completion tokens (padded; the mask is true at real tokens).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

Level = Literal["sequence", "token", "geometric"]
Normalization = Literal["length", "none", "constant"]
GroupNeed = Literal["rewards", "ratios"] | None
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Numbers of objectives; `topr.objectives.make_objective` checks them."""

LOG_CAP = 40.0
"""Where a ratio has no upper limit, its logarithm stops here: exp(40) = 2e17 is as good as
infinite for a weight, and the squares that gradient clipping sums still fit float32."""

NEGLIGIBLE = 0.01
"""A taper below this is so small that its completion no longer changes the model: such completions
are counted."""


class BaselineRole(StrEnum):
    """What the baseline c is to an objective."""

    SUBTRACTED = "subtracted"
    """A = R - c scales each completion's weight."""
    THRESHOLD = "threshold"
    """It tells right completions (R >= c) from wrong ones, and scales nothing."""
    CANCELS = "cancels"
    """Rewards are centred within each group, and c cancels out: it does nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Uses:
    """What an objective makes of the settings around it. What it does not use is refused or warned
    of."""

    ratio: bool = True
    """Weights depend on pi/mu, so log mu must be known."""
    baseline: BaselineRole = BaselineRole.SUBTRACTED
    negatives: bool = True
    """Completions with A < 0 have a weight."""
    taper: tuple[float, float] | None = None
    """Limits of |weight / A| of negatives, where they are a taper: which of them can be skipped."""
    signs: bool = True
    """Rewards of two values are what it is for, or are as good as others."""
    idle: frozenset[str] = frozenset()
    """Fields of the objective that do nothing, its others being what they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """The batch that a part was taken from, as far as it is known before any log-probability."""

    advantage: Tensor
    """A = R - c of each of its completions, [M] float32."""
    group: Tensor
    """Number of each one's prompt, [M] int64."""
    rows: Tensor
    """Which of them the part has, [B] int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBatch:
    """Completions whose log-probabilities are known: what an objective makes weights of.

    None of the tensors carries a gradient.

    >>> batch = ScoredBatch(
    ...     log_ratio=torch.tensor([[-1.0, -2.0]]), advantage=torch.tensor([-1.0]),
    ...     mask=torch.ones(1, 2, dtype=torch.bool), group=torch.tensor([0]),
    ...     behavior_logprobs=torch.tensor([[-0.5, -0.1]]),
    ... )
    """

    log_ratio: Tensor
    """log pi - log mu of each token, [B, T] float32; anything where the mask is false."""
    advantage: Tensor
    """A = R - c of each completion, [B] float32."""
    mask: Tensor
    """True at completion tokens, [B, T] bool."""
    group: Tensor
    """Number of each completion's prompt, [B] int64."""
    behavior_logprobs: Tensor
    """log mu of each token, [B, T] float32; anything where the mask is false."""
    whole: Whole | None = None
    """The batch that this one is a part of; None: it is whole."""

    def over_groups(self, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return what `compute(advantage, group)` says of the completions here, [B].

        It is given all completions of the batch, [M] and [M], and returns [M]: the others of a
        prompt may be in another part.
        """
        if self.whole is None:
            return compute(self.advantage.float(), self.group)
        return compute(self.whole.advantage, self.whole.group)[self.whole.rows]

    def log_rho(self, level: Level) -> Tensor:
        """Return the logarithm of pi/mu at a level, [B, T]: see `log_rho`."""
        return log_rho(self.log_ratio, self.mask, level)


class Objective(Protocol):
    """From log-ratios and advantages to the weight of each token's grad log pi."""

    @property
    def needs_group(self) -> GroupNeed:
        """What a completion's weight depends on of the others of its prompt, which are then in the
        same batch: None; their `rewards` (take them with `ScoredBatch.over_groups`); or their
        `ratios`, so that `weights` is given a whole batch at once, as far as one process holds it,
        which costs a forward pass more."""
        ...

    @property
    def uses(self) -> Uses:
        """Which settings act on the weights."""
        ...

    @property
    def normalization(self) -> Normalization:
        """What the method's publication divides a completion's loss by."""
        ...

    def weights(self, batch: ScoredBatch) -> Tensor:
        """Return the weight that multiplies grad log pi of each token.

        Returns:
            [B, T] float32, without gradient, zero where the mask is false. The step descends
            -sum(weight * log pi).

        """
        ...


def log_rho(log_ratio: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Return the logarithm of the ratio pi/mu at a level, for each token.

    Args:
        log_ratio: log pi - log mu of each token, [B, T].
        mask: true at completion tokens, [B, T], bool.
        level: `sequence`, the sum over the completion (the importance ratio of the paper);
            `token`, each token's own; `geometric`, the mean over the completion.

    Returns:
        [B, T] float32, zero where the mask is false.

    """
    log_ratio = torch.where(mask, log_ratio.detach().float(), 0.0)
    if level == "token":
        return log_ratio
    total = log_ratio.sum(dim=-1, keepdim=True)
    if level == "geometric":
        total = total / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(mask, total, 0.0)


def sequence_scale(mask: Tensor, normalization: Normalization, constant: float = 1.0) -> Tensor:
    """Return what each sequence's loss is multiplied by, [B] float32.

    `length`: 1/|y| (the paper's); `none`: 1; `constant`: 1/constant.
    """
    length = mask.sum(dim=-1).clamp(min=1).float()
    scales = {
        "length": 1.0 / length,
        "none": torch.ones_like(length),
        "constant": torch.full_like(length, 1.0 / constant),
    }
    return scales[normalization]


def token_mean(weights: Tensor, mask: Tensor) -> Tensor:
    """Return the mean weight of each sequence's tokens, from [B, T] to [B]: what is logged."""
    return weights.sum(dim=-1) / mask.sum(dim=-1)


def largest_weight(weights: Tensor) -> Tensor:
    """Return the largest |weight| of each sequence's tokens, from [B, T] to [B]: at 0 no token has
    a gradient, so this decides which sequences are skipped.
    """
    return weights.abs().amax(dim=-1)


def taper_of(weight: Tensor, advantage: Tensor) -> Tensor:
    """Return |weight / A|, what the taper leaves of the advantage, [B]; 0 where A is 0.

    For one weight of each sequence: a sequence ratio gives all tokens the same; of others take
    `token_mean` or `largest_weight`.

    >>> taper_of(torch.tensor([-0.25, 0.0]), torch.tensor([-0.5, 0.0]))
    tensor([0.5000, 0.0000])
    """
    return torch.where(advantage == 0, 0.0, weight.abs() / advantage.abs().clamp(min=1e-30))
