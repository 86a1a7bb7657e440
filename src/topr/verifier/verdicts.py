"""Sampled checks to a score for each candidate, and how good the scores are. No model runs here."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topr.evaluation.scoring import sample_rows
from topr.grading.check import read_verdict, verdict_place
from topr.metrics import Interval
from topr.verifier.votes import balanced_accuracy, calibration_error, roc_auc

if TYPE_CHECKING:  # it takes seconds to import, and nothing here runs it
    from transformers import PreTrainedTokenizerBase

CHECK_COLUMNS = ("problem_id", "completion", "completion_ids", "logprobs", "gold", "sampling")
"""The columns of checks that are read."""

ROWS = 4096
"""Checks that are taken out of Arrow at a time."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a candidate's checks say of it."""

    checks: int
    yes: float
    """Share of all checks whose verdict is Yes."""
    invalid: float
    """Share of all checks without a readable verdict."""
    probability: float
    """Of Yes at the verdict, after one reasoning: mean over the readable checks. NaN where there
    are none, or where log-probabilities were not recorded."""

    @property
    def no(self) -> float:
        """Share of all checks whose verdict is No."""
        return max(0.0, 1.0 - self.yes - self.invalid)


def scores(checks: pa.Table, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Score]:
    """Return the score of each candidate, by the id of its check; greedy checks are left out.

    P(Yes) of one check is exp(log-probability) of its verdict where that is Yes, and one less that
    where it is No: the sampled distribution is taken to have no third word there. A greedy check
    has none.

    Args:
        checks: rollouts of a verifier with `CHECK_COLUMNS`.
        tokenizer: the verifier's, to find the verdict's tokens.

    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    found: dict[str, list[tuple[str | None, float]]] = {}
    checks = checks.filter(pa.array(sample_rows(checks)))
    for batch in checks.select(CHECK_COLUMNS).to_batches(max_chunksize=ROWS):
        for row in batch.to_pylist():
            found.setdefault(row["problem_id"], []).append(_read(row, decode))
    return {name: _score(verdicts) for name, verdicts in found.items()}


def verdict_logprob(
    ids: Sequence[int], logprobs: Sequence[float], decode: Decode
) -> tuple[str, float] | None:
    """Return a check's last verdict and the log-probability of its tokens; None without one.

    Args:
        ids: the completion's tokens.
        logprobs: one each.
        decode: from ids to text; more ids give no less text.

    """
    text = decode(ids)
    place = verdict_place(text)
    if place is None:
        return None

    def reaches(length: int) -> Callable[[int], bool]:
        return lambda count: len(decode(ids[:count])) >= length

    counts = range(len(ids) + 1)
    first = bisect_left(counts, True, key=reaches(place[0] + 1)) - 1
    end = bisect_left(counts, True, key=reaches(place[1]))
    return text[slice(*place)].capitalize(), math.fsum(logprobs[first:end])


def verdict_metrics(
    by_check: Mapping[str, Score],
    right: Mapping[str, bool],
    question: Mapping[str, str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how good scores are, with 95 % intervals over questions.

    Keys: `candidates`, `questions`, `right_share`; `accuracy` (an invalid verdict is wrong),
    `balanced_accuracy`, `auc` (of the share of Yes), `calibration_error` (of P(Yes)) and `invalid`.
    One that is not defined is left out.

    Args:
        by_check: score of each candidate.
        right: whether it is right; candidates that are not named are left out.
        question: what the candidate answers: intervals resample these.
        resamples: of the questions.
        seed: of the intervals.

    """
    names = [name for name in by_check if name in right]
    if not names:
        return {"candidates": 0, "questions": 0}
    truth = np.array([right[name] for name in names])
    found = [by_check[name] for name in names]
    yes = np.array([score.yes for score in found])
    agreement = np.array([s.yes if r else s.no for s, r in zip(found, truth, strict=True)])
    probability = np.array([score.probability for score in found])
    known = ~np.isnan(probability)
    invalid = np.array([score.invalid for score in found])
    _, group = np.unique([question[name] for name in names], return_inverse=True)
    measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "accuracy": lambda i: float(agreement[i].mean()),
        "balanced_accuracy": lambda i: balanced_accuracy(agreement[i], truth[i]),
        "auc": lambda i: roc_auc(yes[i], truth[i]),
        "calibration_error": lambda i: calibration_error(
            probability[i[known[i]]], truth[i[known[i]]]
        ),
        "invalid": lambda i: float(invalid[i].mean()),
    }
    metrics: dict[str, Any] = {
        "candidates": len(names),
        "questions": int(group.max()) + 1,
        "right_share": float(truth.mean()),
    }
    everything = np.arange(len(names))
    known_measures = {k: m for k, m in measures.items() if not math.isnan(m(everything))}
    again: dict[str, list[float]] = {name: [] for name in known_measures}
    for index in _resampled(group, resamples, np.random.default_rng(seed)):
        for name, measure in known_measures.items():
            again[name].append(measure(index))
    for name, measure in known_measures.items():
        metrics[name] = measure(everything)
        metrics[f"{name}_ci"] = _interval(again[name])
    return metrics


def _read(row: Mapping[str, Any], decode: Decode) -> tuple[str | None, float]:
    if row["logprobs"] is None or row["sampling"]["temperature"] == 0:
        # A greedy check has no chance: its log-probabilities are recorded as 0.
        return read_verdict(row["completion"]), math.nan
    found = verdict_logprob(row["completion_ids"], row["logprobs"], decode)
    if found is None:
        return None, math.nan
    verdict, logprob = found
    chance = math.nan if math.isnan(logprob) else math.exp(min(0.0, logprob))
    return verdict, chance if verdict == "Yes" else 1.0 - chance


def _score(verdicts: Sequence[tuple[str | None, float]]) -> Score:
    known = [chance for _, chance in verdicts if not math.isnan(chance)]
    return Score(
        checks=len(verdicts),
        yes=sum(verdict == "Yes" for verdict, _ in verdicts) / len(verdicts),
        invalid=sum(verdict is None for verdict, _ in verdicts) / len(verdicts),
        probability=math.fsum(known) / len(known) if known else math.nan,
    )


def _resampled(
    group_N: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the candidates of questions drawn with replacement, `resamples` times."""
    members = [np.flatnonzero(group_N == g) for g in range(int(group_N.max()) + 1)]
    for _ in range(resamples):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
