"""How many times fewer tokens reach the same accuracy. Pure: from cells to numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from topr.studies.results import Results
from topr.studies.summary import Estimate, estimate

METRIC = "pass@1"

Curve = Sequence[tuple[int, float]]
"""Completion tokens drawn and accuracy, by rising tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """What one series of arms needs to reach where another ends."""

    series: str
    other: str
    accuracy: float
    """Of the other series with its most tokens: mean over seeds."""
    tokens: float
    """Those tokens: mean over seeds."""
    factor: Estimate | None
    """Tokens of `other` by tokens of `series` at that accuracy, over seeds: geometric mean and
    interval; None where a seed does not get there."""
    at_least: bool
    """Whether a seed was there with its fewest tokens already, so that the factor is a bound."""


def efficiencies(results: Results) -> list[Efficiency]:
    """Compare the first series of arms with every other one, over the tokens drawn for training.

    Only of a study whose series have no axis of their own.
    """
    arms = {key: arm for key, arm in results.study.arms.items() if arm.series and arm.x is None}
    names = list(dict.fromkeys(str(arm.series) for arm in arms.values()))
    return [_compared(results, names[0], other) for other in names[1:]]


def tokens_to_reach(curve: Curve, accuracy: float) -> float | None:
    """Return the tokens at which a curve first has an accuracy, between points by log tokens.

    The first point's tokens where it has it already; None where the curve does not get there.

    >>> tokens_to_reach([(100, 0.2), (400, 0.4)], 0.3)
    200.0
    """
    before: tuple[int, float] | None = None
    for tokens, value in curve:
        if value >= accuracy:
            if before is None:
                return float(tokens)
            share = (accuracy - before[1]) / (value - before[1])
            return round(float(before[0] * (tokens / before[0]) ** share), 1)
        before = (tokens, value)
    return None


def _compared(results: Results, series: str, other: str) -> Efficiency:
    curves, targets = _curves(results, series), _curves(results, other)
    factors: list[float] = []
    at_least, reached = False, True
    for seed in sorted(curves.keys() & targets.keys()):
        tokens, accuracy = targets[seed][-1]
        needed = tokens_to_reach(curves[seed], accuracy)
        if needed is None:
            reached = False
            continue
        at_least |= needed == curves[seed][0][0]
        factors.append(tokens / needed)
    return Efficiency(
        series=series,
        other=other,
        accuracy=fmean(curve[-1][1] for curve in targets.values()),
        tokens=fmean(curve[-1][0] for curve in targets.values()),
        factor=_geometric(factors) if reached else None,
        at_least=at_least,
    )


def _curves(results: Results, series: str) -> dict[int, Curve]:
    """Return each seed's curve of a series."""
    points: dict[int, list[tuple[int, float]]] = {}
    for key, arm in results.study.arms.items():
        if arm.series == series:
            for cell in results.of(key):
                final = cell.final
                points.setdefault(cell.seed, []).append((final.tokens, final.metrics[METRIC]))
    return {seed: sorted(curve) for seed, curve in points.items()}


def _geometric(factors: Sequence[float]) -> Estimate:
    found = estimate([math.log(factor) for factor in factors])
    return Estimate(
        mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high),
        seeds=found.seeds,
    )  # fmt: skip
