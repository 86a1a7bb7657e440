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
from topr.interop.row_reader import Row
from topr.store.schema import conform

_BESIDE = ("problem_id", "sample", "gold", "finish_reason", "model", "iteration", "sampling")
"""Columns of ours that trainers leave alone, and that say what a row is."""
_SHARED = ("problem_id", "prompt", "prompt_ids", "gold", "model", "iteration", "sampling")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """One shape."""

    about: str
    """What it is, for people."""
    rows: Callable[[Iterable[Row], str], Iterator[Row]]
    """Rows of our schema, and the name of their data set, to rows of theirs."""
    rewarded: bool = False
    """A completion without a reward has no place in it."""
    tokenized_again: bool = True
    """It carries text alone."""
    question_alone: bool = False
    """It carries a prompt's question, for a template of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What came out."""

    table: pa.Table
    without_reward: int
    """Completions left out."""
    cut_off: int
    """Completions without an end, to which a trainer that reads text adds one."""
    questions: int
    """Prompts of which the question alone was written."""


def export_rollouts(table: pa.Table, name: str, *, data_source: str = "topr") -> Exported:
    """Return rollouts in another shape.

    Args:
        table: rollouts.
        name: of `EXPORTS`.
        data_source: what verl calls the data set, by which it finds the reward function.

    Raises:
        ConfigError: no such shape.
        DataError: these are no rollouts, or nothing is left to write.

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
    cut_off = sum(row["finish_reason"] == "length" for row in kept)
    shortened = {row["prompt"] for row in kept if row["question"] not in (None, row["prompt"])}
    return Exported(
        table=pa.Table.from_pylist(made),
        without_reward=len(rows) - len(kept),
        cut_off=cut_off if shape.tokenized_again else 0,
        questions=len(shortened) if shape.question_alone else 0,
    )


def _ours(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
    yield from rows


def _trl(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
    for row in rows:
        said = {name: row[name] for name in ("prompt", "completion", "reward", *_BESIDE)}
        yield said | {"last_token_id": _last(row)}


def _trl_kto(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
    for row in rows:
        text = {name: row[name] for name in ("prompt", "completion")}
        said = text | {"label": row["reward"] > 0} | {name: row[name] for name in _BESIDE}
        yield said | {"last_token_id": _last(row)}


def _trl_dpo(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
    """The first right one with the first wrong one, the second with the second, while they last."""
    for group in _groups(rows, ("problem_id", "prompt")):
        right = [row for row in group if row["reward"] > 0]
        wrong = [row for row in group if row["reward"] <= 0]
        for chosen, rejected in zip(right, wrong, strict=False):
            yield {
                "prompt": chosen["prompt"],
                "chosen": chosen["completion"],
                "rejected": rejected["completion"],
                **{name: chosen[name] for name in ("problem_id", "gold")},
                **{
                    f"{side}_{name}": value
                    for side, row in (("chosen", chosen), ("rejected", rejected))
                    for name, value in (
                        ("finish_reason", row["finish_reason"]),
                        ("last_token_id", _last(row)),
                    )
                },
            }


def _verl(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
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


def _last(row: Row) -> int | None:
    """Return a completion's last token: text does not say whether it was an end, and which."""
    ids: list[int] = row["completion_ids"]
    return ids[-1] if ids else None


def _grouped(rows: Iterable[Row], data_source: str) -> Iterator[Row]:
    for group in _groups(rows, _SHARED):
        yield {name: group[0][name] for name in _SHARED} | {
            "completions": [row["completion"] for row in group],
            "rewards": [row["reward"] for row in group],
            "completion_ids": [row["completion_ids"] for row in group],
            "logprobs": [row["logprobs"] for row in group],
            "finish_reasons": [row["finish_reason"] for row in group],
            "samples": [row["sample"] for row in group],
        }


def _groups(rows: Iterable[Row], shared: tuple[str, ...]) -> Iterable[list[Row]]:
    """Return rows that are alike in `shared`, in the order in which they come up."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key: list[Any] = [row[name] for name in shared]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(row)
    return groups.values()


EXPORTS: dict[str, Export] = {
    "topr": Export(about="every column of ours", rows=_ours, tokenized_again=False),
    "grouped": Export(
        about="one row a problem: lists of completions, rewards, ids, log-probabilities",
        rows=_grouped,
        tokenized_again=False,
    ),
    "trl": Export(about="prompt, completion, reward: TRL's prompt-completion", rows=_trl),
    "trl-kto": Export(
        about="prompt, completion, label: TRL's unpaired preference", rows=_trl_kto, rewarded=True
    ),
    "trl-dpo": Export(
        about="prompt, chosen, rejected: TRL's preference", rows=_trl_dpo, rewarded=True
    ),
    "verl": Export(
        about="verl's data, with responses and rewards", rows=_verl, question_alone=True
    ),
}
"""By name, for `topr export --format`."""
