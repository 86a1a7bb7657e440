"""The generative verifier: is this solution of this question right?

A task like any other. Its problems are made from a generator's graded rollouts; drawing, grading,
training and evaluation are those of every task. Questions are what splits are made of, so that no
question is checked in two of them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from topr.config.tasks import VerifierConfig
from topr.errors import ConfigError, DataError
from topr.records import Message, Problem, Split
from topr.store import ColumnMap, read_rows, read_table
from topr.store.values import read_grades
from topr.tasks.splits import Splits, divide, pick, question_key

TEMPLATE = (
    "Question: {question}\n\nSolution: {solution}\n\n"
    'Check the solution step by step. Then end with "Verification: Is the answer correct '
    '(Yes/No)? X", X being Yes or No.\n\nCheck:'
)
"""The prompt where the recipe gives none. It ends where the check begins."""
COLUMNS = ("problem_id", "prompt", "question", "completion", "reward")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A solution that is to be checked."""

    problem_id: str
    question: str
    solution: str
    right: bool | None
    """None: not known."""

    @property
    def id(self) -> str:
        """Name of the check: the same for the same solution of the same question."""
        digest = hashlib.sha256(f"{self.question}\0{self.solution}".encode()).hexdigest()[:16]
        return f"{self.problem_id}/check-{digest}"


class VerifierTask:
    """Solutions of a generator, to be told right from wrong.

    >>> from topr.config import VerifierConfig
    >>> VerifierTask(VerifierConfig(name="verifier", rollouts="graded")).grader
    'verdict'
    """

    name = "verifier"
    grader = "verdict"

    def __init__(self, config: VerifierConfig) -> None:
        if config.rollouts is None:
            raise ConfigError(
                "task.rollouts is not set: a verifier learns from a generator's graded rollouts; "
                "give their directory or file, such as task.rollouts=runs/NAME/iteration-01/graded"
            )
        self._config = config
        self.test_rollouts = None if config.test_rollouts is None else Path(config.test_rollouts)
        # A model that was not taught to stop goes on with a question of its own.
        own = config.template is None and config.prompt == "plain"
        self.stop: tuple[str, ...] = ("\nQuestion:",) if own else ()

    def problems(self, split: Split) -> Sequence[Problem]:
        """All checks of a split: the solutions of one question follow each other.

        Raises:
            DataError: the rollouts cannot be read, are not graded, or are all right or all wrong.
            ConfigError: the recipe gives this split no questions.

        """
        questions = pick(self._splits, split, what=self.name)
        found = [c for problem in questions for c in self._capped(problem.columns["candidates"])]
        if split is Split.TRAIN and self._config.mix == "balanced":
            found = _balanced(found, self._config.seed)
        return [self.problem(candidate) for candidate in found]

    def problem(self, candidate: Candidate) -> Problem:
        """Return the problem that asks whether a solution is right."""
        text = self._config.template or TEMPLATE
        # Not str.format: braces are common in solutions. The question first: it may hold neither
        # place, while a solution that a model wrote may hold anything.
        before, _, after = text.partition("{solution}")
        before, after = (part.replace("{question}", candidate.question) for part in (before, after))
        prompt = f"{before}{candidate.solution}{after}"
        verdict = {True: "Yes", False: "No", None: ""}[candidate.right]
        return Problem(
            id=candidate.id,
            prompt=prompt
            if self._config.prompt == "plain"
            else (Message(role="user", content=prompt),),
            answer=verdict,
            question=prompt,
        )

    @cached_property
    def _splits(self) -> Splits:
        config = self._config
        test = config.test_rollouts
        return divide(
            _questions(read_candidates(str(config.rollouts))),
            None if test is None else _questions(read_candidates(test)),
            what=self.name,
            seed=config.seed,
            validation_problems=config.validation_problems,
            hold_out=config.test_problems,
        )

    def _capped(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the first `per_problem` solutions, right and wrong in turns."""
        most = self._config.per_problem
        if most is None or len(candidates) <= most:
            return list(candidates)
        right = [c for c in candidates if c.right]
        wrong = [c for c in candidates if not c.right]
        turns = chain.from_iterable(zip_longest(right, wrong))
        return [c for c in turns if c is not None][:most]


def read_candidates(source: str) -> list[Candidate]:
    """Read the solutions of graded rollouts, or of a file of labelled solutions, in order.

    Those of which nothing is known are left out.

    Raises:
        DataError: no such file, a column is missing, or no solution is graded.

    """
    path = Path(source)
    table = read_table(path, COLUMNS) if path.is_dir() else read_rows(path)
    found = [c for c in candidates_of(table) if c.right is not None]
    if not found:
        raise DataError(
            f"{source} holds {len(table)} solutions and says of none whether it is right: grade "
            "them first (`topr grade`), or name the column (reward, is_correct, label)"
        )
    return found


def candidates_of(table: pa.Table, columns: ColumnMap | None = None) -> list[Candidate]:
    """Return the solution in each row.

    Args:
        table: rollouts, or rows of another tool with a question and a solution.
        columns: where things are; none given: the usual names.

    Raises:
        DataError: there is no question or no solution.

    """
    found = (columns or ColumnMap()).resolve(table)
    questions = _texts(table, found.prompt)
    if "question" in table.column_names and (columns is None or columns.prompt is None):
        asked = table.column("question").to_pylist()
        questions = [a if a is not None else q for a, q in zip(asked, questions, strict=True)]
    grades = read_grades(table, found)
    ids = table.column(found.problem_id).to_pylist() if found.problem_id else [None] * len(table)
    rows = zip(ids, questions, _texts(table, found.completion), grades, strict=True)
    return [
        Candidate(
            problem_id=str(name if name is not None else _hash(question)),
            question=question,
            solution=solution,
            right=None if grade is None or grade.reward is None else grade.reward > 0,
        )
        for name, question, solution, grade in rows
    ]


def _texts(table: pa.Table, column: str | None) -> list[str]:
    """Return a column of texts; a list of texts, as steps are kept, becomes its lines."""
    values: list[Any] = table.column(str(column)).to_pylist()
    for number, value in enumerate(values, start=1):
        if isinstance(value, list):
            values[number - 1] = "\n".join(map(str, value))
        elif not isinstance(value, str):
            raise DataError(
                f"row {number}: column {column} holds {value!r:.60}, expected text or a list of "
                "texts. Name another column, or leave the row out"
            )
    return values


def _questions(candidates: Iterable[Candidate]) -> list[Problem]:
    """Return one problem for each question, with its different solutions."""
    groups: dict[Any, dict[str, Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(question_key(candidate.question), {}).setdefault(candidate.id, candidate)
    return [
        Problem(
            id=_hash(first.question),
            prompt=first.question,
            answer="",
            columns={"candidates": list(group.values())},
        )
        for group in groups.values()
        for first in [next(iter(group.values()))]
    ]


def _balanced(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Return as many right solutions as wrong ones, chosen by the seed, in their order."""
    counts = [sum(c.right is side for c in candidates) for side in (True, False)]
    if min(counts) == 0:
        raise DataError(
            f"of {len(candidates)} solutions to learn from {counts[0]} are right and {counts[1]} "
            "wrong: there is nothing to tell apart. Draw from another model, or set "
            "task.mix=natural"
        )
    kept: set[str] = set()
    for side in (True, False):
        ids = [c.id for c in candidates if c.right is side]
        kept.update(sorted(ids, key=lambda id_: _place(seed, id_))[: min(counts)])
    return [c for c in candidates if c.id in kept]


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def _hash(question: str) -> str:
    return "question-" + hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16]
