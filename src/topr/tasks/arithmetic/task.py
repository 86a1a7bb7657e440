"""The arithmetic task as `topr.tasks.base.Task` wants it."""

import hashlib
from collections.abc import Sequence

from topr.config.tasks import ArithmeticConfig
from topr.records import Problem
from topr.tasks.arithmetic.demonstrations import solution
from topr.tasks.arithmetic.problems import WordProblem, distinct
from topr.tasks.base import Split


class ArithmeticTask:
    """Word problems made from a seed.

    >>> from topr.config import ArithmeticConfig
    >>> task = ArithmeticTask(ArithmeticConfig(name="arithmetic"))
    >>> task.problems(Split.TEST)[0].answer.isdigit()
    True
    """

    name = "arithmetic"
    grader = "numeric"
    stop: tuple[str, ...] = ()

    def __init__(self, config: ArithmeticConfig) -> None:
        self._config = config

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, each with its careful `solution` among its columns.

        Raises:
            ConfigError: the split does not hold that many different problems.

        """
        config = self._config
        counts = {
            Split.TRAIN: config.train_problems,
            Split.VALIDATION: config.validation_problems,
            Split.TEST: config.test_problems,
        }
        made = distinct(
            split,
            counts[split],
            seed=config.seed,
            min_steps=config.min_steps,
            max_steps=config.max_steps,
        )
        return [_record(split, problem) for problem in made]


def _record(split: Split, problem: WordProblem) -> Problem:
    # The name is made from the question, so that the same name never means another question,
    # whatever the seed that made it.
    digest = hashlib.sha256(problem.text.encode()).hexdigest()[:12]
    return Problem(
        id=f"arithmetic-{split}-{digest}",
        prompt=problem.text,
        answer=str(problem.answer),
        columns={"solution": solution(problem), "clauses": len(problem.operations)},
    )
