"""The metrics against hand derivations, exhaustive enumeration and simulation."""

import itertools

import numpy as np
import pytest

from topr.metrics import (
    bootstrap_interval,
    elect,
    majority_at_k,
    paired_difference,
    pass_at_k,
    problem_means,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- pass@k -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_completion(n):
    correct = np.arange(n + 1)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        # Completions 0 .. c-1 are the correct ones: a subset passes when it holds one of them.
        expected = [np.mean([min(subset) < c for subset in subsets]) for c in correct]
        got = pass_at_k(np.full(n + 1, n), correct, k)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_pass_at_1_is_the_mean_over_samples():
    flags = rng().random((30, 16)) < 0.3
    got = pass_at_k(np.full(30, 16), flags.sum(axis=1), 1)
    np.testing.assert_allclose(got, flags.mean(axis=1), rtol=0, atol=1e-12)


def test_pass_at_k_takes_problems_with_different_numbers_of_samples():
    # n=4, c=1, k=2: 3 of the 6 pairs hold the correct one. n=3, c=1, k=2: 2 of 3 pairs.
    np.testing.assert_allclose(pass_at_k([4, 3, 2], [1, 1, 0], 2), [1 / 2, 2 / 3, 0])


def test_pass_at_k_is_stable_where_binomials_overflow():
    # With c = 1 the chance that the one correct completion is among the k is k / n.
    assert pass_at_k([100_000], [1], 1_000)[0] == pytest.approx(0.01, abs=1e-9)
    assert pass_at_k([100_000], [99_999], 2)[0] == 1.0


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [([4], [1], 5), ([4], [1], 0), ([4], [5], 1), ([4, 4], [1], 1)]
)
def test_pass_at_k_refuses_what_has_no_meaning(samples, correct, k):
    with pytest.raises(ValueError, match="needs"):
        pass_at_k(samples, correct, k)


# --- votes --------------------------------------------------------------------------------------


def test_unreadable_answers_do_not_vote():
    assert elect([None, None, None, "7"]) == {"7": 1.0}
    assert elect([None, None]) == {}


def test_ties_are_broken_at_random_in_expectation():
    assert elect(["7", "8", "9", "7", "8"]) == {"7": 0.5, "8": 0.5}


def test_equal_weights_are_the_plain_vote():
    answers = ["1", "2", "2", None, "3", "1", "2"]
    assert elect(answers, [0.3] * 7) == elect(answers)


def test_weights_can_overturn_the_majority():
    answers = ["wrong", "wrong", "right"]
    assert elect(answers) == {"wrong": 1.0}
    assert elect(answers, [0.2, 0.3, 0.9]) == {"right": 1.0}
    assert elect(answers, [0.0, 0.0, 0.0]) == {"wrong": 0.5, "right": 0.5}


def test_a_weighted_tie_does_not_depend_on_the_order_of_addition():
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in floating point.
    answers = ["a", "a", "a", "b", "b", "b"]
    assert elect(answers, [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [1.0, float("nan")], [1.0, float("inf")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        elect(["a", "b"], weights)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["g", "g", "x"], 1.0),
        (["g", "x", "x"], 0.0),
        (["g", "x"], 0.5),
        (["g", "x", "y", None], 1 / 3),
        ([None, None], 0.0),
        ([None, None, None, "g"], 1.0),
    ],
)
def test_majority_of_all_samples_by_hand(answers, expected):
    assert majority_at_k(answers, "g", len(answers), rng=rng()) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_majority_of_fewer_samples_estimates_the_mean_over_all_subsets(k):
    answers = ["g", "g", "g", "x", "x", "y", None]
    subsets = list(itertools.combinations(answers, k))
    exact = np.mean([elect(subset).get("g", 0.0) for subset in subsets])
    got = majority_at_k(answers, "g", k, rng=rng(1), draws=1000)
    # The standard error is at most 0.5 / sqrt(1000) = 0.016.
    assert got == pytest.approx(exact, abs=0.05)
    assert got == majority_at_k(answers, "g", k, rng=rng(1), draws=1000)


def test_majority_at_1_is_pass_at_1():
    answers = ["g"] * 3 + ["x"] * 7
    assert majority_at_k(answers, "g", 1, rng=rng(), draws=1000) == pytest.approx(0.3, abs=0.05)


def test_majority_refuses_more_voters_than_samples():
    with pytest.raises(ValueError, match="maj@3"):
        majority_at_k(["g", "x"], "g", 3, rng=rng())


# --- means and intervals ------------------------------------------------------------------------


def test_problem_means_groups_completions_in_any_order():
    got = problem_means([1, 0, 1, 1, 5], [2, 0, 2, 0, 3], 4)
    np.testing.assert_array_equal(got, [0.5, np.nan, 1.0, 5.0])


def test_bootstrap_interval_of_a_constant_is_that_constant():
    assert bootstrap_interval(np.full(50, 0.25), resamples=500, rng=rng()) == (0.25, 0.25)


def test_problems_that_depend_on_each_other_are_resampled_together():
    values = rng(3).random(40)
    alone = bootstrap_interval(values, resamples=300, rng=rng(7))
    each = np.arange(40)
    assert bootstrap_interval(values, resamples=300, rng=rng(7), groups_P=each) == alone
    # Four copies of each problem say no more than one does.
    fourfold = bootstrap_interval(
        np.repeat(values, 4), resamples=300, rng=rng(7), groups_P=np.repeat(each, 4)
    )
    assert fourfold == pytest.approx(alone)
    as_if_apart = bootstrap_interval(np.repeat(values, 4), resamples=300, rng=rng(7))
    assert as_if_apart[1] - as_if_apart[0] < 0.7 * (alone[1] - alone[0])


def test_a_group_weighs_as_many_problems_as_it_has():
    # One group of three ones, one of a single zero: means are 0, 3/4 (weights 3 to 1) and 1.
    low, high = bootstrap_interval(
        [1, 1, 1, 0], resamples=400, rng=rng(0), groups_P=["a", "a", "a", "b"]
    )
    assert (low, high) == (0.0, 1.0)
    middle = bootstrap_interval(
        [1, 1, 1, 0], resamples=400, rng=rng(0), level=0.01, groups_P=["a", "a", "a", "b"]
    )
    assert middle == (0.75, 0.75)


def test_bootstrap_interval_is_fixed_by_its_generator():
    values = rng(3).random(40)
    first = bootstrap_interval(values, resamples=300, rng=rng(7))
    assert first == bootstrap_interval(values, resamples=300, rng=rng(7))
    assert first != bootstrap_interval(values, resamples=300, rng=rng(8))


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    values = (np.arange(400) < 120).astype(float)  # mean 0.3, deviation sqrt(0.3 * 0.7)
    low, high = bootstrap_interval(values, resamples=20_000, rng=rng())
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - half, abs=0.004)
    assert high == pytest.approx(0.3 + half, abs=0.004)


def test_large_inputs_are_resampled_in_blocks_of_the_same_law():
    # 30,000 problems: 66 resamples a block. The deviation of the mean is 1 / sqrt(12 * 30000).
    low, high = bootstrap_interval(rng(5).random(30_000), resamples=400, rng=rng(6))
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(12 * 30_000), rel=0.2)


def test_bootstrap_covers_the_true_mean_of_binomial_problems():
    truth, simulated = 0.3, 400
    generator = rng(11)
    covered = 0
    for _ in range(simulated):
        values = generator.binomial(16, truth, size=60) / 16
        low, high = bootstrap_interval(values, resamples=400, rng=generator)
        covered += low <= truth <= high
    # 95 % aimed at; the deviation of the count is 1.1 %, and percentiles run a little narrow.
    assert 0.91 <= covered / simulated <= 0.98


@pytest.mark.parametrize("values", [[], [0.5, np.nan], [[0.5]]])
def test_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values, resamples=100, rng=rng())


def test_identical_models_differ_by_exactly_nothing():
    values = rng(2).random(37)
    assert paired_difference(values, values.copy(), resamples=200, rng=rng()) == (0.0, (0.0, 0.0))


def test_pairing_cancels_what_makes_problems_hard():
    hard = rng(4).random(100)
    difference, (low, high) = paired_difference(hard + 0.1, hard, resamples=500, rng=rng())
    assert difference == pytest.approx(0.1)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_swapping_the_models_flips_the_difference():
    a, b = rng(5).random(50), rng(6).random(50)
    difference, (low, high) = paired_difference(a, b, resamples=500, rng=rng(1))
    flipped, (flipped_low, flipped_high) = paired_difference(b, a, resamples=500, rng=rng(1))
    assert flipped == -difference
    assert (flipped_low, flipped_high) == pytest.approx((-high, -low))


def test_paired_values_must_be_of_as_many_problems():
    with pytest.raises(ValueError, match="3 and 4"):
        paired_difference([0, 1, 1], [0, 1, 1, 1], resamples=100, rng=rng())
