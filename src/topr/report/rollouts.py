"""Stored completions, cut down to what the report's browser shows. No grading, no metrics."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from topr.report.text import align_tokens, clip, visible
from topr.store import stream_tables

EVALUATION_PROBLEMS = 30
"""Problems shown of an evaluation in their order, and as many that became right and that became
wrong: enough to get a feeling, few enough for a page."""
TRAINING_PROBLEMS = 160
"""Problems shown of the training examples, which have few completions each."""
SAMPLES = 16
"""Sampled completions shown of one problem; greedy ones come on top."""
COMPLETION_CHARACTERS = 4000
PROMPT_HEAD, PROMPT_TAIL = 400, 3600  # the question is at the end, after the worked examples
TOKENS = 1000

_COLUMNS = (
    "problem_id", "sample", "prompt", "question", "completion", "completion_ids", "finish_reason",
    "sampling", "gold", "grade", "reward", "answer",
)  # fmt: skip
_TOKEN_COLUMNS = ("tokens", "behavior_logprobs", "policy_logprobs")
_USER_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|)user(?:<\|end_header_id\|>|\|>)?"
    r"\s*(.*?)\s*(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>|<\||$)"
    r"|\[INST\]\s*(.*?)\s*(?:\[/INST\]|$)",
    re.DOTALL,
)
"""A user's turn as ChatML, Llama, Gemma, Phi and Mistral write it."""

Weigh = Callable[[Mapping[str, Any]], tuple[float, str] | None]
"""From a training example to the weight of its completion and the reason for it."""


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
    weight: float | None
    why: str
    """Where the weight comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemView:
    """One problem with its completions."""

    problem_id: str
    question: str
    """What is asked: the task's own words, else the user's last turn."""
    prompt: str
    """The whole prompt, where it says more than the question."""
    gold: str | None
    right: bool | None
    """Whether the model solves it; None where it was not scored."""
    share: float | None
    """Of its sampled completions that are right."""
    completions: tuple[Completion, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One set of completions to browse: an evaluation, or the examples of a training."""

    label: str
    problems: tuple[ProblemView, ...]
    problems_total: int
    completions_total: int


def read_source(
    files: Sequence[Path],
    *,
    label: str,
    chosen: Sequence[str] = (),
    results: Mapping[str, tuple[bool, float]] | None = None,
    tokens: bool = False,
    weigh: Weigh | None = None,
) -> Source:
    """Read some problems of a rollout table.

    Args:
        files: parquet files of the rollout schema.
        label: what the browser calls it.
        chosen: ids of the problems to show, in order; defaults to the first `TRAINING_PROBLEMS`.
        results: of each problem whether it is solved, and the share of right samples.
        tokens: read the token columns, which training examples have.
        weigh: what a training example's completion weighs.

    Raises:
        DataError: not rollout tables.

    """
    ids = [i for table in stream_tables(files, ["problem_id"]) for i in table[0].to_pylist()]
    present = dict.fromkeys(ids)
    shown = [i for i in chosen if i in present] or list(present)[:TRAINING_PROBLEMS]
    grouped: dict[str, list[dict[str, Any]]] = {problem_id: [] for problem_id in shown}
    for table in stream_tables(files, _COLUMNS + (_TOKEN_COLUMNS if tokens else ())):
        wanted = table.filter(pc.field("problem_id").isin(shown))
        for row in _with_length(wanted).to_pylist():
            grouped[row["problem_id"]].append(row)
    return Source(
        label=label,
        problems=tuple(
            _problem(i, grouped[i], (results or {}).get(i, (None, None)), weigh) for i in shown
        ),
        problems_total=len(present),
        completions_total=len(ids),
    )


def question_of(row: Mapping[str, Any]) -> str:
    """Return what is asked: the stored question, the user's last turn, or the last paragraph.

    >>> question_of({"prompt": "<|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n"})
    '1+1?'
    """
    if row.get("question"):
        return str(row["question"])
    turns = [first or second for first, second in _USER_TURN.findall(row["prompt"])]
    if turns and turns[-1].strip():
        return str(turns[-1])
    return str(row["prompt"].strip().split("\n\n")[-1])


def _with_length(rows: pa.Table) -> pa.Table:
    length = pc.list_value_length(rows["completion_ids"])
    return rows.drop_columns(["completion_ids"]).append_column("length", length)


def _problem(
    problem_id: str,
    rows: list[dict[str, Any]],
    result: tuple[bool | None, float | None],
    weigh: Weigh | None,
) -> ProblemView:
    found = (_completion(row, weigh) for row in rows)
    completions = sorted(found, key=lambda c: (not c.greedy, c.sample))
    greedy = sum(completion.greedy for completion in completions)
    prompt, question = rows[0]["prompt"], question_of(rows[0])
    whole = "" if prompt.strip() == question.strip() else prompt
    return ProblemView(
        problem_id=visible(problem_id),
        question=clip(visible(question), head=PROMPT_HEAD, tail=PROMPT_TAIL),
        prompt=clip(visible(whole), head=PROMPT_HEAD, tail=PROMPT_TAIL),
        gold=_clipped(rows[0].get("gold")),
        right=result[0],
        share=result[1],
        completions=tuple(completions[: greedy + SAMPLES]),
    )


def _completion(row: dict[str, Any], weigh: Weigh | None) -> Completion:
    tokens, behavior, policy = _tokens(row)
    text = "" if tokens else clip(visible(row["completion"]), head=COMPLETION_CHARACTERS)
    weight, why = (weigh(row) if weigh and tokens else None) or (None, "")
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
        answer=_clipped(row.get("answer")),
        weight=weight,
        why=why,
    )


def _clipped(text: str | None) -> str | None:
    return None if text is None else clip(visible(text), head=400)


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
