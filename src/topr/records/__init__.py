"""The records that flow between the stages. No torch, no files, no policy.

    Problem --(engine)--> Rollout --(grader)--> Rollout with a Grade --(curation)--> training row

On disk a Rollout is one row of a parquet table: see `topr.store`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Split(StrEnum):
    """Which problems. They never overlap."""

    TRAIN = "train"
    """Rollouts are sampled and trained on."""
    VALIDATION = "validation"
    """Choices (learning rate, baseline, best iteration) are made on these."""
    TEST = "test"
    """Reported, never chosen on."""


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """The model wrote its end-of-sequence token, or a stop string."""
    LENGTH = "length"
    """The token limit cut it off: it has no end."""


class Outcome(StrEnum):
    """What grading found. Only CORRECT earns a positive reward."""

    CORRECT = "correct"
    """A readable answer that is equivalent to the gold answer."""
    WRONG = "wrong"
    """A readable answer that is not."""
    UNPARSEABLE = "unparseable"
    """No readable answer in the completion."""
    TRUNCATED = "truncated"
    """The token limit ended it, so it gave no answer, whatever it says: where `grade.truncated` is
    `wrong` or `drop`."""
    TIMEOUT = "timeout"
    """Grading it took more time or memory than it may; the worker was killed."""
    GOLD_UNPARSEABLE = "gold_unparseable"
    """The gold answer cannot be read, so nothing can be said: no reward at all."""
    UNSCORED = "unscored"
    """The user's own reward function returned None: no reward at all."""


SAYS_NOTHING = (Outcome.GOLD_UNPARSEABLE, Outcome.UNSCORED)
"""Outcomes that tell nothing about a completion."""


class Several(StrEnum):
    """What a list of several reference answers means."""

    REFUSE = "refuse"
    """It is an error: all of them together may be the answer."""
    ANY = "any"
    """Each is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a chat prompt.

    >>> Message(role="user", content="What is 2 + 2?")
    Message(role='user', content='What is 2 + 2?')
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question whose answer can be checked.

    >>> Problem(id="gsm8k-test-0007", prompt="Ann has 2 pens ...", answer="18").answer
    '18'
    """

    id: str
    """Unique within a task, over all its splits."""
    prompt: str | tuple[Message, ...]
    """The question as the model will see it: text as it stands (few-shot examples included),
    or chat messages for the tokenizer's chat template."""
    answer: str
    """The gold answer, as text."""
    question: str | None = None
    """What is asked, without examples or instructions; None: the prompt says just that."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the problem's source, for a user's own reward function."""
    escape_special_tokens: bool = False
    """The prompt holds what a model wrote: special tokens in its text are split by a space, so that
    it cannot end a turn or a text."""

    @property
    def asks(self) -> str:
        """The question alone, as text; of a chat without one, its last turn."""
        if self.question is not None:
            return self.question
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions are sampled. The distribution is softmax(logits / temperature), cut to its
    `top_k` likeliest tokens, then to the smallest set whose mass reaches `top_p`, renormalised.
    """

    temperature: float = 1.0
    """0 means greedy: the likeliest token, recorded with log-probability 0."""
    top_p: float = 1.0
    """1 means off."""
    top_k: int = 0
    """0 means off."""
    max_tokens: int = 512
    """Completion tokens at most, the end-of-sequence token included."""
    stop: tuple[str, ...] = ()
    """A completion ends at the first token that completes one of these strings. The string stays
    in the token ids (training reads them) and in the text."""
    seed: int = 0
    """With the problem's id and the sample's number it fixes the sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What grading says of one completion.

    >>> Grade(outcome=Outcome.CORRECT, reward=1.0, answer="18").reward
    1.0
    """

    outcome: Outcome
    reward: float | None
    """+1 correct, -1 any other completion; None where nothing can be said, and of truncated ones
    that are dropped. A user's function, and reasoning_gym's scores by choice, give other numbers
    too."""
    answer: str | None
    """The answer that was read in the completion, as text. Of a truncated one, what would have been
    compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One completion of one problem by one behaviour model."""

    problem_id: str
    sample: int
    """Number of this completion among those of its problem, from 0."""
    prompt: str
    """The text that was tokenised."""
    prompt_ids: tuple[int, ...]
    completion: str
    """For people and graders. Training reads the ids."""
    completion_ids: tuple[int, ...]
    """What the model wrote, its end-of-sequence token included where it wrote one."""
    logprobs: tuple[float, ...] | None
    """log mu of each completion token under the distribution that was sampled (temperature,
    top-k and top-p applied), natural logarithm, float32. None: not recorded."""
    finish_reason: FinishReason
    sampling: SamplingParams
    model: str
    """Name or path of the behaviour model."""
    revision: str | None
    """Commit of a hub model; fingerprint of a local one."""
    engine: str
    iteration: int
    gold: str | None = None
    """The problem's gold answer, so that rollouts can be graded on their own."""
    question: str | None = None
    """What the problem asks, without examples or instructions, for a verifier to be asked about.
    None: not recorded."""
    grade: Grade | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """What one evaluation of one model found."""

    name: str
    """The model's name in tables and in the summary: base, topr, sft, ..."""
    iteration: int
    model: str
    split: str
    metrics: Mapping[str, float | tuple[float, float] | int]
    """By documented key; a key ending in `_ci` holds a 95 % interval."""
    per_problem: tuple[Mapping[str, Any], ...]
    """Counts for each problem, in the task's order: what paired comparisons need."""
