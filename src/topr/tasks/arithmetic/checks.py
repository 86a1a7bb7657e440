"""Demonstrations of checks: is this solution right? Flawed, as those of solutions are.

    12 + 3 = 15 . 3 * 4 = 12 . 15 + 12 = 27 . 27 and 26 . Verification : Is the answer correct
    ( Yes / No ) ? No

A check solves the question again, and compares its own answer with the solution's. Solving
it in the head is unreliable, and so is a verdict without any work: a verifier can learn to leave
both. No tokens here, no model.
"""

import random
import re
from enum import StrEnum

from topr.tasks.arithmetic.demonstrations import careful, demonstration, misread, terse, text
from topr.tasks.arithmetic.problems import WordProblem

TEMPLATE = "{question} Solution : {solution} . Check :"
"""How a check is asked for."""
WORDS = (
    "Solution", "Check", ":", "Verification", "Is", "the", "correct", "(", ")", "Yes", "/", "No",
    "and", "none",
)  # fmt: skip
"""Words that checks have in addition to those of solutions."""
NOTHING = "none"
"""Stands for the answer of a solution that gives none."""


class Style(StrEnum):
    """How a check gets to its verdict."""

    CAREFUL = "careful"
    """Solves the question step by step."""
    TERSE = "terse"
    """Solves it in one line, its result done in the head."""
    DIRECT = "direct"
    """No work at all."""


STYLES = {Style.CAREFUL: 0.45, Style.TERSE: 0.25, Style.DIRECT: 0.30}
UNREADABLE = 0.15
"""Chance to end without a verdict."""
FLIPS = 0.05
"""Chance that the verdict is not what the comparison says."""
KNOWS = 0.55
"""Chance that a verdict without work is the true one."""

_ANSWER = re.compile(r"The answer is (\d+)\s*$")


def candidate_answer(solution: str) -> str:
    """Return the number that a solution ends in, or `none`."""
    found = _ANSWER.search(solution)
    return found[1] if found else NOTHING


def check(problem: WordProblem, solution: str, rng: random.Random) -> str:
    """Return a check of a solution in a random style, with this module's flaws."""
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    given = candidate_answer(solution)
    right = given == str(problem.answer)
    if style is Style.DIRECT:
        lines = ["so"]
        verdict = right if rng.random() < KNOWS else not right
    else:
        operations = [misread(operation, rng) for operation in problem.operations]
        solve = careful if style is Style.CAREFUL else terse
        lines, totals = solve(problem.start, operations)
        lines.append(f"{totals[-1]} and {given}")
        verdict = (str(totals[-1]) == given) is not (rng.random() < FLIPS)
    if rng.random() < UNREADABLE:
        return text([*lines, "I am not sure"])
    return text([*lines, said(right=verdict)])


def said(*, right: bool) -> str:
    """Return the words of a verdict."""
    return f"Verification : Is the answer correct ( Yes / No ) ? {'Yes' if right else 'No'}"


def to_check(problem: WordProblem, rng: random.Random) -> str:
    """Return a solution to be checked: a flawed demonstration, right about every other time."""
    want = rng.random() < 0.5
    for _ in range(20):
        solution = demonstration(problem, rng)
        if (candidate_answer(solution) == str(problem.answer)) is want:
            break
    return solution
