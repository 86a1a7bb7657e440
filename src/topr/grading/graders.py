"""The built-in graders by name. Pure functions; `math` and `reasoning_gym` load much at a call."""

from collections.abc import Callable

from topr.grading.check import grade_verdict
from topr.grading.exact import grade_exact
from topr.grading.numeric import grade_numeric, grade_numeric_marked
from topr.records import Grade

Grader = Callable[[str, str, bool], Grade]
"""(completion, gold answer, answer_only) to a grade; `answer_only`: it is a final answer alone."""


def grade_math(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """See `topr.grading.mathematics.grade_math`, which this loads at the first call."""
    from topr.grading.mathematics import grade_math as grade

    return grade(completion, gold, answer_only)


def grade_reasoning_gym(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """See `topr.grading.gym.grade_gym`, which this loads at the first call."""
    from topr.grading.gym import grade_gym as grade

    return grade(completion, gold, answer_only)


GRADERS: dict[str, Grader] = {
    "numeric": grade_numeric,
    "numeric_marked": grade_numeric_marked,
    "math": grade_math,
    "exact": grade_exact,
    "verdict": grade_verdict,
    "reasoning_gym": grade_reasoning_gym,
}
GOLD_COLUMNS = {"reasoning_gym": "entry"}
"""Graders that compare with more than the text of `gold`, and the column that holds it."""


def needs_columns(grader: str) -> bool:
    """Whether a grader reads a problem's own columns: a user's function, and those above."""
    return grader not in GRADERS or grader in GOLD_COLUMNS
