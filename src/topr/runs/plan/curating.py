"""What curation will keep, and with it how much is drawn: known, bounded, or tried on made-up
grades.

No grade of the run is known yet. Where rules look at grades, they are applied to those of problems
that are made up by what a few completions showed: each is as hard as one that was seen. The rules
are the run's own. Nothing is drawn here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topr.config import AllRule, CapRule, CurateConfig
from topr.curation import Columns, curate, finished, max_candidates, most_per_problem
from topr.errors import DataError
from topr.runs.plan.counts import Draw, Span

MADE_UP = 2000
"""Problems that are made up: the share that is kept is then right within 2 %."""
PRIOR = 1.0
"""Completions that the mean of all problems counts for beside a problem's own. Few: problems differ
much, and many are never solved or always."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Grades of a few completions, by problem."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]
    unscored: tuple[int, ...]
    """Those that have no reward."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is known without any grade."""

    problems: int
    n: int
    curations: Sequence[CurateConfig]
    """Those that know when a problem is full."""

    def estimated(self, curate: CurateConfig | None = None) -> bool:
        """Never: these are bounds."""
        return False

    @property
    def _most(self) -> int:
        return max((max_candidates(each) or 0 for each in self.curations), default=self.n)

    @property
    def completions(self) -> Span:
        """A round for all, and the most for all."""
        return Span(low=min(self.n, self._most), high=self._most) * self.problems

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Known where there are no rounds."""
        return () if self.curations else (Draw(problems=self.problems, n=self.n),)

    def kept(self, curate: CurateConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `topr.runs.plan.counts.Drawn`."""
        most = min(self._most, most_per_problem(curate, self._most))
        high = np.full(self.problems, most, dtype=np.int64)
        return high if _is_certain(curate) and not self.curations else np.zeros_like(high), high


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the rules do with made-up grades."""

    problems: int
    n: int
    curations: Sequence[CurateConfig]
    seen: Seen
    seed: int = 0

    def estimated(self, curate: CurateConfig | None = None) -> bool:
        """Say whether what is drawn, or what is kept of it, depends on grades."""
        sure = curate is None or (_is_certain(curate) and not any(self.seen.unscored))
        return bool(self.curations) or not sure

    @cached_property
    def _columns(self) -> Columns:
        """All candidates of the made-up problems."""
        most = max((max_candidates(each) or 0 for each in self.curations), default=self.n)
        generator = np.random.default_rng(self.seed)
        scored = np.array(self.seen.right) + np.array(self.seen.wrong)
        share = (sum(self.seen.right) + 0.5) / (scored.sum() + 1)
        of = generator.integers(len(scored), size=MADE_UP)
        right = np.array(self.seen.right)[of] + PRIOR * share
        wrong = np.array(self.seen.wrong)[of] + PRIOR * (1 - share)
        solved_P = generator.beta(right, wrong)
        rewards = np.where(generator.random((MADE_UP, most)) < solved_P[:, None], 1.0, -1.0)
        total = scored.sum() + sum(self.seen.unscored)
        rewards[generator.random(rewards.shape) < sum(self.seen.unscored) / total] = np.nan
        return _columns(rewards.ravel(), MADE_UP, most)

    @cached_property
    def _drawn(self) -> tuple[Columns, list[tuple[int, int]]]:
        """What is drawn of them, and the rounds: open problems and completions of each."""
        columns = self._columns
        most, open_P = int(columns.samples_N.max()) + 1, np.ones(MADE_UP, dtype=np.bool_)
        if not self.curations:
            return columns, [(MADE_UP, most)]
        drawn_P, rounds = np.zeros(MADE_UP, dtype=np.int64), list[tuple[int, int]]()
        now = columns
        while open_P.any() and sum(n for _, n in rounds) < most:
            rounds.append((int(open_P.sum()), min(self.n, most - sum(n for _, n in rounds))))
            drawn_P[open_P] += rounds[-1][1]
            now = _where(columns, columns.samples_N < drawn_P[columns.problems_N])
            open_P = ~np.all([finished(now, each) for each in self.curations], axis=0)
        return now, rounds

    @property
    def completions(self) -> Span:
        """About how many are drawn; known where there are no rounds."""
        return Span.of(round(sum(draw.problems * draw.n for draw in self.draws)))

    @property
    def draws(self) -> tuple[Draw, ...]:
        """One for each round."""
        rounds = self._drawn[1]
        return tuple(
            Draw(problems=max(1, round(self.problems * open_ / MADE_UP)), n=n)
            for open_, n in rounds
        )

    def kept(self, curate_: CurateConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `topr.runs.plan.counts.Drawn`. Repeated completions are not foreseen."""
        columns, _ = self._drawn
        try:
            keep = curate(columns, curate_).keep
        except DataError:  # no right one was seen, and the rules want some
            return np.zeros(self.problems, np.int64), np.zeros(self.problems, np.int64)
        kept_P = np.bincount(columns.problems_N[keep], minlength=MADE_UP)
        return (spread := _resized(kept_P, self.problems)), spread


def _is_certain(curate: CurateConfig) -> bool:
    """Whether rules look at no grade."""
    return all(isinstance(step, AllRule | CapRule) for step in curate.steps)


def _columns(rewards_N: NDArray[np.float64], problems: int, n: int) -> Columns:
    return Columns(
        rewards_N=rewards_N,
        problems_N=np.repeat(np.arange(problems), n),
        names=[str(p) for p in range(problems)],
        samples_N=np.tile(np.arange(n), problems),
        completions_N=np.arange(problems * n, dtype=np.uint64),
    )


def _where(columns: Columns, keep: NDArray[np.bool_]) -> Columns:
    assert columns.completions_N is not None  # noqa: S101 - `_columns` makes them
    return Columns(
        rewards_N=columns.rewards_N[keep],
        problems_N=columns.problems_N[keep],
        names=columns.names,
        samples_N=columns.samples_N[keep],
        completions_N=columns.completions_N[keep],
    )


def _resized(kept_P: NDArray[np.int64], problems: int) -> NDArray[np.int64]:
    """Return as many problems with as much kept of each, on average.

    The differences of a running total: no problem gets more than one of the made-up ones has.
    """
    ends = np.linspace(0, len(kept_P), problems + 1)
    totals = np.interp(ends, np.arange(len(kept_P) + 1), np.concatenate([[0], np.cumsum(kept_P)]))
    scaled: NDArray[np.int64] = np.floor(totals * problems / len(kept_P) + 0.5).astype(np.int64)
    return np.diff(scaled)
