"""Solutions of word problems: the careful one, and flawed demonstrations in three styles.

The base model is warmed up on the flawed ones. Two of the three styles are unreliable by their
nature, not by chance: the model cannot do several steps in its head (terse), nor see the answer
at once (guess). That is what training with negatives can drive out.

    careful   12 + 3 = 15 . 3 * 4 = 12 . 15 + 12 = 27 . The answer is 27
    terse     12 + 3 + 3 * 4 = 27 . The answer is 27
    guess     so The answer is 26

No tokens here, no model.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from topr.tasks.arithmetic.problems import Kind, Operation, WordProblem

MAX_NUMBER = 59
"""The largest number that has a token. A flawed total beyond 0 .. 59 is cut to it."""
FILLERS = ("well", "hm", "let", "me", "see", "then")


class Style(StrEnum):
    """How a demonstration gets to its answer."""

    CAREFUL = "careful"
    """Every step written out."""
    TERSE = "terse"
    """One line, its result done in the head."""
    GUESS = "guess"
    """No working at all."""


class Flaw(StrEnum):
    """What is wrong with a demonstration as a whole; at most one of them."""

    NONE = "none"
    SLIP = "slip"
    """One result is off by one (nothing to slip on in a guess)."""
    COPIED = "copied"
    """A total from before the end is given as the answer (not in a guess)."""
    UNREADABLE = "unreadable"
    """It ends without an answer."""
    RAMBLING = "rambling"
    """Filler words before the answer."""


STYLES = {Style.CAREFUL: 0.45, Style.TERSE: 0.30, Style.GUESS: 0.25}
FLAWS = {
    Flaw.NONE: 0.82,
    Flaw.SLIP: 0.04,
    Flaw.COPIED: 0.03,
    Flaw.UNREADABLE: 0.08,
    Flaw.RAMBLING: 0.03,
}
FORGETS = 0.20
"""Chance per product to take one portion for all, per doubling to add 2 instead."""
FLIPS = 0.025
"""Chance per operation to add instead of subtracting, or the other way round."""
GUESS_OFFSETS = (0, 0, 1, 2, 3)
"""How far a guess is off, up or down."""
_FORGOTTEN = {Kind.PACKS: Kind.GAIN, Kind.SHARE: Kind.LOSE}
_FLIPPED = {
    Kind.GAIN: Kind.LOSE,
    Kind.LOSE: Kind.GAIN,
    Kind.PACKS: Kind.SHARE,
    Kind.SHARE: Kind.PACKS,
}


def solution(problem: WordProblem) -> str:
    """Return the careful solution, without a flaw."""
    lines, results = careful(problem.start, problem.operations)
    return text([*lines, _answer(results[-1])])


def demonstration(problem: WordProblem, rng: random.Random) -> str:
    """Return a solution in a random style, with the flaws of this module's constants."""
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    flaw = rng.choices(list(FLAWS), list(FLAWS.values()))[0]
    if style is Style.GUESS:
        lines: list[str] = []
        answer = _cut(problem.answer + rng.choice(GUESS_OFFSETS) * rng.choice((-1, 1)))
    else:
        operations = [misread(operation, rng) for operation in problem.operations]
        slip = rng.choice((-1, 1)) if flaw is Flaw.SLIP else 0
        if style is Style.CAREFUL:
            at = rng.randrange(sum(operation.steps for operation in operations))
            lines, results = careful(problem.start, operations, slip=slip, slip_at=at)
        else:
            lines, results = terse(problem.start, operations, slip=slip)
        answer = rng.choice([problem.start, *results[:-1]]) if flaw is Flaw.COPIED else results[-1]
    if flaw is Flaw.UNREADABLE:
        return text([*lines, "I am not sure"])
    if flaw is Flaw.RAMBLING:
        lines.append(" ".join(rng.choices(FILLERS, k=rng.randint(6, 16))))
    return text([*lines, _answer(answer)] if lines else [f"so {_answer(answer)}"])


def careful(
    start: int, operations: Sequence[Operation], *, slip: int = 0, slip_at: int = 0
) -> tuple[list[str], list[int]]:
    """Return one equation per arithmetic step, and the running total after each operation.

    The result of equation number `slip_at` is off by `slip`, and what follows builds on it.
    """
    lines: list[str] = []

    def equation(left: str, result: int) -> int:
        result = _cut(result + (slip if len(lines) == slip_at else 0))
        lines.append(f"{left} = {result}")
        return result

    total = start
    totals: list[int] = []
    for operation in operations:
        if operation.kind is Kind.DOUBLE:
            total = equation(f"{total} * 2", 2 * total)
        else:
            amount = operation.size
            if operation.steps == 2:
                product = f"{operation.portions} * {operation.size}"
                amount = equation(product, operation.portions * operation.size)
            change = amount if operation.sign == "+" else -amount
            total = equation(f"{total} {operation.sign} {amount}", total + change)
        totals.append(total)
    return lines, totals


def terse(
    start: int, operations: Sequence[Operation], *, slip: int = 0
) -> tuple[list[str], list[int]]:
    """Return the one line, and the running total after each operation, the last off by `slip`."""
    chain = [str(start)]
    totals = [start]
    for operation in operations:
        totals.append(_cut(operation.apply(totals[-1])))
        if operation.kind is Kind.DOUBLE:
            chain.append("doubled")
        elif operation.steps == 2:
            chain.append(f"{operation.sign} {operation.portions} * {operation.size}")
        else:
            chain.append(f"{operation.sign} {operation.size}")
    totals[-1] = _cut(totals[-1] + slip)
    return [f"{' '.join(chain)} = {totals[-1]}"], totals[1:]


def misread(operation: Operation, rng: random.Random) -> Operation:
    """Return the operation, or now and then another one in its place."""
    forgets = rng.random() < FORGETS
    flips = rng.random() < FLIPS
    if operation.kind is Kind.DOUBLE:
        return Operation(kind=Kind.GAIN, size=2) if forgets else operation
    if flips:
        operation = replace(operation, kind=_FLIPPED[operation.kind])
    if forgets and operation.kind in _FORGOTTEN:
        operation = Operation(kind=_FORGOTTEN[operation.kind], size=operation.size)
    return operation


def _cut(number: int) -> int:
    return min(max(number, 0), MAX_NUMBER)


def _answer(number: int) -> str:
    return f"The answer is {number}"


def text(sentences: Sequence[str]) -> str:
    """Return sentences as one text."""
    return " . ".join(sentences)
