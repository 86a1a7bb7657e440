"""Word problems made from a seed, and the rule that keeps the splits apart.

Not the flawed demonstrations that the base model learns from: see `demonstrations`.

    Ann has 12 pens . buys 3 bags of 4 . gives 5 to Bob . How many pens now ?

A problem's *skeleton* is its numbers and kinds of operation (`12 P3x4 -5`), without names and
wordings. A hash of the skeleton alone decides the split that the problem may appear in, so no
two splits share a skeleton, whatever the seeds: a test problem with other names is never
trained on.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from topr.errors import ConfigError
from topr.tasks.base import Split

MAX_TOTAL = 50
"""A running total stays in 0 .. 50."""
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Jo", "Kim", "Leo")
THINGS = (
    "apples", "books", "cards", "coins", "cups", "eggs", "keys",
    "nuts", "pears", "pens", "shells", "stamps", "toys",
)  # fmt: skip
_FRUITLESS = 2000
"""Problems seen before, one after the other, at which a split is taken to hold no more."""


class Kind(StrEnum):
    """What a clause does to the running total."""

    GAIN = "+"
    """Adds `size`."""
    LOSE = "-"
    """Subtracts `size`."""
    PACKS = "P"
    """Adds `portions * size`."""
    SHARE = "M"
    """Subtracts `portions * size`."""
    DOUBLE = "D"
    """Doubles."""


WEIGHTS = {Kind.GAIN: 3.0, Kind.LOSE: 3.0, Kind.PACKS: 1.5, Kind.SHARE: 1.5, Kind.DOUBLE: 1.0}
WORDINGS = {
    Kind.GAIN: ("buys {size} more", "finds {size}", "gets {size} from {other}"),
    Kind.LOSE: ("loses {size}", "gives {size} to {other}", "sells {size}"),
    Kind.PACKS: ("buys {portions} bags of {size}", "gets {portions} boxes of {size}"),
    Kind.SHARE: (
        "gives {size} to each of {portions} friends",
        "sells {portions} packs of {size}",
    ),
    Kind.DOUBLE: ("doubles them",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One clause's arithmetic.

    >>> Operation(kind=Kind.PACKS, portions=3, size=4).apply(12)
    24
    """

    kind: Kind
    size: int = 0
    """Things in one portion; without meaning where the kind doubles."""
    portions: int = 1

    @property
    def steps(self) -> int:
        """Arithmetic steps that it takes: multiplying counts as one of its own."""
        return 2 if self.kind in (Kind.PACKS, Kind.SHARE) else 1

    @property
    def sign(self) -> str:
        """How its amount enters the total: `+` or `-`."""
        return "-" if self.kind in (Kind.LOSE, Kind.SHARE) else "+"

    def apply(self, total: int) -> int:
        """Return the total after this clause."""
        if self.kind is Kind.DOUBLE:
            return 2 * total
        amount = self.portions * self.size
        return total - amount if self.sign == "-" else total + amount

    def __str__(self) -> str:
        """Return its part of the skeleton."""
        if self.kind is Kind.DOUBLE:
            return str(self.kind)
        if self.steps == 1:
            return f"{self.kind}{self.size}"
        return f"{self.kind}{self.portions}x{self.size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WordProblem:
    """A start, operations on it, and the words around them."""

    start: int
    operations: tuple[Operation, ...]
    name: str
    things: str
    clauses: tuple[str, ...]
    """The operations in words, one each."""

    @property
    def text(self) -> str:
        """The question, one space between any two tokens."""
        clauses = " . ".join(self.clauses)
        return (
            f"{self.name} has {self.start} {self.things} . {clauses} . How many {self.things} now ?"
        )

    @property
    def skeleton(self) -> str:
        """The numbers and kinds of operation alone: `12 P3x4 -5`."""
        return " ".join([str(self.start), *map(str, self.operations)])

    @property
    def totals(self) -> tuple[int, ...]:
        """The start and the running total after each clause."""
        totals = [self.start]
        for operation in self.operations:
            totals.append(operation.apply(totals[-1]))
        return tuple(totals)

    @property
    def answer(self) -> int:
        """The total at the end."""
        return self.totals[-1]


def region(skeleton: str) -> Split:
    """Return the only split that may hold a skeleton: an eighth each is test and validation."""
    bucket = hashlib.sha256(skeleton.encode()).digest()[0] % 8
    return {0: Split.TEST, 1: Split.VALIDATION}.get(bucket, Split.TRAIN)


def stream(
    split: Split, *, seed: int | str, min_steps: int, max_steps: int
) -> Iterator[WordProblem]:
    """Yield problems of a split's region for ever; one may come again.

    Args:
        split: whose skeletons.
        seed: with the split it fixes the stream.
        min_steps: clauses at least.
        max_steps: clauses at most; arithmetic steps are at most one more.

    """
    rng = random.Random(f"topr arithmetic {split} {seed}")  # noqa: S311
    while True:
        problem = _make_problem(rng, min_steps=min_steps, max_steps=max_steps)
        if region(problem.skeleton) is split:
            yield problem


def distinct(
    split: Split, count: int, *, seed: int, min_steps: int, max_steps: int
) -> list[WordProblem]:
    """Return `count` problems of a split, no two with the same skeleton.

    Raises:
        ConfigError: the split does not hold that many.

    """
    found: dict[str, WordProblem] = {}
    fruitless = 0
    problems = stream(split, seed=seed, min_steps=min_steps, max_steps=max_steps)
    while len(found) < count:
        problem = next(problems)
        fruitless = fruitless + 1 if problem.skeleton in found else 0
        found.setdefault(problem.skeleton, problem)
        if fruitless == _FRUITLESS:
            raise ConfigError(
                f"{count} {split} problems are asked for, but with {min_steps} to {max_steps} "
                f"clauses only {len(found)} different ones were found: ask for fewer, or allow "
                "more clauses (task.max_steps)"
            )
    return list(found.values())


def _make_problem(rng: random.Random, *, min_steps: int, max_steps: int) -> WordProblem:
    name, other = rng.sample(NAMES, 2)
    clauses = rng.randint(min_steps, max_steps)
    start = rng.randint(3, 20)
    total = start
    # A product takes two arithmetic steps, so each one uses up a spare step.
    spare = max_steps + 1 - clauses
    operations: list[Operation] = []
    while len(operations) < clauses:
        operation = _draw_operation(rng)
        after = operation.apply(total)
        fits = 0 <= after <= MAX_TOTAL and (total > 0 or operation.kind is not Kind.DOUBLE)
        if fits and operation.steps - 1 <= spare:
            spare -= operation.steps - 1
            total = after
            operations.append(operation)
    return WordProblem(
        start=start,
        operations=tuple(operations),
        name=name,
        things=rng.choice(THINGS),
        clauses=tuple(
            rng.choice(WORDINGS[operation.kind]).format(
                size=operation.size, portions=operation.portions, other=other
            )
            for operation in operations
        ),
    )


def _draw_operation(rng: random.Random) -> Operation:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if kind is Kind.DOUBLE:
        return Operation(kind=kind)
    if kind in (Kind.PACKS, Kind.SHARE):
        return Operation(kind=kind, portions=rng.randint(2, 4), size=rng.randint(2, 5))
    return Operation(kind=kind, size=rng.randint(2, 9))
