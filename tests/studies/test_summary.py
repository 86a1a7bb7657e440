"""Means, intervals and verdicts of studies."""

import math

import pytest

from topr.config.study import Claim
from topr.studies.summary import Verdict, decide, estimate


def test_interval_is_students_t_over_seeds() -> None:
    """Of 1, 2, 3: s = 1, n = 3, t = 4.303 with 2 degrees of freedom."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(4.303 / math.sqrt(3))
    assert 2.0 - found.low == pytest.approx(4.303 / math.sqrt(3))
    assert found.seeds == 3


def test_one_seed_has_no_interval() -> None:
    found = estimate([0.4])
    assert (found.mean, found.low, found.high) == (0.4, -math.inf, math.inf)


def claim(margin: float = 0.0) -> Claim:
    return Claim(says="a is above b", arm="a", than="b", margin=margin)


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([0.10, 0.11, 0.12], 0.0, Verdict.REPRODUCED),
        ([-0.10, -0.11, -0.12], 0.0, Verdict.NOT_REPRODUCED),
        ([-0.10, 0.11, 0.12], 0.0, Verdict.UNDECIDED),
        ([0.10, 0.11, 0.12], 0.2, Verdict.NOT_REPRODUCED),
        ([-0.010, -0.011, -0.012], -0.02, Verdict.REPRODUCED),
        ([0.0, 0.0, 0.0], 0.0, Verdict.NOT_REPRODUCED),  # equal is not above
        ([0.5], 0.0, Verdict.UNDECIDED),  # one seed decides nothing
    ],
)
def test_a_claim_is_decided_by_the_whole_interval(
    differences: list[float], margin: float, verdict: Verdict
) -> None:
    b = {seed: 0.2 * seed for seed in range(len(differences))}
    a = {seed: b[seed] + difference for seed, difference in enumerate(differences)}
    assert decide(claim(margin), a, b).verdict is verdict


def test_differences_are_taken_seed_by_seed() -> None:
    """What seeds have in common cancels out, and a seed that one arm lacks is left out."""
    found = decide(claim(), {0: 0.3, 1: 0.7, 2: 0.9}, {1: 0.6, 0: 0.2})
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.high - found.difference.low == pytest.approx(0.0, abs=1e-9)
    assert found.difference.seeds == 2
