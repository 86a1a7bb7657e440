"""Scored candidates to votes: majority, weighted by score, best of n, and the oracle above them.

A function of a table; the formulas are in `topr.verifier.votes`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from topr.errors import DataError
from topr.evaluation.scoring import GOLD, AnswerClass, answer_class, sample_rows
from topr.interop import ColumnMap
from topr.metrics import Interval, bootstrap_interval, paired_difference
from topr.records import SAYS_NOTHING, Outcome
from topr.verifier.votes import METHODS, Ballot, roc_auc, votes_at_k

SCORE = "verifier_score"
"""Column that `topr verify` writes: the share of checks that say Yes."""
VOTE_COLUMNS = ("problem_id", "sampling", "grade", "answer")
"""The columns of graded rollouts that vote, in addition to that of the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """What the candidates of all problems elect."""

    score: str
    """The column of the scores."""
    problems: int
    left_out: int
    """Problems of which nothing can be said, or with too few candidates."""
    unscored: int
    """Candidates without a score: no check of theirs had a verdict. They weigh nothing."""
    at: tuple[int, ...]
    """Numbers of candidates: 1, 2, 4, ..., and all."""
    values: dict[str, dict[int, tuple[float, Interval]]]
    """By method and number of candidates: chance to be right, and its interval over problems."""
    differences: dict[str, dict[int, tuple[float, Interval]]]
    """The same less plain majority, paired by problem, of `weighted` and `best`."""
    auc_within: tuple[float, Interval] | None
    """Chance that a right candidate has a higher score than a wrong one of the same problem, ties
    half: the mean over problems that have both, and its interval; None where none has."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values under documented keys: `weighted@8`, `weighted@8_ci`, ..."""
        values: dict[str, Any] = {}
        for found, suffix in ((self.values, ""), (self.differences, " - majority")):
            for method, by_k in found.items():
                for k, (value, interval) in by_k.items():
                    values[f"{method}@{k}{suffix}"] = value
                    values[f"{method}@{k}{suffix}_ci"] = list(interval)
        if self.auc_within is not None:
            values["auc_within"], interval = self.auc_within
            values["auc_within_ci"] = list(interval)
        return {
            "score": self.score, "problems": self.problems, "left_out": self.left_out,
            "unscored": self.unscored, "at": list(self.at), **values,
        }  # fmt: skip


def _chances(ballots: Sequence[Ballot[Any]], k: int, seed: int) -> list[dict[str, float]]:
    """Return each problem's chance to be right by a vote of k candidates, by method."""
    rng = np.random.default_rng((seed, k))
    return [votes_at_k(ballot, k, rng=rng) for ballot in ballots]


def vote(
    table: pa.Table,
    *,
    score: str = SCORE,
    problem: str | None = None,
    candidates: int | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Votes:
    """Let each problem's candidates vote. The same table and seed give the same result.

    Candidates at temperature 0 are left out where there are others. A truncated one counts as
    wrong, as in an evaluation.

    Args:
        table: graded completions: `grade`, `answer`, and scores.
        score: column of numbers >= 0, bools, or rewards of +1 and -1, which count as 1 and 0.
        problem: column that names the problem; defaults to its usual names.
        candidates: of each problem that vote. Problems with fewer are left out, of more a random
            choice votes. Defaults to as many as most problems have.
        resamples: of the problems, for the intervals.
        seed: of the intervals and of the subsets that vote.

    Raises:
        DataError: a column is missing, a score is null or negative, or nothing is graded.

    """
    everything, unknown = _ballots(table, score, problem)
    counts = Counter(len(ballot.answers) for ballot in everything)
    n = candidates or max(counts, key=lambda count: (counts[count], count))
    rng = np.random.default_rng(seed)
    ballots = [_some(ballot, n, rng) for ballot in everything if len(ballot.answers) >= n]
    if not ballots:
        raise DataError(
            f"no problem has {n} candidates; they have {min(counts)} to {max(counts)}: ask for "
            "fewer (--candidates)"
        )
    at = sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})
    chances = {k: _chances(ballots, k, seed) for k in at}

    def mean(method: str, k: int) -> tuple[float, Interval]:
        of = [found[method] for found in chances[k]]
        rng = np.random.default_rng(seed)
        return float(np.mean(of)), bootstrap_interval(of, resamples=resamples, rng=rng)

    def gain(method: str, k: int) -> tuple[float, Interval]:
        of, plain = ([found[name] for found in chances[k]] for name in (method, "majority"))
        rng = np.random.default_rng(seed)
        return paired_difference(of, plain, resamples=resamples, rng=rng)

    return Votes(
        score=score,
        problems=len(ballots),
        left_out=unknown + len(everything) - len(ballots),
        unscored=table.column(score).null_count,
        at=tuple(at),
        values={method: {k: mean(method, k) for k in at} for method in METHODS},
        differences={m: {k: gain(m, k) for k in at} for m in ("weighted", "best")},
        auc_within=_auc_within(ballots, resamples, np.random.default_rng(seed)),
    )


def _auc_within(
    ballots: Sequence[Ballot[AnswerClass]], resamples: int, rng: np.random.Generator
) -> tuple[float, Interval] | None:
    found = np.array([roc_auc(ballot.scores, ballot.right) for ballot in ballots])
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    return float(found.mean()), bootstrap_interval(found, resamples=resamples, rng=rng)


def _ballots(
    table: pa.Table, score: str, problem: str | None
) -> tuple[list[Ballot[AnswerClass]], int]:
    for name in ("grade", "answer", score):
        if name not in table.column_names:
            advice = "grade them first (`topr grade`)"
            if name == score:
                advice = "write scores with `topr verify`, or name their column (--score)"
            raise DataError(f"no column {name!r} among {', '.join(table.column_names)}: {advice}")
    named = ColumnMap(problem_id=problem).resolve(table, required=("problem_id",)).problem_id
    outcomes = table.column("grade").to_pylist()
    if None in outcomes:
        raise DataError(f"{outcomes.count(None)} of {len(outcomes)} candidates have no grade")
    numbers = _scores(table, score)
    rows: dict[Any, list[int]] = {}
    names = table.column(str(named)).to_pylist()
    for i in np.flatnonzero(sample_rows(table)).tolist():
        rows.setdefault(names[i], []).append(i)
    answers = table.column("answer").to_pylist()
    ballots = []
    for indices in rows.values():
        if any(outcomes[i] in SAYS_NOTHING for i in indices):
            continue
        ballots.append(
            Ballot(
                answers=[answer_class(outcomes[i], answers[i]) for i in indices],
                right=[outcomes[i] == Outcome.CORRECT for i in indices],
                scores=[numbers[i] for i in indices],
                gold=GOLD,
            )
        )
    if not ballots:
        raise DataError("of no problem it can be said what is right: look at the gold answers")
    return ballots, len(rows) - len(ballots)


def _scores(table: pa.Table, score: str) -> list[float]:
    values: Sequence[Any] = table.column(score).to_pylist()
    rewards = set(values) <= {1.0, -1.0} and -1.0 in values
    numbers = []
    for row, value in enumerate(values, start=1):
        if value is None or value != value:  # no check had a verdict: it weighs nothing
            numbers.append(0.0)
            continue
        number = float("nan") if isinstance(value, str) else float(value)
        number = (number + 1) / 2 if rewards else number
        if not 0 <= number < float("inf"):
            raise DataError(
                f"row {row}: column {score} holds {value!r}, expected a number of 0 or more: the "
                "weight of a vote"
            )
        numbers.append(number)
    return numbers


def _some(ballot: Ballot[AnswerClass], n: int, rng: np.random.Generator) -> Ballot[AnswerClass]:
    """Return a ballot of n candidates, chosen at random where there are more."""
    count = len(ballot.answers)
    if count == n:
        return ballot
    chosen = sorted(rng.choice(count, size=n, replace=False).tolist())
    return Ballot(
        answers=[ballot.answers[i] for i in chosen],
        right=[ballot.right[i] for i in chosen],
        scores=[ballot.scores[i] for i in chosen],
        gold=ballot.gold,
    )
