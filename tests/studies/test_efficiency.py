"""Tokens to the same accuracy, by hand."""

from collections.abc import Mapping

import pytest

from topr.config.study import Study
from topr.studies.efficiency import efficiencies, tokens_to_reach
from topr.studies.page import claim_lines
from topr.studies.results import Cell, Point, Results

Values = Mapping[str, tuple[float, float]]


def results(values: Values) -> Results:
    """Two series of two arms, at 100 and 400 tokens; each arm's pass@1 with seeds 0 and 1."""
    arms = {
        f"{series}{tokens}": {"label": f"{series} {tokens}", "series": series}
        for series in "ab"
        for tokens in (100, 400)
    }
    study = Study.model_validate(
        {"name": "s", "description": "d", "recipe": {}, "arms": arms, "claims": [], "seeds": [0, 1]}
    )
    cells = tuple(
        Cell(
            arm=arm, seed=seed, rate=None,
            points=(
                Point(iteration=1, step=None, tokens=int(arm[1:]), metrics={"pass@1": value}),
            ),
        )
        for arm, pair in values.items()
        for seed, value in enumerate(pair)
    )  # fmt: skip
    return Results(study=study, cells=cells, sweep={}, environment={}, seconds=0.0)


def test_a_curve_is_followed_in_log_tokens() -> None:
    curve = [(100, 0.2), (400, 0.4)]
    assert tokens_to_reach(curve, 0.3) == pytest.approx(200)
    assert tokens_to_reach(curve, 0.4) == pytest.approx(400)
    assert tokens_to_reach(curve, 0.1) == 100  # a bound: it may need fewer
    assert tokens_to_reach(curve, 0.5) is None


def test_the_factor_is_a_geometric_mean_over_seeds() -> None:
    # Seed 0: b ends at 0.3, which a has at 200 tokens: 2. Seed 1: at 0.4, at 400: 1.
    found = results({
        "a100": (0.2, 0.2), "a400": (0.4, 0.4), "b100": (0.1, 0.1), "b400": (0.3, 0.4),
    })  # fmt: skip
    (efficiency,) = efficiencies(found)
    assert efficiency.factor is not None
    assert efficiency.factor.mean == pytest.approx(2**0.5)
    assert efficiency.factor.low < 1 < efficiency.factor.high
    assert efficiency.bounded == 0
    (line,) = claim_lines(found)
    assert line.startswith(
        "Tokens to the same accuracy: b needs 1.4 times those of a for its own best accuracy "
        "(35.0 %, with 400 tokens)"
    )


def test_the_other_series_is_charged_what_it_needs_for_its_best_and_no_more() -> None:
    # b peaks at 100 tokens and falls: a is no more efficient, however many tokens b then wastes.
    values = {"a100": (0.5, 0.5), "a400": (0.6, 0.6), "b100": (0.5, 0.5), "b400": (0.3, 0.3)}
    (efficiency,) = efficiencies(results(values))
    assert efficiency.factor is not None
    assert efficiency.factor.mean == pytest.approx(1.0)
    assert efficiency.bounded == 2


def test_a_series_that_is_there_at_once_gives_a_bound() -> None:
    values = {"a100": (0.5, 0.5), "a400": (0.6, 0.6), "b100": (0.1, 0.1), "b400": (0.3, 0.3)}
    (line,) = claim_lines(results(values))
    assert "b needs 4.0 times those of a" in line
    assert "in 2 of 2 seeds the fewest tokens of a were enough, so it may need fewer" in line


def test_a_series_that_never_gets_there_says_so() -> None:
    values = {"a100": (0.1, 0.1), "a400": (0.2, 0.6), "b100": (0.1, 0.1), "b400": (0.3, 0.3)}
    (line,) = claim_lines(results(values))
    assert line.endswith("not reached by every seed")
