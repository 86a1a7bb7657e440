"""The cells of a study to means, intervals and verdicts. Pure: no files, no figures.

A value of an arm is one number per seed. Arms of one seed share base model and rollouts, so arms
are compared seed by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev

from topr.config.study import Claim

T_QUANTILES = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262,
    10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110,
    18: 2.101, 19: 2.093, 20: 2.086,
}  # fmt: skip
"""97.5 % quantiles of Student's t by degrees of freedom."""


class Verdict(StrEnum):
    """What a study says of a claim."""

    REPRODUCED = "reproduced"
    """The whole interval of the difference is above the margin."""
    NOT_REPRODUCED = "not reproduced"
    """None of it is above the margin."""
    UNDECIDED = "not decidable at this size"
    """The margin lies within."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds and its 95 % interval; the interval is infinite for a single seed."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """A claim and what was found."""

    claim: Claim
    difference: Estimate
    verdict: Verdict


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond 20 degrees within 0.002."""
    return T_QUANTILES.get(freedom, 1.96 + 2.37 / freedom + 2.8 / freedom**2)


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and interval of one value per seed: mean +- t s / sqrt(n), Student's t."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, seeds=n)
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(mean=mean, low=mean - half, high=mean + half, seeds=n)


def decide(claim: Claim, one: Mapping[int, float], other: Mapping[int, float]) -> Decided:
    """Say whether a claim holds, by the differences of its two sides seed by seed.

    Args:
        claim: what is said.
        one: its metric of `arm` by seed.
        other: its metric (or `than_metric`) of `than`. Seeds that one of the two lacks are left
            out.

    """
    difference = estimate([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
    if difference.low > claim.margin:
        verdict = Verdict.REPRODUCED
    elif difference.high <= claim.margin:
        verdict = Verdict.NOT_REPRODUCED
    else:
        verdict = Verdict.UNDECIDED
    return Decided(claim=claim, difference=difference, verdict=verdict)
