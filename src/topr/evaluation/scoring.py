"""Graded rollouts to metrics: a pure function of a table. No model, no grader, no files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from topr.errors import DataError
from topr.grading.numbers import read_exactly
from topr.grading.tables import truncated
from topr.metrics import Floats, bootstrap_interval, majority_at_k, pass_at_k, problem_means
from topr.records import SAYS_NOTHING, EvalResult, Outcome

_NEEDED = ("problem_id", "grade", "answer")
SCORED_COLUMNS = (*_NEEDED, "completion_ids", "finish_reason", "sampling")
"""The columns of the rollout table that `score` reads. Rows of other tools may lack the last three:
then there is no `mean_length` and no `truncated`, and every row is a sample."""

AnswerClass = tuple[bool, str]

GOLD: AnswerClass = (True, "")
"""The class of all correct answers, however they are written. No wrong answer is in it."""


def score(
    table: pa.Table,
    *,
    name: str,
    iteration: int,
    model: str,
    split: str,
    pass_at: Sequence[int] = (1, 4, 16),
    resamples: int = 2000,
    seed: int = 0,
    group_of: Callable[[str], str] | None = None,
) -> EvalResult:
    """Turn graded rollouts into metrics. The same table and seed give the same result.

    Rows sampled at temperature 0 are the greedy decodings, all others the samples; where every row
    is greedy, they are both. A problem is left out of every rate, and counted in `unscored`, if
    nothing can be said of one of its samples (its gold answer cannot be read, or the user's
    function returned None) or if it has none. A truncated completion counts as wrong, also where
    training leaves it out.

    For maj@n all correct completions are one class. Wrong ones are in the same class if their
    extracted answers are the same number, or else the same text but for white space. A completion
    without a readable answer does not vote; what a truncated one says is a wrong answer. Where
    problems differ in their number of samples, n is the smallest.

    Args:
        table: rollouts with `SCORED_COLUMNS`; the problems' order of appearance is kept.
        name: the model's name in tables.
        iteration: of the loop.
        model: its path or hub name.
        split: which problems these are.
        pass_at: the k of pass@k; pass@1 is always there, a k above n is left out.
        resamples: of the problems, for the intervals.
        seed: of the intervals (and of maj@n where problems differ in their number of samples).
        group_of: from a problem's id to the name of what depends on it too, such as the question
            whose solutions are checked: intervals are then over groups. None: over problems.

    Raises:
        DataError: a column is missing, rows are not graded, or no problem can be scored.

    """
    rows = _read(table)
    values = _values(rows, pass_at, np.random.default_rng(seed))
    groups = None if group_of is None else np.array([group_of(id_) for id_ in rows.ids])
    metrics = _means(rows, values, groups, resamples, seed)
    return EvalResult(
        name=name,
        iteration=iteration,
        model=model,
        split=split,
        metrics=metrics | {"unscored": int((~rows.scored_P).sum())},
        per_problem=_per_problem(rows, values, groups),
    )


def _means(
    rows: "_Rows", values: Mapping[str, Floats], groups: Any, resamples: int, seed: int
) -> dict[str, Any]:
    """Return each value's mean over problems, and its interval."""
    metrics: dict[str, Any] = {}
    for key, values_P in values.items():
        has_P = rows.scored_P & ~np.isnan(values_P)
        known_P = values_P[has_P]
        if len(known_P):
            metrics[key] = float(known_P.mean())
            # A generator for each: an interval does not depend on which other metrics there are.
            metrics[f"{key}_ci"] = bootstrap_interval(
                known_P,
                resamples=resamples,
                rng=np.random.default_rng(seed),
                groups_P=None if groups is None else groups[has_P],
            )
    return metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """The columns as arrays, and what follows from them for each problem."""

    ids: Sequence[str]
    """[P] problem ids."""
    problem_N: NDArray[np.int64]
    outcome_N: NDArray[np.object_]
    answer_N: NDArray[np.object_]
    unreadable_N: NDArray[np.bool_]
    """Whether it has no readable answer, truncated or not."""
    counted: Mapping[str, NDArray[Any]]
    """Of each row, by metric: whether it is truncated, and its tokens; where that is known."""
    sample_N: NDArray[np.bool_]
    """Whether it is one of the samples."""
    greedy_N: NDArray[np.bool_]
    samples_P: NDArray[np.int64]
    correct_P: NDArray[np.int64]
    scored_P: NDArray[np.bool_]
    """Whether something can be said of every sample of the problem."""

    @property
    def n(self) -> int:
        """Samples that every scored problem has."""
        return int(self.samples_P[self.scored_P].min())


def _read(table: pa.Table) -> _Rows:
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise DataError(
            f"no column {', '.join(missing)} among {', '.join(table.column_names)}: expected "
            "graded rollouts. Import completions of other tools with `topr import`, then grade them"
        )
    outcome_N = np.array(table["grade"].to_pylist(), dtype=object)
    ungraded = int(sum(outcome is None for outcome in outcome_N))
    if ungraded or len(outcome_N) == 0:
        raise DataError(
            f"{ungraded} of {len(outcome_N)} completions have no grade: expected one or more, all "
            "graded. Run `topr grade` on them first"
        )
    unread_N = pc.is_null(table["answer"]).to_numpy()
    if unread_N.all():  # a grader that reads no answers, such as a user's function
        unread_N = np.zeros_like(unread_N)
    truncated_unread_N = (outcome_N == Outcome.TRUNCATED) & unread_N
    encoded = pa.chunked_array(table["problem_id"]).combine_chunks().dictionary_encode()
    problem_N = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    sample_N, greedy_N = sample_rows(table), _greedy_rows(table)
    problems = len(encoded.dictionary)

    def count(mask_N: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(problem_N[sample_N & mask_N], minlength=problems)

    samples_P = count(sample_N)
    scored_P = (samples_P > 0) & (count(np.isin(outcome_N, SAYS_NOTHING)) == 0)
    if not scored_P.any():
        raise DataError(
            f"none of {problems} problems can be scored: each has a completion whose grade is one "
            f"of {', '.join(SAYS_NOTHING)}. Look at the gold answers and at the grader"
        )
    return _Rows(
        ids=encoded.dictionary.to_pylist(),
        problem_N=problem_N,
        outcome_N=outcome_N,
        answer_N=np.array(table["answer"].to_pylist(), dtype=object),
        unreadable_N=(outcome_N == Outcome.UNPARSEABLE) | truncated_unread_N,
        counted=_counted(table),
        sample_N=sample_N,
        greedy_N=greedy_N,
        samples_P=samples_P,
        correct_P=count(outcome_N == Outcome.CORRECT),
        scored_P=scored_P,
    )


def sample_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Return which rows count as samples: greedy ones only where there are no others."""
    greedy_N = _greedy_rows(table)
    return np.ones_like(greedy_N) if greedy_N.all() else ~greedy_N


def _greedy_rows(table: pa.Table) -> NDArray[np.bool_]:
    sampling = _kind(table, "sampling")
    if sampling is None or sampling.get_field_index("temperature") < 0:
        return np.zeros(len(table), dtype=np.bool_)
    found: NDArray[np.bool_] = pc.struct_field(table["sampling"], "temperature").to_numpy() == 0
    return found


def _kind(table: pa.Table, name: str) -> pa.DataType | None:
    """Return the type of a column; None where it is not there, or has nulls alone."""
    there = name in table.column_names and table[name].null_count < len(table)
    return table[name].type if there else None


def _counted(table: pa.Table) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if _kind(table, "finish_reason"):
        found["truncated"] = np.array(truncated(table), dtype=bool)
    if _kind(table, "completion_ids"):
        found["mean_length"] = pc.list_value_length(table["completion_ids"]).to_numpy()
    return found


def _values(rows: _Rows, pass_at: Sequence[int], rng: np.random.Generator) -> dict[str, Floats]:
    """Return each metric's value for every problem, by its key; NaN where it has none."""
    problems, n = len(rows.ids), rows.n

    def mean(values_N: NDArray[Any], of_N: NDArray[np.bool_]) -> Floats:
        return problem_means(values_N[of_N], rows.problem_N[of_N], problems)

    def spread(scored_values: Floats) -> Floats:
        values_P: Floats = np.full(problems, np.nan)
        values_P[rows.scored_P] = scored_values
        return values_P

    samples, correct = rows.samples_P[rows.scored_P], rows.correct_P[rows.scored_P]
    return {
        **{
            f"pass@{k}": spread(pass_at_k(samples, correct, k))
            for k in sorted({1, *pass_at})
            if k <= n
        },
        f"maj@{n}": spread(_majorities(rows, n, rng)),
        "greedy": mean(rows.outcome_N == Outcome.CORRECT, _first_greedy(rows)),
        "invalid": mean(rows.unreadable_N, rows.sample_N),
        **{name: mean(counted_N, rows.sample_N) for name, counted_N in rows.counted.items()},
    }


def _first_greedy(rows: _Rows) -> NDArray[np.bool_]:
    """Return which row is its problem's greedy decoding; none where nothing can be said of it."""
    greedy = np.flatnonzero(rows.greedy_N)
    _, first = np.unique(rows.problem_N[greedy], return_index=True)
    mask_N = np.zeros_like(rows.greedy_N)
    mask_N[greedy[first]] = True
    return mask_N & ~np.isin(rows.outcome_N, SAYS_NOTHING)


def _majorities(rows: _Rows, n: int, rng: np.random.Generator) -> Floats:
    """Return maj@n of the scored problems."""
    classes: list[list[AnswerClass | None]] = [[] for _ in rows.ids]
    for row in np.flatnonzero(rows.sample_N):
        classes[rows.problem_N[row]].append(answer_class(rows.outcome_N[row], rows.answer_N[row]))
    return np.array(
        [
            majority_at_k(classes[problem], GOLD, n, rng=rng)
            for problem in np.flatnonzero(rows.scored_P)
        ]
    )


@lru_cache(maxsize=100_000)
def answer_class(outcome: str, answer: str | None) -> AnswerClass | None:
    """Return what a completion votes for; None where it does not vote."""
    if outcome == Outcome.CORRECT:
        return GOLD
    if outcome not in (Outcome.WRONG, Outcome.TRUNCATED) or answer is None:
        return None
    number = read_exactly(answer)
    return (False, " ".join(answer.split()) if number is None else str(number))


def _per_problem(
    rows: _Rows, values: dict[str, Floats], groups: NDArray[np.str_] | None
) -> tuple[dict[str, Any], ...]:
    majority_P, greedy_P = values[f"maj@{rows.n}"], values["greedy"]
    return tuple(
        {
            "problem_id": id_,
            **({} if groups is None else {"group": str(groups[p])}),
            "samples": int(rows.samples_P[p]),
            "correct": int(rows.correct_P[p]) if rows.scored_P[p] else None,
            "majority": float(majority_P[p]) if rows.scored_P[p] else None,
            "greedy": (
                int(greedy_P[p]) if rows.scored_P[p] and not np.isnan(greedy_P[p]) else None
            ),
        }
        for p, id_ in enumerate(rows.ids)
    )
