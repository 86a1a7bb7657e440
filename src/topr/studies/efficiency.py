"""How many times fewer tokens reach the same accuracy. Pure: from cells to numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from topr.studies.results import Results
from topr.studies.summary import Estimate, estimate

Curve = Sequence[tuple[int, float]]
"""Completion tokens sampled and accuracy, by rising tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """What two series of arms need to reach the best accuracy of the second."""

    series: str
    other: str
    accuracy: float
    """The best of the other series, seed by seed: mean over seeds."""
    tokens: float
    """What the other series needs for it: mean over seeds."""
    factor: Estimate | None
    """Tokens that `other` needs by those that `series` needs, over seeds: geometric mean and
    interval; None where a seed does not get there."""
    bounded: int
    """Seeds in which `series` was there with its fewest tokens already: it may need fewer."""


def efficiencies(results: Results) -> list[Efficiency]:
    """Compare the first series of arms with every other one, over the tokens sampled for training.

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
    curves, others = _curves(results, series), _curves(results, other)
    factors: list[float] = []
    best: list[float] = []
    needed: list[float] = []
    bounded = 0
    for seed in sorted(curves.keys() & others.keys()):
        tokens, accuracy = max(others[seed], key=lambda point: (point[1], -point[0]))
        best.append(accuracy)
        needed.append(tokens)
        reached = tokens_to_reach(curves[seed], accuracy)
        if reached is not None:
            bounded += reached == curves[seed][0][0]
            factors.append(tokens / reached)
    return Efficiency(
        series=series,
        other=other,
        accuracy=fmean(best),
        tokens=fmean(needed),
        factor=_geometric(factors) if len(factors) == len(best) else None,
        bounded=bounded,
    )


def _curves(results: Results, series: str) -> dict[int, Curve]:
    """Return each seed's curve of a series."""
    points: dict[int, list[tuple[int, float]]] = {}
    for key, arm in results.study.arms.items():
        if arm.series == series:
            for cell in results.of(key):
                final = cell.final
                points.setdefault(cell.seed, []).append(
                    (final.tokens, final.metrics[results.study.metric])
                )
    return {seed: sorted(curve) for seed, curve in points.items()}


def _geometric(factors: Sequence[float]) -> Estimate:
    found = estimate([math.log(factor) for factor in factors])
    return Estimate(
        mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high),
        seeds=found.seeds,
    )  # fmt: skip
