"""Facts of graded completions that advice goes by. Counting only: what follows from them is said in
`topr.advice.rules`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from topr.errors import DataError
from topr.interop import RowStream
from topr.records import FinishReason, Outcome

MANY_VALUES = 3
"""Rewards with more values than this are taken for numbers, not for signs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a dataset is made of. Shares are between 0 and 1."""

    rows: int
    problems: int
    completions: float
    """Of a problem, median."""
    unscored: float
    right: float
    """Rewards above the middle of the lowest and the highest, of those that are there."""
    lowest: float
    highest: float
    values: int
    """Different rewards, counted up to one more than `MANY_VALUES`."""
    mixed: float
    """Problems with right and wrong completions."""
    none_right: float
    truncated: float
    unreadable: float
    """Completions without an answer that the grader could read."""
    repeated: float
    """Completions that are there already, for the same problem."""
    greedy: float
    recorded: float
    """Completions with log-probabilities."""
    writers: tuple[str, ...]
    """Models, with revisions, that wrote them, as far as that is recorded."""
    length: float | None
    """Tokens of a completion, median; None: there are no token ids."""
    longest: float | None
    """The length that one in twenty exceeds."""


def read_facts(source: Path) -> Facts:
    """Count over a directory of graded rollouts, or a file of rows with prompt and reward.

    Raises:
        DataError: there are no rows, or none has a reward.

    """
    return count_facts((row for _, row in RowStream.open(source, arrays=True)), where=str(source))


def count_facts(rows: Iterable[Mapping[str, Any]], *, where: str) -> Facts:
    """Count over rows; one is in memory at a time, and some numbers of each stay."""
    rewards: list[float] = []
    members: list[int] = []
    lengths: list[int] = []
    numbers: dict[str, int] = {}
    seen: set[int] = set()
    counted: Counter[str] = Counter()
    writers: Counter[str] = Counter()
    for row in rows:
        named = (row.get(name) for name in ("problem_id", "prompt", "question"))
        problem = next((value for value in named if value is not None), None)
        number = numbers.setdefault(str(problem), len(numbers))
        text, ids = row.get("completion"), row.get("completion_ids")
        rewards.append(_reward(row.get("reward"), f"{where}, row {len(rewards)}"))
        members.append(number)
        written = np.asarray(ids, np.int32).tobytes() if ids is not None else str(text).encode()
        key = xxh3_64_intdigest(number.to_bytes(8, "little") + written)
        counted["repeated"] += key in seen
        seen.add(key)
        if ids is not None:
            lengths.append(len(ids))
        counted["truncated"] += row.get("finish_reason") == FinishReason.LENGTH
        counted["unreadable"] += row.get("grade") == Outcome.UNPARSEABLE
        counted["recorded"] += row.get("logprobs") is not None
        counted["greedy"] += (row.get("sampling") or {}).get("temperature") == 0
        if row.get("model"):
            writers[" ".join(filter(None, (row["model"], row.get("revision"))))] += 1
    return _facts(
        np.array(rewards), np.array(members), np.array(lengths), counted, writers, where=where
    )


def _reward(value: Any, where: str) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float | np.number):
        raise DataError(f"{where}: reward {value!r}, expected a number or null")
    return float(value)


def _facts(
    rewards_N: np.ndarray[Any, Any], members_N: np.ndarray[Any, Any],
    lengths_N: np.ndarray[Any, Any], counted: Counter[str], writers: Counter[str], *, where: str,
) -> Facts:  # fmt: skip
    rows = len(rewards_N)
    scored_N = ~np.isnan(rewards_N)
    if not scored_N.any():
        raise DataError(
            f"{where} has {rows} rows and no reward in any of them: grade them first (topr grade)"
        )
    lowest, highest = float(np.nanmin(rewards_N)), float(np.nanmax(rewards_N))
    right_N = rewards_N > (lowest + highest) / 2 if lowest < highest else rewards_N > 0
    each_P = np.bincount(members_N)
    right_P, scored_P = (np.bincount(members_N, weights=x) for x in (right_N, scored_N))
    return Facts(
        rows=rows,
        problems=len(each_P),
        completions=float(np.median(each_P)),
        unscored=1 - scored_N.mean(),
        right=float(right_N[scored_N].mean()),
        lowest=lowest,
        highest=highest,
        values=min(len(np.unique(rewards_N[scored_N])), MANY_VALUES + 1),
        mixed=float(((right_P > 0) & (right_P < scored_P)).mean()),
        none_right=float((right_P == 0).mean()),
        **{name: counted[name] / rows for name in (
            "truncated", "unreadable", "repeated", "greedy", "recorded",
        )},
        writers=tuple(name for name, _ in writers.most_common()),
        length=float(np.median(lengths_N)) if len(lengths_N) else None,
        longest=float(np.quantile(lengths_N, 0.95)) if len(lengths_N) else None,
    )  # fmt: skip
