"""Stored completions, cut down to what the report's browser shows. No grading, no metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from topr.report.text import align_tokens, clip, visible

EVALUATION_PROBLEMS = 40
"""Problems shown of one evaluation: enough to get a feeling, few enough for a page."""
TRAINING_PROBLEMS = 160
"""Problems shown of the training examples, which have few completions each."""
SAMPLES = 16
"""Sampled completions shown of one problem; greedy ones come on top."""
COMPLETION_CHARACTERS = 4000
PROMPT_HEAD, PROMPT_TAIL = 400, 3600  # the question is at the end, after the worked examples
TOKENS = 1000

_COLUMNS = (
    "problem_id", "sample", "prompt", "completion", "completion_ids", "finish_reason",
    "sampling", "gold", "grade", "reward", "answer",
)  # fmt: skip
_TOKEN_COLUMNS = ("tokens", "behavior_logprobs", "policy_logprobs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One card of the browser."""

    sample: int
    greedy: bool
    text: str
    """Visible and clipped; empty where there are tokens."""
    tokens: tuple[str, ...]
    """Visible pieces of a training example, with these log-probabilities (natural logarithm):"""
    behavior: tuple[float | None, ...]
    """log mu of each token."""
    policy: tuple[float | None, ...]
    """log pi of each token after training."""
    left_out: int
    """Tokens beyond those shown."""
    length: int
    """Tokens of the whole completion."""
    finish_reason: str
    grade: str | None
    reward: float | None
    answer: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemView:
    """One problem with its completions."""

    problem_id: str
    prompt: str
    gold: str | None
    completions: tuple[Completion, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One set of completions to browse: an evaluation, or the examples of a training."""

    label: str
    problems: tuple[ProblemView, ...]
    problems_total: int
    completions_total: int

    @property
    def completions_shown(self) -> int:
        """Number of cards over all problems."""
        return sum(len(problem.completions) for problem in self.problems)


def read_source(
    files: Sequence[Path], *, label: str, max_problems: int, order: Sequence[str] = ()
) -> Source:
    """Read the first `max_problems` problems of a rollout table.

    Args:
        files: parquet files of the rollout schema, with or without the token columns.
        label: what the browser calls it.
        max_problems: problems kept; only their rows are loaded.
        order: problem ids in the order to show; by default as they come.

    Raises:
        pa.ArrowException, OSError, KeyError: not rollout tables.

    """
    table = pads.dataset([str(path) for path in files], format="parquet")
    ids = table.to_table(columns=["problem_id"])["problem_id"]
    present = dict.fromkeys(ids.to_pylist())
    ordered = [i for i in dict.fromkeys(order) if i in present] or list(present)
    chosen = ordered[:max_problems]
    columns = [name for name in _COLUMNS + _TOKEN_COLUMNS if name in table.schema.names]
    rows = table.to_table(columns=columns, filter=pc.field("problem_id").isin(chosen))
    grouped: dict[str, list[dict[str, Any]]] = {problem_id: [] for problem_id in chosen}
    for row in _with_length(rows).to_pylist():
        grouped[row["problem_id"]].append(row)
    return Source(
        label=label,
        problems=tuple(_problem(problem_id, grouped[problem_id]) for problem_id in chosen),
        problems_total=len(present),
        completions_total=len(ids),
    )


def _with_length(rows: pa.Table) -> pa.Table:
    length = pc.list_value_length(rows["completion_ids"])
    return rows.drop_columns(["completion_ids"]).append_column("length", length)


def _problem(problem_id: str, rows: list[dict[str, Any]]) -> ProblemView:
    completions = sorted((_completion(row) for row in rows), key=lambda c: (not c.greedy, c.sample))
    greedy = sum(completion.greedy for completion in completions)
    gold = rows[0].get("gold")
    return ProblemView(
        problem_id=visible(problem_id),
        prompt=clip(visible(rows[0]["prompt"]), head=PROMPT_HEAD, tail=PROMPT_TAIL),
        gold=None if gold is None else clip(visible(gold), head=400),
        completions=tuple(completions[: greedy + SAMPLES]),
    )


def _completion(row: dict[str, Any]) -> Completion:
    tokens, behavior, policy = _tokens(row)
    answer = row.get("answer")
    text = "" if tokens else clip(visible(row["completion"]), head=COMPLETION_CHARACTERS)
    return Completion(
        sample=row["sample"],
        greedy=(row.get("sampling") or {}).get("temperature") == 0.0,
        text=text,
        tokens=tokens[:TOKENS],
        behavior=behavior[:TOKENS],
        policy=policy[:TOKENS],
        left_out=max(0, len(tokens) - TOKENS),
        length=row["length"],
        finish_reason=visible(row["finish_reason"]),
        grade=row.get("grade"),
        reward=row.get("reward"),
        answer=None if answer is None else clip(visible(answer), head=400),
    )


def _tokens(
    row: dict[str, Any],
) -> tuple[tuple[str, ...], tuple[float | None, ...], tuple[float | None, ...]]:
    """Pieces, log mu, log pi; nothing where they are not recorded for every token."""
    texts, behavior, policy = (row.get(name) or [] for name in _TOKEN_COLUMNS)
    if not len(texts) == len(behavior) == len(policy):
        return (), (), ()
    pieces = align_tokens(texts, row["completion"])
    return (
        tuple(clip(visible(piece), head=400) for piece in pieces),
        tuple(map(_rounded, behavior)),
        tuple(map(_rounded, policy)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
