"""What a verifier is for: which of a problem's candidates to believe. Pure functions.

And how good its scores are by themselves. Axis suffixes: `_N` candidates, `_P` problems.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from topr.metrics import VOTE_DRAWS, elect, highest, pass_at_k

AnswerT = TypeVar("AnswerT", bound=Hashable)

CALIBRATION_BINS = 10
METHODS = ("majority", "weighted", "best", "oracle")
"""Plain majority vote; vote weighted by score; the candidate with the highest score; pass@k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ballot(Generic[AnswerT]):
    """The candidates of one problem."""

    answers: Sequence[AnswerT | None]
    """One equivalence class each; None does not vote."""
    right: Sequence[bool]
    scores: Sequence[float]
    """Finite, >= 0."""
    gold: AnswerT
    """The class that right answers are in."""


def votes_at_k(
    ballot: Ballot[AnswerT], k: int, *, rng: np.random.Generator, draws: int = VOTE_DRAWS
) -> dict[str, float]:
    """Return the chance of each of `METHODS` to be right with k of a problem's candidates.

    The average over all subsets of k candidates or, where there are more than `draws`, over that
    many random ones; the same for all methods, so that they can be compared. Ties (sums or scores
    that agree to one in a million: `topr.metrics.TIE`) are broken at random. An answer that cannot
    be read votes under no method, but `best` may choose it.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168 (best
    of k); Wang et al., arXiv 2203.11171 (majority); Li et al., arXiv 2206.02336 (weighted).

    Args:
        ballot: n candidates.
        k: 1 <= k <= n.
        rng: used only where subsets are drawn.
        draws: subsets at most.

    Raises:
        ValueError: k is out of range.

    """
    n = len(ballot.answers)
    if not 1 <= k <= n:
        raise ValueError(f"a vote of {k} needs 1 <= k <= candidates; there are {n}")
    if math.comb(n, k) <= draws:
        subsets = [list(subset) for subset in combinations(range(n), k)]
    else:
        subsets = rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)[:, :k].tolist()
    totals = dict.fromkeys(METHODS, 0.0)
    for subset in subsets:
        answers = [ballot.answers[i] for i in subset]
        scores = [ballot.scores[i] for i in subset]
        totals["majority"] += elect(answers).get(ballot.gold, 0.0)
        totals["weighted"] += elect(answers, scores).get(ballot.gold, 0.0)
        totals["best"] += _best(scores, [ballot.right[i] for i in subset])
    chances = {method: total / len(subsets) for method, total in totals.items()}
    chances["oracle"] = float(pass_at_k([n], [sum(ballot.right)], k)[0])
    return chances


def _best(scores: Sequence[float], right: Sequence[bool]) -> float:
    chosen = [r for wins, r in zip(highest(scores), right, strict=True) if wins]
    return sum(chosen) / len(chosen)


def balanced_accuracy(agreement_N: ArrayLike, right_N: ArrayLike) -> float:
    """Return the mean of the agreement on right candidates and of that on wrong ones.

    Args:
        agreement_N: chance that a candidate's verdict agrees with the truth, in [0, 1].
        right_N: the truth, bools.

    Returns:
        NaN where all candidates are right, or all wrong.

    """
    agreement, right = np.asarray(agreement_N, dtype=np.float64), np.asarray(right_N, dtype=bool)
    if right.all() or not right.any():
        return math.nan
    return float((agreement[right].mean() + agreement[~right].mean()) / 2)


def roc_auc(score_N: ArrayLike, right_N: ArrayLike) -> float:
    """Return the chance that a right candidate has a higher score than a wrong one, ties half.

    Source: Hanley & McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", Radiology 143 (1982): the Mann-Whitney statistic.

    Returns:
        NaN where all candidates are right, or all wrong.

    """
    score, right = np.asarray(score_N, dtype=np.float64), np.asarray(right_N, dtype=bool)
    rights, wrongs = int(right.sum()), int((~right).sum())
    if not rights or not wrongs:
        return math.nan
    _, index, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = (ends - (counts - 1) / 2)[index]  # mean rank of equal scores, from 1
    return float((rank[right].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


def calibration_error(
    probability_N: ArrayLike, right_N: ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """Return the expected calibration error: sum over bins of (share of candidates) times
    |mean probability - share of right ones|.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3.

    Args:
        probability_N: of being right, in [0, 1].
        right_N: the truth, bools.
        bins: of equal width.

    Returns:
        NaN for no candidates.

    """
    probability = np.asarray(probability_N, dtype=np.float64)
    right = np.asarray(right_N, dtype=np.float64)
    if not len(probability):
        return math.nan
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    sums = np.bincount(place, probability - right, minlength=bins)
    return float(np.abs(sums).sum() / len(probability))
