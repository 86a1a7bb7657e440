"""What a training looks like that ruins its model: pure rules on log-ratios and on probes.

A training ruins its model when it unlearns right answers together with wrong ones. A completion is
*lost* once the model is more than 100 times less likely to write it than the model that wrote it
was (log rho below log 0.01). Where the numbers below come from is in
`docs/troubleshooting.md`.

Not here: what is done about it (`topr.training.watch`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

LOST = math.log(0.01)
"""log rho below which a completion is lost: a negative's taper is then under 0.01."""
MANY_POSITIVES = 0.6
"""Share of lost positives from which a model is being ruined, where as many negatives are lost. Up
to 0.47 was seen of models that answered better than their base, and models at 0.6 all did worse."""
MANY_NEGATIVES = 0.75
"""Share of lost negatives that is an alarm in the first steps; later they may have been unlearned
one by one. Up to 0.47 was seen of models that answered better than their base."""
FIRST_STEPS = 20
ENOUGH = 8
"""Completions of a sign from which a share is read; latest steps are pooled until there are."""
FOREIGN = 0.1
"""Share of lost completions before the first step above which log rho says nothing of training."""
CHANCE = 1e-3
"""A drop of the probe is an alarm where chance alone makes one as large less often than this."""


class AlarmKind(StrEnum):
    """What is wrong."""

    POSITIVES_LOST = "positives_lost"
    """Right answers are unlearned along with wrong ones."""
    NEGATIVES_LOST = "negatives_lost"
    """Nearly all negatives were lost in the first steps: a taper is shut on them."""
    ENDED_DROPS = "ended_drops"
    """Fewer completions of the probe end by themselves than before training."""
    ACCURACY_DROPS = "accuracy_drops"
    """Fewer completions of the probe are correct than before training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One thing that is wrong, said once a training."""

    kind: AlarmKind
    step: int
    """Optimizer steps that the weights had taken."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What is known of the completions of one sign, of one step or of several."""

    count: int = 0
    lost: int = 0
    total: float = 0.0
    """Sum of log rho."""

    def __add__(self, other: "Signs") -> "Signs":
        return Signs(
            count=self.count + other.count,
            lost=self.lost + other.lost,
            total=self.total + other.total,
        )

    @property
    def share(self) -> float:
        """Share of lost ones."""
        return self.lost / self.count if self.count else 0.0

    @property
    def mean(self) -> float:
        """Mean log rho."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the forward pass of one optimizer step says of the weights that it begins with."""

    positive: Signs = Signs()
    negative: Signs = Signs()

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(
            positive=self.positive + other.positive, negative=self.negative + other.negative
        )

    @property
    def foreign(self) -> bool:
        """Whether another model wrote the rows than the one whose steps these are: an unchanged
        model has lost none of them."""
        both = self.positive + self.negative
        return both.share > FOREIGN


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What a probe found: completions of the model on its way, on validation questions."""

    step: int
    completions: int
    ended: int
    """Those that ended by themselves, before the token limit."""
    correct: int
    seconds: float


def latest(readings: Sequence[Reading]) -> Reading:
    """Return the latest readings together, of each sign as many as have `ENOUGH` completions.

    A step of 32 completions may have one positive, of which no share can be read.
    """
    return Reading(
        positive=_latest([reading.positive for reading in readings]),
        negative=_latest([reading.negative for reading in readings]),
    )


def _latest(signs: Sequence[Signs]) -> Signs:
    found = Signs()
    for each in reversed(signs):
        if found.count >= ENOUGH:
            break
        found += each
    return found


def alarm_of_reading(step: int, found: Reading) -> tuple[AlarmKind, str] | None:
    """Return what is wrong with weights of `step` optimizer steps, by the latest readings."""
    positive, negative = found.positive, found.negative
    means = f"mean log rho {positive.mean:+.1f} of positives, {negative.mean:+.1f} of negatives"
    none_or_lost = negative.count == 0 or negative.share >= MANY_POSITIVES
    if positive.count >= ENOUGH and positive.share >= MANY_POSITIVES and none_or_lost:
        return AlarmKind.POSITIVES_LOST, (
            f"right answers are unlearned along with wrong ones: {positive.share:.0%} of the "
            f"latest {positive.count} positives and {negative.share:.0%} of {negative.count} "
            f"negatives are over 100 times less likely than when they were written ({means}; "
            "positives should stay near 0 or rise)"
        )
    if step <= FIRST_STEPS and negative.count >= ENOUGH and negative.share >= MANY_NEGATIVES:
        return AlarmKind.NEGATIVES_LOST, (
            f"{negative.share:.0%} of the latest {negative.count} negatives are over 100 times "
            f"less likely than when they were written, after {step} steps ({means}; negatives "
            f"should fall by a few nats, over many steps). A taper is shut on them, and what they "
            "took with them is gone"
        )
    return None


def alarm_of_probe(first: Probed, now: Probed) -> tuple[AlarmKind, str] | None:
    """Return what is wrong by a probe, measured by the one from before the first step."""
    for kind, what in ((AlarmKind.ENDED_DROPS, "ended"), (AlarmKind.ACCURACY_DROPS, "correct")):
        before, after = getattr(first, what), getattr(now, what)
        if chance_of_drop(before, first.completions, after, now.completions) < CHANCE:
            verb = "end by themselves" if what == "ended" else "are correct"
            return kind, (
                f"{after} of {now.completions} completions of the probe {verb}; it was {before} of "
                f"{first.completions} at step {first.step}"
            )
    return None


def chance_of_drop(before: int, of_before: int, after: int, of_after: int) -> float:
    """Return how often chance puts at most `after` of all hits into the second sample.

    Fisher's exact test, one-sided: the hypergeometric tail.

    >>> round(chance_of_drop(4, 4, 0, 4), 4)  # 1 of the 70 ways to choose 4 of 8
    0.0143
    """
    hits = before + after
    ways = sum(
        math.comb(of_after, k) * math.comb(of_before, hits - k)
        for k in range(max(0, hits - of_before), after + 1)
    )
    return ways / math.comb(of_before + of_after, hits)


def signs_of(log_rho_B: torch.Tensor) -> Signs:
    """Return what is known of completions by their log rho, [B]."""
    return Signs(
        count=len(log_rho_B), lost=int((log_rho_B < LOST).sum()), total=float(log_rho_B.sum())
    )
