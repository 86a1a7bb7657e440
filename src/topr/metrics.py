"""What is measured on graded completions: pass@k, majority and weighted votes, intervals.

Pure functions on numpy arrays. No files, no grading, no model, and nothing that knows what an
evaluation looks like on disk: that is `topr.evaluation`. Axis suffixes: `_P` problems, `_N`
completions. Every rate is a mean over problems of one value per problem, so that one bootstrap over
problems serves them all.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
AnswerT = TypeVar("AnswerT", bound=Hashable)

VOTE_DRAWS = 200
"""Subsets drawn for maj@k with k below the number of samples. Their average has a standard error of
at most 0.5 / sqrt(200) = 0.035 for one problem; over 200 problems 0.0025, far inside the interval
over problems."""
TIE = 1e-6
"""Sums of votes that differ by at most this share of the highest are tied: 0.1 + 0.1 + 0.1 is 0.3,
also where the weights were stored in float32, whose rounding is 6e-8. Shares of up to 1000 checks,
of up to 1000 candidates, differ by more."""


def problem_means(values_N: ArrayLike, problem_N: ArrayLike, problems: int) -> Floats:
    """Return the mean of each problem's values: m_p = sum_{i in p} v_i / |p|.

    With flags for values it is a share: of correct completions (pass@1), of invalid ones.

    Args:
        values_N: one number or bool for each completion, [N].
        problem_N: number of the completion's problem, 0 <= p < problems, [N] integers.
        problems: number of problems P.

    Returns:
        [P] float64; NaN for a problem without completions.

    """
    index_N = np.asarray(problem_N, dtype=np.int64)
    totals_P = np.bincount(index_N, np.asarray(values_N, dtype=np.float64), minlength=problems)
    counts_P = np.bincount(index_N, minlength=problems)
    means_P: Floats = np.full(problems, np.nan)
    return np.divide(totals_P, counts_P, out=means_P, where=counts_P > 0)


def pass_at_k(samples_P: ArrayLike, correct_P: ArrayLike, k: int) -> Floats:
    """Return the unbiased estimate of pass@k for each problem.

    The chance that at least one of k completions, taken from the n drawn ones without replacement,
    is correct:

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i)

    The product form needs no large binomials. With k = 1 it is c / n, the mean over samples.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374,
    equation 1.

    Args:
        samples_P: n, completions of each problem, [P] integers.
        correct_P: c, correct ones among them, [P] integers.
        k: 1 <= k <= every n.

    Returns:
        [P] float64 in [0, 1].

    Raises:
        ValueError: k is out of range, or a problem has more correct completions than completions.

    """
    n_P = np.asarray(samples_P, dtype=np.int64)
    c_P = np.asarray(correct_P, dtype=np.int64)
    if n_P.shape != c_P.shape or np.any(c_P < 0) or np.any(c_P > n_P):
        raise ValueError("each problem needs 0 <= correct <= samples, and the two as many problems")
    if k < 1 or np.any(n_P < k):
        raise ValueError(f"pass@{k} needs 1 <= k <= samples; found samples {np.unique(n_P)}")
    i = np.arange(1, n_P.max(initial=0) + 1)
    # Factors 1 - k/i below zero (i < k) only occur where fewer than k are wrong: the factor at
    # i = k is 0 there, and it is in the product too.
    inside_P_S = (i > (n_P - c_P)[:, None]) & (i <= n_P[:, None])
    factors_P_S = np.where(inside_P_S, 1.0 - k / i, 1.0)
    result_P: Floats = 1.0 - factors_P_S.prod(axis=1)
    return result_P


def elect(
    answers: Sequence[AnswerT | None], weights: Sequence[float] | None = None
) -> dict[AnswerT, float]:
    """Return the chance of each answer to win the vote, ties broken at random.

    The winner is argmax_a sum_{i: a_i = a} w_i; m answers that share the highest sum, up to `TIE`,
    win with chance 1/m each. An unreadable answer (None) does not vote.

    Source: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
    arXiv 2203.11171; with a verifier's scores for weights: weighted self-consistency (Li et al.,
    "Making Large Language Models Better Reasoners with Step-Aware Verifier", arXiv 2206.02336).

    Args:
        answers: one equivalence class for each completion, None where none could be read.
        weights: finite, >= 0; defaults to 1 each.

    Returns:
        The winners with their chances, which sum to 1; empty where nobody votes.

    Raises:
        ValueError: as many weights as answers are needed, finite and not negative.

    """
    ballots = [1.0] * len(answers) if weights is None else list(weights)
    if len(ballots) != len(answers):
        raise ValueError(f"{len(answers)} answers have {len(ballots)} weights")
    if not all(math.isfinite(w) and w >= 0 for w in ballots):
        raise ValueError("weights of a vote must be finite and >= 0")
    votes: defaultdict[AnswerT, list[float]] = defaultdict(list)
    for answer, weight in zip(answers, ballots, strict=True):
        if answer is not None:
            votes[answer].append(weight)
    # fsum: a sum must not depend on the order in which weights were added.
    totals = {answer: math.fsum(each) for answer, each in votes.items()}
    wins = highest(totals.values())
    winners = [answer for answer, won in zip(totals, wins, strict=True) if won]
    return {answer: 1 / len(winners) for answer in winners}


def highest(values: Iterable[float]) -> list[bool]:
    """Return for each number, >= 0, whether it is the highest or tied with it: see `TIE`."""
    given = list(values)
    enough = max(given, default=0.0) * (1.0 - TIE)
    return [value >= enough for value in given]


def majority_at_k(
    answers: Sequence[AnswerT | None],
    gold: AnswerT,
    k: int,
    *,
    rng: np.random.Generator,
    draws: int = VOTE_DRAWS,
) -> float:
    """Return maj@k of one problem: the chance that the vote of k completions elects the gold one.

        maj@k = E over subsets S of size k  [ elect(a_S)[gold] ]

    With k = n there is one subset and the value is exact: 1 if gold is the only winner, 1/m if it
    ties with m - 1 others, else 0. With k < n the expectation is the average over `draws` random
    subsets taken without replacement.

    Args:
        answers: one equivalence class for each completion, None where none could be read, n long.
        gold: the class that correct answers are in.
        k: completions that vote, 1 <= k <= n.
        rng: used only where k < n.
        draws: subsets averaged where k < n.

    Raises:
        ValueError: k is out of range.

    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs 1 <= k <= samples; there are {len(answers)} samples")
    if k == len(answers):
        return elect(answers).get(gold, 0.0)
    subsets = rng.permuted(np.tile(np.arange(len(answers)), (draws, 1)), axis=1)[:, :k]
    chances = (elect([answers[i] for i in subset]).get(gold, 0.0) for subset in subsets.tolist())
    return math.fsum(chances) / draws


def bootstrap_interval(
    values_P: ArrayLike,
    *,
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
    groups_P: ArrayLike | None = None,
) -> Interval:
    """Return the percentile bootstrap interval of the mean over problems.

    Draw P problems with replacement, take the mean, `resamples` times; the interval runs from the
    (1 - level) / 2 to the (1 + level) / 2 quantile of these means. Problems are what is resampled,
    since the completions of one problem are not independent of each other.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7
    (1979).

    Args:
        values_P: one finite value for each problem, [P] with P >= 1.
        resamples: resamples of the problems.
        rng: the only source of randomness.
        level: coverage aimed at.
        groups_P: what each problem belongs to, [P]: problems that depend on each other, such as
            checks of one question's solutions. Groups are then resampled, and the mean is over the
            problems of those drawn. By default each problem by itself.

    Raises:
        ValueError: no problems, or a value that is not finite.

    """
    means = _resampled_means(_checked(values_P), resamples, rng, groups_P)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a_P: ArrayLike,
    b_P: ArrayLike,
    *,
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
    groups_P: ArrayLike | None = None,
) -> tuple[float, Interval]:
    """Return mean(a) - mean(b) over the same problems, and its percentile bootstrap interval.

    d_p = a_p - b_p is resampled over problems: what makes a problem hard for both models cancels,
    so the interval is narrower than that of two separate evaluations. Two models with the same
    values have difference 0 and interval (0, 0), exactly.

    Args:
        a_P: one value for each problem, [P].
        b_P: the other model's value for the same problem, [P].
        resamples: resamples of the problems.
        rng: the only source of randomness.
        level: coverage aimed at.
        groups_P: as for `bootstrap_interval`.

    Raises:
        ValueError: the two have unequal numbers of problems, none, or a value that is not finite.

    """
    a, b = _checked(a_P), _checked(b_P)
    if a.shape != b.shape:
        raise ValueError(f"paired values need the same problems; found {len(a)} and {len(b)}")
    interval = bootstrap_interval(
        a - b, resamples=resamples, rng=rng, level=level, groups_P=groups_P
    )
    return float((a - b).mean()), interval


def _checked(values_P: ArrayLike) -> Floats:
    values = np.asarray(values_P, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError("a mean over problems needs one finite value for each of 1 or more")
    return values


def _resampled_means(
    values_P: Floats, resamples: int, rng: np.random.Generator, groups_P: ArrayLike | None
) -> Floats:
    members: Floats = np.ones_like(values_P)
    sums, counts = values_P, members
    if groups_P is not None:
        _, group_P = np.unique(np.asarray(groups_P), return_inverse=True)
        sums = np.bincount(group_P, values_P).astype(np.float64)
        counts = np.bincount(group_P, members).astype(np.float64)
    # All resamples at once would be 100 MB for 5,000 problems, so go in blocks.
    block = max(1, 2_000_000 // len(sums))
    means = []
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), len(sums))
        drawn = rng.integers(len(sums), size=size)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
