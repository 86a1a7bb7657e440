"""What each rule of the section `curate` drops, and why: pure functions over columns.

A rule is given the rows that the rules before it have left, by problem and in the order of
sampling, and its own options. It returns one mask per reason; no row has two reasons. A new rule
needs a section in `topr.config.curation`, an entry in `RULES`, and its reasons in `REASONS`.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from topr.config import (
    AllRule,
    AnnaKareninaRule,
    CapRule,
    DropDuplicatesRule,
    DropNoSignalRule,
    PassRateRule,
    PositiveShareRule,
    PositivesRule,
)
from topr.curation.columns import Mask, Rows, scramble
from topr.errors import DataError

Drops = Mapping[str, Mask]
"""By reason, a key of `REASONS`: the rows that are dropped for it."""

REASONS = {
    "no_reward": "grading could say nothing of it",
    "not_positive": "its reward is not above 0",
    "over_cap": "the problem has its number of completions",
    "over_max_candidates": "drawn after the last candidate that is looked at",
    "over_max_positives": "right, and the problem has its number of right ones",
    "quota_full": "the problem's quota was full",
    "surplus_positive": "right ones are more than their share",
    "surplus_negative": "wrong ones are more than their share",
    "all_positive": "all completions of the problem are right, with one reward",
    "all_negative": "all completions of the problem are wrong, with one reward",
    "duplicate": "the same as an earlier completion of the problem",
    "too_hard": "the problem is solved less often than asked for",
    "too_easy": "the problem is solved more often than asked for",
}
"""Why a completion is left out, in plain words."""


def keep_all(rows: Rows, rule: AllRule) -> Drops:
    """Drop nothing."""
    return {}


def positives(rows: Rows, rule: PositivesRule) -> Drops:
    """Drop what has no reward above 0."""
    return {"not_positive": ~rows.positive_N}


def cap(rows: Rows, rule: CapRule) -> Drops:
    """Drop what was sampled after the first `per_problem` completions of a problem."""
    everything = np.ones(len(rows), dtype=np.bool_)
    return {"over_cap": rows.earlier(everything) >= rule.per_problem}


def cap_full(rows: Rows, rule: CapRule) -> Mask:
    """Return, for each row, whether its problem has its number."""
    return rows.in_problem(np.ones(len(rows), dtype=np.bool_)) >= rule.per_problem


def anna_karenina(rows: Rows, rule: AnnaKareninaRule) -> Drops:
    """Fill a quota per problem: few positives, many negatives (arXiv 2503.14286).

    Candidates are taken in the order of sampling until the quota is full: positives up to
    `max_positives`, negatives up to the rest of the quota, less `reserve`. What the quota still
    lacks when there are no candidates left goes to further negatives. Once a quota is full, no
    later candidate changes it: sampling can stop there.
    """
    candidate, few, kept = _anna_karenina(rows, rule)
    lacking = rule.per_problem - rows.in_problem(kept)
    further = candidate & ~rows.positive_N & ~kept
    kept = kept | (further & (rows.earlier(further) < lacking))
    surplus = candidate & rows.positive_N & ~few
    return {
        "over_max_candidates": ~candidate,
        "over_max_positives": surplus,
        "quota_full": candidate & ~surplus & ~kept,
    }


def anna_karenina_full(rows: Rows, rule: AnnaKareninaRule) -> Mask:
    """Return, for each row, whether its problem's quota is full, whatever else may be sampled."""
    _, _, kept = _anna_karenina(rows, rule)
    return rows.in_problem(kept) >= rule.per_problem


def _anna_karenina(rows: Rows, rule: AnnaKareninaRule) -> tuple[Mask, Mask, Mask]:
    """Return the candidates, the positives that may be kept, and what is kept on the way."""
    candidate = rows.place_N < rule.max_candidates
    positive, negative = candidate & rows.positive_N, candidate & ~rows.positive_N
    few = positive & (rows.earlier(positive) < rule.max_positives)
    open_ = few | (negative & (rows.earlier(negative) < rule.per_problem - rule.reserve))
    return candidate, few, open_ & (rows.earlier(open_) < rule.per_problem)


def positive_share(rows: Rows, rule: PositiveShareRule) -> Drops:
    """Thin out the abundant side until positives have their share.

    Every completion of that side is kept with the same chance q, so that in expectation training
    sees what a baseline would make of all of them: the side's gradient times q. The draw is
    systematic (every 1/q-th row, by problem in an order that the seed fixes), so each problem loses
    the same fraction up to one completion, instead of one problem all by bad luck.

    Raises:
        DataError: there are no positives or no negatives, so that no choice has that share.

    """
    right = int(rows.positive_N.sum())
    wrong = len(rows) - right
    if not right or not wrong:
        raise DataError(
            f"positive_share: of {len(rows)} completions {right} are positive, so no choice among "
            f"them has a share of {rule.share}. Leave the rule out, or draw more completions"
        )
    ratio = rule.share / (1 - rule.share)
    abundant = right > ratio * wrong
    side = rows.positive_N if abundant else ~rows.positive_N
    wanted = max(1, round(ratio * wrong if abundant else right / ratio))
    reason = "surplus_positive" if abundant else "surplus_negative"
    return {reason: side & ~_thinned(rows, side, wanted, rule.seed)}


def _thinned(rows: Rows, side: Mask, wanted: int, seed: int) -> Mask:
    """Return `wanted` rows of one side, the same fraction of each problem's up to one row."""
    keys = np.array([_key(seed, rows.names[p]) for p in rows.problems_N[rows.starts]], np.uint64)
    rows_of_side = np.flatnonzero(side)
    per_row = np.repeat(keys, np.diff(np.r_[rows.starts, len(rows)]))[rows_of_side]
    ordered = rows_of_side[np.argsort(per_row, kind="stable")]
    total = len(ordered)
    start = int(_key(seed, "") % np.uint64(total))
    crossed = (np.arange(total + 1, dtype=np.int64) * min(wanted, total) + start) // total
    kept = np.zeros(len(rows), dtype=np.bool_)
    kept[ordered[np.diff(crossed) > 0]] = True
    return kept


def _key(seed: int, name: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return np.uint64(scramble(np.frombuffer(digest, dtype=np.uint64))[0])


def drop_no_signal(rows: Rows, rule: DropNoSignalRule) -> Drops:
    """Drop problems whose completions all have one reward: nothing there is better or worse."""
    first = np.repeat(rows.rewards_N[rows.starts], np.diff(np.r_[rows.starts, len(rows)]))
    flat = rows.in_problem(rows.rewards_N != first) == 0
    return {"all_positive": flat & rows.positive_N, "all_negative": flat & ~rows.positive_N}


def drop_duplicates(rows: Rows, rule: DropDuplicatesRule) -> Drops:
    """Drop what repeats an earlier completion of the problem, token by token.

    Raises:
        DataError: the columns were made without completions.

    """
    if rows.completions_N is None:
        raise DataError("drop_duplicates looks at completions: give them to `Columns`")
    order = np.lexsort((rows.completions_N, rows.problems_N))  # stable: the earlier one stays first
    same = (rows.completions_N[order][1:] == rows.completions_N[order][:-1]) & (
        rows.problems_N[order][1:] == rows.problems_N[order][:-1]
    )
    duplicate = np.zeros(len(rows), dtype=np.bool_)
    duplicate[order[1:]] = same
    return {"duplicate": duplicate}


def pass_rate(rows: Rows, rule: PassRateRule) -> Drops:
    """Drop problems whose share of positives is outside the band."""
    solved = rows.in_problem(rows.positive_N)
    rate = solved / rows.in_problem(np.ones(len(rows), dtype=np.bool_))
    return {"too_hard": rate < rule.lowest, "too_easy": rate > rule.highest}


RULES: dict[str, Callable[[Rows, Any], Drops]] = {
    "all": keep_all,
    "positives": positives,
    "cap": cap,
    "anna_karenina": anna_karenina,
    "positive_share": positive_share,
    "drop_no_signal": drop_no_signal,
    "drop_duplicates": drop_duplicates,
    "pass_rate": pass_rate,
}
"""By the name in a step's `rule`."""

SEQUENTIAL = frozenset({"all", "positives", "cap", "drop_duplicates", "anna_karenina"})
"""Rules whose word on a completion does not depend on those sampled after it."""

FULL: dict[str, Callable[[Rows, Any], Mask]] = {
    "cap": cap_full,
    "anna_karenina": anna_karenina_full,
}
"""Rules that know when a problem is full: nothing that is sampled later is kept."""
