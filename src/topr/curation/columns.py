"""The columns that curation looks at, one entry per completion (`_N`), and counts over problems.

No files, no tables, and no rule of what to keep.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topr.errors import DataError

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Graded completions of one store, rows in any order.

    >>> Columns.of([1.0, -1.0], ["a", "b"], [0, 0]).problems_N.tolist()
    [0, 1]
    """

    rewards_N: NDArray[np.float64]
    """NaN where nothing could be said."""
    problems_N: Integers
    """Number of each row's problem in `names`."""
    names: Sequence[str]
    """Problem ids, in the order in which they first appear."""
    samples_N: Integers
    """Number of each completion among those of its problem: the order of sampling."""
    completions_N: Hashes | None = None
    """Equal numbers for equal completions; None where no rule asks for them."""
    tokens_N: Integers | None = None
    """Length of each completion."""

    def __post_init__(self) -> None:
        lengths = {
            "rewards": len(self.rewards_N),
            "problem ids": len(self.problems_N),
            "sample numbers": len(self.samples_N),
        }
        if self.completions_N is not None:
            lengths["completions"] = len(self.completions_N)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{n} {name}" for name, n in lengths.items())
            raise DataError(f"columns of one table differ in length: {found}")
        infinite = int(np.isinf(self.rewards_N).sum())
        if infinite:
            raise DataError(
                f"{infinite} of {len(self.rewards_N)} rewards are infinite: rewards must be "
                "finite, or none where nothing can be said"
            )

    @classmethod
    def of(
        cls,
        rewards: ArrayLike,
        problem_ids: Sequence[str],
        samples: ArrayLike,
        completions: Sequence[Hashable] | None = None,
    ) -> "Columns":
        """Return columns from plain sequences of one length.

        Args:
            rewards: floats, NaN where nothing could be said.
            problem_ids: names.
            samples: integers.
            completions: texts, or tuples of token ids; only `drop_duplicates` looks at them.

        Raises:
            DataError: the lengths differ, or a reward is infinite.

        """
        problems, names = _numbered(problem_ids)
        return cls(
            rewards_N=np.asarray(rewards, dtype=np.float64),
            problems_N=problems,
            names=names,
            samples_N=np.asarray(samples, dtype=np.int64),
            completions_N=None
            if completions is None
            else _numbered(completions)[0].astype(np.uint64),
        )

    @cached_property
    def order_N(self) -> Integers:
        """Row numbers by problem, in the order of first appearance, then by sample number."""
        return np.lexsort((self.samples_N, self.problems_N))

    def rows(self) -> "Rows":
        """Return all rows in the order that rules read them in."""
        order = self.order_N
        problems = self.problems_N[order]
        starts = problem_starts(problems)
        place = np.arange(len(order)) - np.repeat(starts, _counts(starts, len(order)))
        return Rows(
            rewards_N=self.rewards_N[order],
            problems_N=problems,
            names=self.names,
            place_N=place,
            completions_N=None if self.completions_N is None else self.completions_N[order],
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Completions by problem, in the order of sampling: what a rule is given."""

    rewards_N: NDArray[np.float64]
    problems_N: Integers
    names: Sequence[str]
    place_N: Integers
    """Place of each completion among all that were sampled for its problem, from 0, those included
    that an earlier rule has dropped."""
    completions_N: Hashes | None

    def __len__(self) -> int:
        return len(self.rewards_N)

    @cached_property
    def positive_N(self) -> Mask:
        """Whether the reward is above 0."""
        return self.rewards_N > 0

    @cached_property
    def starts(self) -> Integers:
        """First row of each problem that has rows."""
        return problem_starts(self.problems_N)

    def where(self, keep_N: Mask) -> "Rows":
        """Return the rows of a mask."""
        return Rows(
            rewards_N=self.rewards_N[keep_N],
            problems_N=self.problems_N[keep_N],
            names=self.names,
            place_N=self.place_N[keep_N],
            completions_N=None if self.completions_N is None else self.completions_N[keep_N],
        )

    def earlier(self, mask_N: Mask) -> Integers:
        """Return, for each row, how many rows of its problem before it are in the mask."""
        until: Integers = np.cumsum(mask_N) - mask_N
        return until - self._spread(until[self.starts])

    def in_problem(self, mask_N: Mask) -> Integers:
        """Return, for each row, how many rows of its problem are in the mask."""
        return self._spread(np.add.reduceat(mask_N.astype(np.int64), self.starts))

    def _spread(self, values: Integers) -> Integers:
        """From one value per problem to one per row."""
        return np.repeat(values, _counts(self.starts, len(self)))


def problem_starts(problems_N: Integers) -> Integers:
    """Return where a new problem begins, in rows that are sorted by problem."""
    if not len(problems_N):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.r_[True, problems_N[1:] != problems_N[:-1]])


def hash_lists(values: NDArray[Any], lengths_N: Integers) -> Hashes:
    """Return a 64-bit number for each list of integers, equal for equal lists.

    Unequal lists share one with a chance of 2^-64 a pair: for a million rollouts of 64 completions
    a problem, once in some 10^11 stores.

    Args:
        values: all lists, one after the other.
        lengths_N: of each.

    """
    ends = np.cumsum(lengths_N)
    starts = ends - lengths_N
    places = (np.arange(len(values)) - np.repeat(starts, lengths_N)).astype(np.uint64)
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(scramble(scramble(places) + values.astype(np.uint64)), out=sums[1:])
    return scramble(sums[ends] - sums[starts] + lengths_N.astype(np.uint64))


def scramble(values: Hashes) -> Hashes:
    """Return the output of splitmix64 (Steele et al. 2014) for each value: numbers as if random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _counts(starts: Integers, rows: int) -> Integers:
    counts: Integers = np.diff(np.append(starts, rows))
    return counts


def _numbered(values: Sequence[Hashable]) -> tuple[Integers, list[Any]]:
    """Number distinct values in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    numbered = np.fromiter(
        (numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values)
    )
    return numbered, list(numbers)
