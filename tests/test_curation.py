import numpy as np
import pytest

from topr.config import CurateConfig
from topr.curation import STRATEGIES, curate
from topr.errors import DataError

NAN = float("nan")
ALL = CurateConfig()
POSITIVES = CurateConfig(strategy="positives")
CAP_2 = CurateConfig(strategy="cap", per_problem=2)

REWARDS = [1.0, -1.0, NAN, 1.0, -1.0, -1.0, NAN]
PROBLEMS = ["a", "a", "a", "a", "b", "b", "c"]
SAMPLES = [0, 1, 2, 3, 0, 1, 0]


def test_every_configured_strategy_has_a_function():
    named = CurateConfig.model_json_schema()["properties"]["strategy"]["enum"]
    assert set(STRATEGIES) == set(named)


def test_all_drops_only_rows_without_a_reward():
    result = curate(REWARDS, PROBLEMS, SAMPLES, ALL)
    assert result.keep.tolist() == [True, True, False, True, True, True, False]
    assert result.report == {
        "rows": 7,
        "kept": 5,
        "dropped/no_reward": 2,
        "dropped/strategy": 0,
        "problems": 2,
        "positives": 2,
        "negatives": 3,
        "positive_share": 0.4,
    }


def test_positives_keeps_rewards_above_zero():
    result = curate([*REWARDS, 0.0, 0.25], [*PROBLEMS, "d", "d"], [*SAMPLES, 0, 1], POSITIVES)
    assert np.flatnonzero(result.keep).tolist() == [0, 3, 8]
    assert result.report["dropped/strategy"] == 4
    assert result.report["dropped/no_reward"] == 2
    assert result.report["positive_share"] == 1.0


def test_cap_counts_rewarded_rows_only():
    # Sample 2 of problem a has no reward, so it does not use up the quota.
    result = curate([1.0, NAN, -1.0, 1.0], ["a"] * 4, [0, 1, 2, 3], CAP_2)
    assert result.keep.tolist() == [True, False, True, False]
    assert result.report["dropped/strategy"] == 1


def test_cap_chooses_the_same_completions_whatever_the_order_of_rows():
    order = np.random.default_rng(0).permutation(len(REWARDS))
    shuffled = curate(
        [REWARDS[i] for i in order],
        [PROBLEMS[i] for i in order],
        [SAMPLES[i] for i in order],
        CAP_2,
    )
    straight = curate(REWARDS, PROBLEMS, SAMPLES, CAP_2)
    assert sorted(order[shuffled.keep]) == np.flatnonzero(straight.keep).tolist() == [0, 1, 4, 5]
    assert shuffled.report == straight.report


def test_a_cap_above_every_quota_is_all():
    large = CurateConfig(strategy="cap", per_problem=100)
    capped, everything = (curate(REWARDS, PROBLEMS, SAMPLES, c) for c in (large, ALL))
    np.testing.assert_array_equal(capped.keep, everything.keep)
    assert capped.report == everything.report


def test_the_counts_add_up():
    generator = np.random.default_rng(1)
    rewards = generator.choice([1.0, -1.0, NAN], size=200)
    problems = [f"p{i}" for i in generator.integers(20, size=200)]
    for config in (ALL, POSITIVES, CAP_2):
        report = curate(rewards, problems, np.arange(200), config).report
        assert report["kept"] == report["positives"] + report["negatives"]
        assert report["rows"] == (
            report["kept"] + report["dropped/no_reward"] + report["dropped/strategy"]
        )


@pytest.mark.parametrize(
    ("rewards", "config"), [([-1.0, -1.0], POSITIVES), ([NAN, NAN], ALL), ([], ALL)]
)
def test_keeping_nothing_is_an_error_that_says_why(rewards, config):
    with pytest.raises(DataError, match=f"keeps none of {len(rewards)}"):
        curate(rewards, ["a"] * len(rewards), range(len(rewards)), config)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="3 rewards, 2 problem ids"):
        curate([1.0, 1.0, 1.0], ["a", "b"], [0, 0, 0], ALL)


def test_an_infinite_reward_is_refused():
    with pytest.raises(DataError, match="1 of 2 rewards are infinite"):
        curate([float("inf"), 1.0], ["a", "b"], [0, 0], ALL)
