"""The generative verifier: is this solution of this question right?

A task like any other. Its problems are made from a generator's graded rollouts; sampling, grading,
training and evaluation are those of every task. Questions are what splits are made of, so that no
question is checked in two of them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path

import pyarrow as pa

from topr import hub
from topr.config.tasks import VerifierConfig
from topr.errors import ConfigError, DataError
from topr.evaluation.scoring import sample_rows
from topr.interop import ColumnMap, read_rows
from topr.interop.column_map import USUAL_NAMES
from topr.interop.row_values import read_grades
from topr.records import Outcome, Problem, Split
from topr.store import column_values, read_table, write_json_atomic
from topr.tasks.prompts import chat_prompt
from topr.tasks.splits import Splits, divide, pick, question_key

TEMPLATE = (
    "Question: {question}\n\nSolution: {solution}\n\n"
    'Check the solution step by step. Then end with "Verification: Is the answer correct '
    '(Yes/No)? X", X being Yes or No.\n\nCheck:'
)
"""The prompt where the recipe gives none. It ends where the check begins."""
PROMPT_FILE = "verifier.json"
"""Next to a verifier's weights: how it was asked for a check."""
PROMPT_KEYS = ("prompt", "template", "system_prompt")
_NOT_RIGHT = (Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.TRUNCATED)
COLUMNS = ("problem_id", "prompt", "question", "completion", "sampling", "grade")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A solution that is to be checked."""

    question: str
    solution: str
    right: bool | None
    """None: not known."""

    @property
    def id(self) -> str:
        """Name of the check: the same for the same solution of the same question."""
        digest = hashlib.sha256(f"{self.key}\0{self.solution}".encode("utf-8", "replace"))
        return f"{_hash(self.key)}/check-{digest.hexdigest()[:16]}"

    @property
    def key(self) -> str:
        """What two spellings of one question share."""
        return str(question_key(self.question))


def note_prompt(config: VerifierConfig, model: Path) -> None:
    """Write next to a trained verifier how it was asked for a check."""
    values = {key: getattr(config, key) for key in PROMPT_KEYS}
    write_json_atomic(model / PROMPT_FILE, values)


def noted_prompt(model: Path) -> dict[str, str | None]:
    """Return what `note_prompt` wrote next to a model; nothing where it wrote nothing.

    Raises:
        DataError: the file is there and says something else.

    """
    path = model / PROMPT_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        # A verifier that was trained before there were system prompts has none.
        return {key: values[key] for key in PROMPT_KEYS if key in values or key != "system_prompt"}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected the keys "
            f"{', '.join(PROMPT_KEYS)}. Say with --recipe how the verifier is asked, or remove it"
        ) from error


def check_question(check: str) -> str:
    """Return what names the question in the id of a check: see `Candidate.id`."""
    return check.rpartition("/")[0]


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
        self.config = config
        self.columns = ColumnMap(
            prompt=config.question_column,
            completion=config.solution_column,
            reward=config.label_column,
        )
        # A model that was not taught to stop writes another question.
        own = config.template is None and config.prompt == "plain"
        self.stop: tuple[str, ...] = ("\nQuestion:",) if own else ()

    def problems(self, split: Split) -> Sequence[Problem]:
        """All checks of a split.

        Those of validation and test are as they come: every different solution of a question, one
        of each question in turn. `per_problem` and `mix` choose among those of training.

        Raises:
            DataError: the rollouts cannot be read, are not graded, or are all right or all wrong.
            ConfigError: the recipe gives this split no questions.

        """
        questions = pick(self._splits, split, what=self.name)
        groups = [problem.columns["candidates"] for problem in questions]
        if split is not Split.TRAIN:
            # One of each question in turn: the first N checks are of as many questions as can be.
            turns = chain.from_iterable(zip_longest(*groups))
            return [self.problem(candidate) for candidate in turns if candidate is not None]
        found = [candidate for group in groups for candidate in self._capped(group)]
        if self.config.mix == "balanced":
            found = _balanced(found, self.config.seed)
        return [self.problem(candidate) for candidate in found]

    def problem(self, candidate: Candidate) -> Problem:
        """Return the problem that asks whether a solution is right."""
        text = self.config.template or TEMPLATE
        # Not str.format: braces are common in solutions. The question first: it may hold neither
        # place, while a solution that a model wrote may hold anything.
        before, _, after = text.partition("{solution}")
        before, after = (part.replace("{question}", candidate.question) for part in (before, after))
        prompt = f"{before}{candidate.solution}{after}"
        verdict = {True: "Yes", False: "No", None: ""}[candidate.right]
        return Problem(
            id=candidate.id,
            prompt=prompt
            if self.config.prompt == "plain"
            else chat_prompt(prompt, system=self.config.system_prompt),
            answer=verdict,
            question=prompt,
            escape_special_tokens=True,
        )

    @cached_property
    def test_rollouts(self) -> Path | None:
        """Where the rollouts to report on lie, downloaded if need be; None where there are none."""
        name = self.config.test_rollouts
        return None if name is None else hub.local(name)

    @cached_property
    def _splits(self) -> Splits:
        config = self.config
        test = config.test_rollouts
        return divide(
            _questions(read_candidates(str(config.rollouts), self.columns)),
            None if test is None else _questions(read_candidates(test, self.columns)),
            what=self.name,
            seed=config.seed,
            validation_problems=config.validation_problems,
            hold_out=config.test_problems,
        )

    def _capped(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the first `per_problem` solutions, right and wrong in turns."""
        most = self.config.per_problem
        if most is None or len(candidates) <= most:
            return list(candidates)
        right = [c for c in candidates if c.right]
        wrong = [c for c in candidates if not c.right]
        turns = chain.from_iterable(zip_longest(right, wrong))
        return [c for c in turns if c is not None][:most]


def read_candidates(source: str, columns: ColumnMap | None = None) -> list[Candidate]:
    """Read the solutions of graded rollouts, or of a file of labelled solutions, in order.

    Greedy ones are left out where there are others, and so are those of which nothing is known.

    Args:
        source: a directory of shards, a file, or a hub name.
        columns: of a file: where things are, as far as it is given.

    Raises:
        DataError: no such file, a column is missing or not to be told from another, or no solution
            is graded.

    """
    path = hub.local(source)
    table = read_table(path, COLUMNS) if path.is_dir() else read_rows(path)
    if path.is_dir():
        table = table.filter(pa.array(sample_rows(table)))
    found = [c for c in candidates_of(table, columns) if c.right is not None]
    if not found:
        raise DataError(
            f"{source} holds {len(table)} solutions and says of none whether it is right: grade "
            "them first (`topr grade`), or name the column (task.label_column)"
        )
    return found


def candidates_of(table: pa.Table, columns: ColumnMap | None = None) -> list[Candidate]:
    """Return the solution in each row.

    Args:
        table: rollouts, or rows of another tool with a question and a solution.
        columns: of such rows: where things are, as far as it is given.

    Raises:
        DataError: there is no question or no solution, or several that it could be; a label that
            is neither right nor wrong.

    """
    given = columns or ColumnMap()
    if "completion_ids" not in table.column_names and "sampling" not in table.column_names:
        _refuse_ambiguous(table, given)
    found = given.resolve(table)
    questions = _texts(table, found.prompt)
    if "question" in table.column_names and given.prompt is None:
        asked = table.column("question").to_pylist()
        questions = [a if a is not None else q for a, q in zip(asked, questions, strict=True)]
    solutions = _texts(table, found.completion)
    return [
        Candidate(question=question, solution=solution, right=right)
        for question, solution, right in zip(
            questions, solutions, _labels(table, found, given), strict=True
        )
    ]


def _refuse_ambiguous(table: pa.Table, given: ColumnMap) -> None:
    """Refuse rows in which a reference solution could be taken for the one to be checked."""
    there = [name for name in USUAL_NAMES["completion"] if name in table.column_names]
    if given.completion is None and len(there) > 1:
        raise DataError(
            f"the solution to be checked may be in any of the columns {', '.join(there)}: name the "
            "one that a model wrote (task.solution_column, or --solution)"
        )
    asked = [name for name in USUAL_NAMES["prompt"] if name in table.column_names]
    if given.prompt is None and len(asked) > 1 and asked[0] != "prompt":
        raise DataError(
            f"the question may be in any of the columns {', '.join(asked)}: name it "
            "(task.question_column, or --question)"
        )


def _labels(table: pa.Table, found: ColumnMap, given: ColumnMap) -> list[bool | None]:
    """Return whether each solution is right; None where that is not known.

    By its grade where rows have one: a grader that ran out of time has found nothing.
    """
    if "grade" in table.column_names and given.reward is None:
        known = {Outcome.CORRECT: True} | dict.fromkeys(_NOT_RIGHT, False)
        return [known.get(grade) for grade in table.column("grade").to_pylist()]
    rewards = [None if grade is None else grade.reward for grade in read_grades(table, found)]
    strange = [value for value in rewards if value not in (None, 1.0, -1.0)]
    if strange:
        raise DataError(
            f"column {found.reward} holds {strange[0]:g}: expected right or wrong (true and false, "
            "1 and 0, +1 and -1). Name another column (task.label_column, or --label)"
        )
    return [None if value is None else value > 0 for value in rewards]


def _texts(table: pa.Table, column: str | None) -> list[str]:
    """Return a column of texts; a list of texts, as steps are kept, becomes its lines."""
    values = column_values(table, str(column)) or []
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
    groups: dict[str, dict[str, Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.key, {}).setdefault(candidate.id, candidate)
    return [
        Problem(
            id=_hash(first.key),
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
