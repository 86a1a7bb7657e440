"""When a problem needs no more candidates, so sampling can end early. Nothing is sampled here."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from topr.config import AnnaKareninaRule, CapRule, CurateConfig
from topr.curation.columns import Columns, Mask
from topr.curation.rules import FULL, RULES, SEQUENTIAL


def max_candidates(config: CurateConfig) -> int | None:
    """Return how many completions of a problem are sampled at most, where a rule says so."""
    found = (r.max_candidates for r in config.steps if isinstance(r, AnnaKareninaRule))
    return next(found, None)


def whole_draw_rule(config: CurateConfig) -> str | None:
    """Return the rule before the quota that must see every candidate, so that nothing is saved."""
    before = (rule.rule for rule in _until_quota(config))
    return next((name for name in before if name not in SEQUENTIAL), None)


def finished(columns: Columns, config: CurateConfig) -> Mask:
    """Return for each problem of `columns.names` whether more candidates would change nothing.

    True of a problem whose quota is full and of one that has had its last candidate. The curated
    rows of a problem that is finished are those of any longer draw.

    Args:
        columns: of everything that was sampled so far.
        config: rules, one of which knows when a problem is full.

    """
    most = max_candidates(config)
    drawn_P = np.bincount(columns.problems_N, minlength=len(columns.names))
    done_P: Mask = drawn_P >= (np.inf if most is None else most)
    if whole_draw_rule(config) is not None:
        return done_P
    rows = columns.rows()
    rows = rows.where(~np.isnan(rows.rewards_N))
    for rule in _until_quota(config):
        if not len(rows):
            break
        if rule.rule in FULL:
            done_P[rows.problems_N[FULL[rule.rule](rows, rule)]] = True
        keep = np.ones(len(rows), dtype=np.bool_)
        for dropped in RULES[rule.rule](rows, rule).values():
            keep &= ~dropped
        rows = rows.where(keep)
    return done_P


def most_per_problem(config: CurateConfig, drawn: int) -> int:
    """Return how many completions of a problem curation may keep, of `drawn`."""
    limits = [r.per_problem for r in config.steps if isinstance(r, AnnaKareninaRule | CapRule)]
    return min([max_candidates(config) or drawn, *limits])


def _until_quota(config: CurateConfig) -> Iterator[Any]:
    for rule in config.steps:
        yield rule
        if isinstance(rule, AnnaKareninaRule):
            return
