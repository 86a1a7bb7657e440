"""Rollouts in the shapes that other tools load. An export is a pure function from rows of our
schema to theirs; `EXPORTS` is the table of them. No files here.

TRL and verl read text and tokenise it again: their shapes carry no token ids but each completion's
last, by which an import knows what ended it. `grouped` and `topr` carry everything.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from topr.errors import ConfigError, DataError
from topr.interop.row_files import RawRow
from topr.store.schema import conform

_EXTRA = ("problem_id", "sample", "gold", "finish_reason", "model", "iteration", "sampling")
"""Columns of ours that trainers leave alone, and that say what a row is."""
_SHARED = ("problem_id", "prompt", "prompt_ids", "gold", "model", "iteration", "sampling")
"""Columns that are the same for all completions of a group."""
_LISTS = {
    "completions": "completion",
    "rewards": "reward",
    "completion_ids": "completion_ids",
    "logprobs": "logprobs",
    "finish_reasons": "finish_reason",
    "samples": "sample",
}
"""Columns of a group, and what they list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """One shape."""

    rows: Callable[[Iterable[RawRow], str], Iterable[RawRow]]
    """Rows of our schema, and the name of their data set, to rows of theirs."""
    rewarded: bool = False
    """A completion without a reward has no place in it."""
    tokenized_again: bool = True
    """It carries only text."""
    question_only: bool = False
    """It carries a prompt's question, for a chat template of the tool's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What came out."""

    table: pa.Table
    without_reward: int
    """Completions left out."""
    truncated: int
    """Completions without an end, to which a trainer that reads text adds one."""
    questions: int
    """Prompts of which only the question was written."""


def export_rollouts(table: pa.Table, name: str, *, data_source: str = "topr") -> Exported:
    """Return rollouts in another shape.

    Args:
        table: rollouts.
        name: of `EXPORTS`.
        data_source: what verl calls the data set, by which it finds the reward function.

    Raises:
        ConfigError: no such shape.
        DataError: these are not rollouts, or nothing is left to write.

    """
    if name not in EXPORTS:
        raise ConfigError(f"there is no format {name!r} to write, only {', '.join(EXPORTS)}")
    shape = EXPORTS[name]
    rows = conform(table, where="the rollouts").to_pylist()
    kept = [row for row in rows if not shape.rewarded or row["reward"] is not None]
    made = list(shape.rows(kept, data_source))
    if not made:
        raise DataError(
            f"nothing to write as {name}: of {len(rows)} completions {len(rows) - len(kept)} have "
            "no reward (`topr grade` gives one), and pairs need a right and a wrong one of the "
            "same problem"
        )
    truncated = sum(row["finish_reason"] == "length" for row in kept)
    shortened = {row["prompt"] for row in kept if row["question"] not in (None, row["prompt"])}
    return Exported(
        table=pa.Table.from_pylist(made),
        without_reward=len(rows) - len(kept),
        truncated=truncated if shape.tokenized_again else 0,
        questions=len(shortened) if shape.question_only else 0,
    )


def _ours(rows: Iterable[RawRow], data_source: str) -> Iterable[RawRow]:
    """Every column of ours."""
    return rows


def _trl(rows: Iterable[RawRow], data_source: str) -> Iterator[RawRow]:
    """TRL's prompt-completion."""
    return (_completion(row, reward=row["reward"]) for row in rows)


def _trl_kto(rows: Iterable[RawRow], data_source: str) -> Iterator[RawRow]:
    """TRL's unpaired preference."""
    return (_completion(row, label=row["reward"] > 0) for row in rows)


def _completion(row: RawRow, **graded: Any) -> RawRow:
    text = {"prompt": row["prompt"], "completion": row["completion"]}
    return text | graded | {name: row[name] for name in _EXTRA} | {"last_token_id": _last(row)}


def _trl_dpo(rows: Iterable[RawRow], data_source: str) -> Iterator[RawRow]:
    """TRL's preference: the first right one with the first wrong one, the second with the second,
    while they last."""
    for group in _groups(rows, ("problem_id", "prompt")):
        right = [row for row in group if row["reward"] > 0]
        wrong = [row for row in group if row["reward"] <= 0]
        for chosen, rejected in zip(right, wrong, strict=False):
            sides = {"chosen": chosen, "rejected": rejected}
            pair = {"prompt": chosen["prompt"]}
            pair |= {side: row["completion"] for side, row in sides.items()}
            pair |= {name: chosen[name] for name in ("problem_id", "gold")}
            for side, row in sides.items():
                pair[f"{side}_finish_reason"] = row["finish_reason"]
                pair[f"{side}_last_token_id"] = _last(row)
            yield pair


def _verl(rows: Iterable[RawRow], data_source: str) -> Iterator[RawRow]:
    """One row a problem: verl's own columns, and the responses and rewards that are there."""
    for index, group in enumerate(_groups(rows, ("problem_id", "prompt"))):
        first = group[0]
        asked = first["prompt"] if first["question"] is None else first["question"]
        yield {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": asked}],
            "ability": "reasoning",
            "reward_model": {"style": "rule", "ground_truth": first["gold"]},
            "extra_info": {"split": "train", "index": index, "problem_id": first["problem_id"]},
            "responses": [row["completion"] for row in group],
            "rewards": [row["reward"] for row in group],
            "finish_reasons": [row["finish_reason"] for row in group],
            "last_token_ids": [_last(row) for row in group],
        }


def _grouped(rows: Iterable[RawRow], data_source: str) -> Iterator[RawRow]:
    """One row a problem: lists of completions, rewards, ids, log-probabilities."""
    for group in _groups(rows, _SHARED):
        lists = {name: [row[one] for row in group] for name, one in _LISTS.items()}
        yield {name: group[0][name] for name in _SHARED} | lists


def _last(row: RawRow) -> int | None:
    """Return a completion's last token: text does not say whether it was an end, and which."""
    ids: list[int] = row["completion_ids"]
    return ids[-1] if ids else None


def _groups(rows: Iterable[RawRow], shared: tuple[str, ...]) -> Iterable[list[RawRow]]:
    """Return rows that are alike in `shared`, in the order in which they come up."""
    groups: dict[str, list[RawRow]] = {}
    for row in rows:
        key = json.dumps([row[name] for name in shared], sort_keys=True)
        groups.setdefault(key, []).append(row)
    return groups.values()


EXPORTS: dict[str, Export] = {
    "topr": Export(rows=_ours, tokenized_again=False),
    "grouped": Export(rows=_grouped, tokenized_again=False),
    "trl": Export(rows=_trl),
    "trl-kto": Export(rows=_trl_kto, rewarded=True),
    "trl-dpo": Export(rows=_trl_dpo, rewarded=True),
    "verl": Export(rows=_verl, question_only=True),
}
"""By name, for `topr export --format`."""
