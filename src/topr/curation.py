"""Graded rollouts to a training set: which rows are kept, and how many of each kind.

Pure functions over columns, one entry per completion (`_N`). No files and no tables: the caller
reads the columns and applies the mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topr.config import CurateConfig
from topr.errors import DataError

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationResult:
    """Which rows are trained on.

    >>> curate([1.0, -1.0, -1.0], ["a", "a", "b"], [0, 1, 0], CurateConfig()).keep.tolist()
    [True, True, True]
    """

    keep: Mask
    """[N] bool, in the order of the rows given."""
    report: Mapping[str, int | float]
    """`rows`, `kept`, `dropped/no_reward`, `dropped/strategy`, then of the kept rows: `problems`,
    `positives` (reward > 0), `negatives` (any other) and `positive_share`, their p."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """The columns that a strategy looks at; only rows with a reward."""

    rewards_N: NDArray[np.float64]
    problem_ids: Sequence[str]
    samples_N: NDArray[np.int64]


def curate(
    rewards: ArrayLike,
    problem_ids: Sequence[str],
    samples: ArrayLike,
    config: CurateConfig,
) -> CurationResult:
    """Choose the rows to train on.

    Rows without a reward are never kept. Of the others, `all` keeps every one, `positives` those
    with reward > 0, and `cap` the first `per_problem` of each problem by sample number, so that the
    choice does not depend on the order of the rows.

    Args:
        rewards: [N] floats, NaN where nothing could be said.
        problem_ids: [N].
        samples: number of each completion among those of its problem, [N] integers.
        config: the strategy.

    Raises:
        DataError: the columns differ in length, a reward is infinite, or nothing is kept.

    """
    rewards_N = np.asarray(rewards, dtype=np.float64)
    samples_N = np.asarray(samples, dtype=np.int64)
    if not len(rewards_N) == len(problem_ids) == len(samples_N):
        raise DataError(
            f"columns of one table differ in length: {len(rewards_N)} rewards, "
            f"{len(problem_ids)} problem ids, {len(samples_N)} sample numbers"
        )
    if np.isinf(rewards_N).any():
        raise DataError(
            f"{np.isinf(rewards_N).sum()} of {len(rewards_N)} rewards are infinite: rewards must "
            "be finite, or none where nothing can be said"
        )
    rewarded_N = ~np.isnan(rewards_N)
    chosen = STRATEGIES[config.strategy](
        _Rows(
            rewards_N=rewards_N[rewarded_N],
            problem_ids=[p for p, has in zip(problem_ids, rewarded_N, strict=True) if has],
            samples_N=samples_N[rewarded_N],
        ),
        config,
    )
    keep_N = rewarded_N.copy()
    keep_N[rewarded_N] = chosen
    return CurationResult(keep=keep_N, report=_report(rewards_N, problem_ids, keep_N, config))


def _all(rows: _Rows, config: CurateConfig) -> Mask:
    return np.ones(len(rows.rewards_N), dtype=np.bool_)


def _positives(rows: _Rows, config: CurateConfig) -> Mask:
    return rows.rewards_N > 0


def _cap(rows: _Rows, config: CurateConfig) -> Mask:
    keep = np.zeros(len(rows.rewards_N), dtype=np.bool_)
    taken: dict[str, int] = {}
    for row in np.argsort(rows.samples_N, kind="stable"):
        problem = rows.problem_ids[row]
        taken[problem] = taken.get(problem, 0) + 1
        keep[row] = taken[problem] <= (config.per_problem or 0)
    return keep


STRATEGIES: dict[str, Callable[[_Rows, CurateConfig], Mask]] = {
    "all": _all,
    "positives": _positives,
    "cap": _cap,
}
"""By the name in `CurateConfig.strategy`: rewarded rows to the mask of those kept."""


def _report(
    rewards_N: NDArray[np.float64], problem_ids: Sequence[str], keep_N: Mask, config: CurateConfig
) -> dict[str, int | float]:
    rows, kept, unrewarded = len(keep_N), int(keep_N.sum()), int(np.isnan(rewards_N).sum())
    if kept == 0:
        raise DataError(
            f"curation by {config.strategy!r} keeps none of {rows} completions: {unrewarded} have "
            f"no reward, {int((rewards_N > 0).sum())} a positive one. Expected at least one row "
            "to train on; look at the grades, draw more completions or choose another strategy"
        )
    positives = int((rewards_N[keep_N] > 0).sum())
    return {
        "rows": rows,
        "kept": kept,
        "dropped/no_reward": unrewarded,
        "dropped/strategy": rows - kept - unrewarded,
        "problems": len({p for p, has in zip(problem_ids, keep_N, strict=True) if has}),
        "positives": positives,
        "negatives": kept - positives,
        "positive_share": positives / kept,
    }
