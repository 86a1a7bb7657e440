"""What graded completions tell of the prompt, the token limit and the grader: whether most are
truncated or unreadable, or none is right. Counts and examples, as text; how to grade is elsewhere.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.config.sections import GradeConfig
from topr.grading.tables import grade_table, truncated
from topr.records import Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EXAMPLES = 2
TAIL = 160
"""Characters of a completion's end that are shown."""

LOOKED_AT = 64
"""Completions that are graded while others are still sampled."""

Read = Callable[[Sequence[str]], Iterable[pa.Table]]
"""From names of columns to tables with these columns; it may be called several times."""


class Concern(Enum):
    """Why training on completions would be of little use: what it is, the likeliest cause first."""

    TRUNCATED = "most completions are truncated"
    UNREADABLE = "most completions have no answer that the grader can read"
    NONE_RIGHT = "no completion is right (has a reward above 0)"


ADVICE = {
    Concern.TRUNCATED: "raise generate.max_tokens, or ask for shorter answers (task.instruction)",
    Concern.UNREADABLE: "say how an answer ends (task.instruction, or task.template of the tasks "
    "jsonl and verifier), show examples (task.few_shot), try the other task.prompt, or take a "
    "grader that reads what is written",
    Concern.NONE_RIGHT: "look at the gold answers and the grader; sample more (generate.n, more "
    "problems), take easier problems or a stronger model",
}
"""What to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What graded completions look like.

    >>> Survey(rows=8, truncated=5, unreadable=4, rewarded=8, right=1).concerns
    (<Concern.TRUNCATED: 'most completions are truncated'>,)
    """

    rows: int
    truncated: int
    """Stopped by the token limit."""
    unreadable: int
    """Without a readable answer."""
    rewarded: int
    """With a reward, of any sign."""
    right: int
    """Correct, or with a reward above 0."""
    differ: bool = False
    """Whether rewards differ: something can be learned although nothing is right."""
    examples: tuple[str, ...] = ()
    """Lines about completions that show the first concern."""

    @property
    def concerns(self) -> tuple[Concern, ...]:
        """What is wrong; nothing, if all is well."""
        found = {
            Concern.TRUNCATED: 2 * self.truncated > self.rows,
            Concern.UNREADABLE: 2 * self.unreadable > self.rows,
            Concern.NONE_RIGHT: self.rewarded > 0 and self.right == 0 and not self.differ,
        }
        return tuple(concern for concern, holds in found.items() if holds)

    def __str__(self) -> str:
        """Say what is wrong first of all, how often, show examples, and say what to change."""
        first = self.concerns[0]  # What is truncated can have no answer, and none is right then.
        counts = (
            f"{self.truncated} of {self.rows} reached the token limit, {self.unreadable} have no "
            f"readable answer, {self.right} are right"
        )
        change = f"What to change: {ADVICE[first]}"
        return "\n".join((f"{first.value}: {counts}. Examples:", *self.examples, change))


def survey(read: Read) -> Survey:
    """Return what graded completions look like, with examples where there is a concern.

    Args:
        read: gives the rows; only where there is a concern, their texts.

    """
    rows = stopped = unreadable = rewarded = right = 0
    seen: set[float] = set()
    for table in read(("finish_reason", "grade", "reward")):
        grades, rewards = table["grade"].to_pylist(), table["reward"].to_pylist()
        rows += len(table)
        stopped += sum(truncated(table))
        unreadable += grades.count(Outcome.UNPARSEABLE)
        for grade, reward in zip(grades, rewards, strict=True):
            if reward is not None:
                rewarded += 1
                right += grade == Outcome.CORRECT or reward > 0
                seen.add(reward)
    found = Survey(
        rows=rows,
        truncated=stopped,
        unreadable=unreadable,
        rewarded=rewarded,
        right=right,
        differ=len(seen) > 1,
    )
    if not found.concerns:
        return found
    return replace(found, examples=tuple(_examples(read, found.concerns[0])))


def first_look(
    grader: str, config: GradeConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Callable[[pa.Table], None]:
    """Return what grades some rollouts and warns where something is wrong, hours before the end.

    Args:
        grader: a name in `topr.grading.GRADERS`, or a user's `module:function`.
        config: the section `grade`.
        tokenizer: of the model that wrote the rollouts.

    """

    def look(table: pa.Table) -> None:
        some = table.take(pa.array(range(0, len(table), -(-len(table) // LOOKED_AT))))
        graded = grade_table(some, grader, config, tokenizer=tokenizer)
        found = survey(lambda columns: [graded.select(columns)])
        if found.concerns:
            logger.warning("a look at the first completions: %s", found)

    return look


def _examples(read: Read, concern: Concern) -> Iterator[str]:
    """Yield lines about completions of different problems that show a concern."""
    shown: set[str] = set()
    columns = ("problem_id", "completion", "finish_reason", "gold", "grade", "reward", "answer")
    for table in read(columns):
        cut = truncated(table)
        for number, row in enumerate(table.to_pylist()):
            shows = {
                Concern.TRUNCATED: cut[number],
                Concern.UNREADABLE: row["grade"] == Outcome.UNPARSEABLE,
                Concern.NONE_RIGHT: row["reward"] is not None,
            }
            if shows[concern] and row["problem_id"] not in shown:
                shown.add(row["problem_id"])
                yield _line(row)
            if len(shown) == EXAMPLES:
                return


def _line(row: dict[str, Any]) -> str:
    # repr: what a model wrote may hold line breaks and what steers a terminal.
    text, read = row["completion"], row["answer"]
    end = f"...{text[-TAIL:]!r}" if len(text) > TAIL else repr(text)
    gold = "" if row["gold"] is None else f", gold answer {row['gold'][:TAIL]!r}"
    said = "no answer read" if read is None else f"answer read {read[:TAIL]!r}"
    return f"  {row['problem_id']}{gold}, {said}, ends in {end}"
