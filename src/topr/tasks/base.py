"""What every task does: problems for a split, and how their completions end and are graded."""

from collections.abc import Sequence
from typing import Protocol

from topr.records import Problem, Split


class Task(Protocol):
    """Problems, and how their completions end and are graded."""

    name: str
    grader: str
    """How completions are graded: a name in `topr.grading.GRADERS`, or a user's
    `module:function`."""
    stop: tuple[str, ...]
    """Strings that end a completion, in addition to the end-of-sequence token."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, in an order that a seed fixes.

        Raises:
            DataError: the source lacks a column, or cannot be read.

        """
        ...


__all__ = ["Split", "Task"]
