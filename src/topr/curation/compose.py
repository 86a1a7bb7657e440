"""Rules one after the other: which rows are kept, and what each rule dropped and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from topr.config import CurateConfig
from topr.curation.columns import Columns, Mask, Rows
from topr.curation.rules import RULES
from topr.errors import DataError

REWARDED = "rewarded"
"""Name of what comes before every rule: rows without a reward are never trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one rule did.

    >>> StepReport(rule="cap", rows=5, kept=4, dropped={"over_cap": 1}, problems=2, positives=2)
    StepReport(rule='cap', rows=5, kept=4, dropped={'over_cap': 1}, problems=2, positives=2)
    """

    rule: str
    """Its name; `rewarded` for the first, which is always there."""
    rows: int
    """Completions that it was given."""
    kept: int
    dropped: Mapping[str, int]
    """By reason (see `topr.curation.REASONS`); none that dropped nothing."""
    problems: int
    """Problems that still have a completion."""
    positives: int
    """Kept completions with reward > 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationResult:
    """Which rows are trained on."""

    keep: Mask
    """[N] bool, in the order of the rows given."""
    steps: tuple[StepReport, ...]
    """One for each rule, in order."""

    @property
    def report(self) -> dict[str, int | float]:
        """`rows`, `kept`, `problems`, `positives`, `negatives`, and `positive_share`, their p."""
        first, last = self.steps[0], self.steps[-1]
        return {
            "rows": first.rows,
            "kept": last.kept,
            "problems": last.problems,
            "positives": last.positives,
            "negatives": last.kept - last.positives,
            "positive_share": last.positives / last.kept,
        }


def curate(columns: Columns, config: CurateConfig) -> CurationResult:
    """Choose the rows to train on: those with a reward that every rule keeps, in order.

    The choice depends on sample numbers, never on the order of the rows.

    >>> from topr.config import CapRule
    >>> columns = Columns.of([1.0, -1.0, -1.0], ["a", "a", "b"], [0, 1, 0])
    >>> curate(columns, CurateConfig(steps=(CapRule(per_problem=1),))).keep.tolist()
    [True, False, True]

    Args:
        columns: of all completions that were sampled.
        config: the rules.

    Raises:
        DataError: a rule keeps nothing, or cannot do its work on these rows.

    """
    rows = columns.rows()
    at = columns.order_N
    unrewarded = np.isnan(rows.rewards_N)
    rows, at, step = _apply(rows, at, REWARDED, {"no_reward": unrewarded})
    steps = [step]
    for rule in config.steps:
        rows, at, step = _apply(rows, at, rule.rule, RULES[rule.rule](rows, rule))
        steps.append(step)
    keep_N = np.zeros(len(columns.rewards_N), dtype=np.bool_)
    keep_N[at] = True
    return CurationResult(keep=keep_N, steps=tuple(steps))


def _apply(
    rows: Rows, at: Any, name: str, drops: Mapping[str, Mask]
) -> tuple[Rows, Any, StepReport]:
    keep = np.ones(len(rows), dtype=np.bool_)
    for dropped in drops.values():
        keep &= ~dropped
    counts = {reason: int(dropped.sum()) for reason, dropped in drops.items() if dropped.any()}
    left = rows.where(keep)
    if not len(left):
        why = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        what = f"rule {name!r}" if name != REWARDED else "curation"
        raise DataError(
            f"{what} keeps none of {len(rows)} completions ({why or 'there are none'}; "
            f"{int(rows.positive_N.sum())} are positive). Expected at least one row to train on; "
            "look at the grades, draw more completions or change curate.steps"
        )
    return left, at[keep], StepReport(
        rule=name,
        rows=len(rows),
        kept=len(left),
        dropped=counts,
        problems=len(left.starts),
        positives=int(left.positive_N.sum()),
    )  # fmt: skip
