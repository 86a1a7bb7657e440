"""Votes and scores of a verifier, against counting by hand."""

import itertools
import math

import numpy as np
import pytest

from topr.metrics import majority_at_k
from topr.verifier.votes import (
    METHODS,
    Ballot,
    balanced_accuracy,
    calibration_error,
    roc_auc,
    votes_at_k,
)

RNG = np.random.default_rng(0)


def ballot(answers, scores, gold="g"):
    return Ballot(answers=answers, right=[a == gold for a in answers], scores=scores, gold=gold)


def test_a_weighted_vote_can_overturn_a_majority():
    found = votes_at_k(ballot(["g", "w", "w", None], [0.9, 0.3, 0.4, 1.0]), 4, rng=RNG)
    assert found == {"majority": 0.0, "weighted": 1.0, "best": 0.0, "oracle": 1.0}


def test_ties_are_broken_at_random():
    found = votes_at_k(ballot(["g", "w"], [0.5, 0.5]), 2, rng=RNG)
    assert found == {"majority": 0.5, "weighted": 0.5, "best": 0.5, "oracle": 1.0}
    # Scores that are all 0 say nothing: every answer has the same chance, not the frequent one.
    found = votes_at_k(ballot(["g", "w", "w"], [0.0, 0.0, 0.0]), 3, rng=RNG)
    assert found["weighted"] == 0.5
    assert found["best"] == pytest.approx(1 / 3)


def test_weights_that_add_up_to_the_same_number_are_a_tie():
    # In binary 0.1 + 0.1 + 0.1 > 0.3, and float32 rounds 0.1 up and 0.3 up by another share.
    for store in (float, np.float32):
        scores = [float(store(x)) for x in (0.3, 0.1, 0.1, 0.1)]
        found = votes_at_k(ballot(["g", "w", "w", "w"], scores), 4, rng=RNG)
        assert found["weighted"] == 0.5, store
    almost = votes_at_k(ballot(["g", "w"], [0.1 + 0.2, 0.3]), 2, rng=RNG)
    assert (almost["weighted"], almost["best"]) == (0.5, 0.5)


def test_shares_of_checks_that_differ_by_one_check_are_no_tie():
    # 1000 candidates of 1000 checks each, one Yes less: 1 in a million of the sum is the limit.
    n = 999
    scores = [1.0] * n + [1.0] * (n - 1) + [0.998]
    found = votes_at_k(ballot(["g"] * n + ["w"] * n, scores), 2 * n, rng=RNG)
    assert found["weighted"] == 1.0


def test_perfect_scores_are_the_oracle():
    rng = np.random.default_rng(3)
    for _ in range(20):
        answers = rng.choice(["g", "w", "v"], size=8).tolist()
        one = ballot(answers, [float(a == "g") for a in answers])
        for k in (1, 8):
            found = votes_at_k(one, k, rng=rng, draws=4000)
            assert found["best"] == pytest.approx(found["oracle"], abs=0.03)
            expected = found["oracle"] if "g" in answers and k == 8 else found["weighted"]
            assert found["weighted"] == pytest.approx(expected)


def test_subsets_agree_with_all_of_them():
    one = ballot(["g", "w", "w", "v", "g", None], [0.2, 0.9, 0.1, 0.3, 0.8, 0.95])
    exact = dict.fromkeys(METHODS, 0.0)
    subsets = list(itertools.combinations(range(6), 3))
    for subset in subsets:
        part = ballot([one.answers[i] for i in subset], [one.scores[i] for i in subset])
        for method, value in votes_at_k(part, 3, rng=RNG).items():
            exact[method] += value / len(subsets)
    found = votes_at_k(one, 3, rng=np.random.default_rng(1), draws=20_000)
    for method in METHODS:
        assert found[method] == pytest.approx(exact[method], abs=0.012), method
    plain = majority_at_k(one.answers, "g", 3, rng=np.random.default_rng(2), draws=20_000)
    assert found["majority"] == pytest.approx(plain, abs=0.012)


def test_a_vote_of_too_many_is_refused():
    with pytest.raises(ValueError, match="a vote of 3 needs 1 <= k <= candidates; there are 2"):
        votes_at_k(ballot(["g", "w"], [1.0, 1.0]), 3, rng=RNG)


def test_balanced_accuracy_by_hand():
    # Three right ones with agreement 1, 0, 0.5, one wrong one with 1.
    assert balanced_accuracy([1, 0, 0.5, 1], [1, 1, 1, 0]) == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(balanced_accuracy([1, 1], [True, True]))


def test_auc_counts_pairs():
    score, right = [0.1, 0.4, 0.4, 0.8, 0.3], [False, True, False, True, False]
    pairs = [
        1.0 if s > t else 0.5 if s == t else 0.0
        for s, r in zip(score, right, strict=True)
        for t, q in zip(score, right, strict=True)
        if r and not q
    ]
    assert roc_auc(score, right) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(roc_auc([0.3], [True]))


def test_calibration_error_by_hand():
    # Bin [0.2, 0.3): two at 0.25, one right: |0.25 - 0.5|. Bin [0.9, 1]: one at 1.0, right: 0.
    assert calibration_error([0.25, 0.25, 1.0], [True, False, True]) == pytest.approx(2 / 3 * 0.25)
    assert math.isnan(calibration_error([], []))
