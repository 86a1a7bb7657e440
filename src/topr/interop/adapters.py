"""From a row of another tool's to rows of ours, one function a shape: pure, no tokenizer, no files.

Read in the tools' documentation and source: TRL 1.16, verl (`_dump_generations`,
`main_generation`), tinker 0.38 (`Datum`), OpenAI's batch API, open-instruct (`RolloutRecord`).
`formats` says when a row has which shape. A row that does not fit is a DataError here; `formats`
adds its place.
"""

from collections.abc import Callable, Iterator
from typing import Any

from topr.errors import DataError
from topr.interop.row_files import RawRow
from topr.store.cells import as_object

PLURALS = {
    "rewards": "reward",
    "labels": "reward",
    "scores": "reward",
    "completion_ids": "completion_ids",
    "logprobs": "logprobs",
    "finish_reasons": "finish_reason",
    "samples": "sample",
    "last_token_ids": "last_token_id",
}
"""Columns of lists, one entry a completion, and what an entry is."""
_SIDES = {"chosen": True, "rejected": False}


def same(row: RawRow) -> Iterator[RawRow]:
    """Columns that are ours already, or that the user names."""
    yield row


def renamed(**columns: str) -> Callable[[RawRow], Iterator[RawRow]]:
    """One completion a row, under other names: ours=theirs. Other columns are left out."""

    def rename(row: RawRow) -> Iterator[RawRow]:
        yield {ours: row.get(theirs) for ours, theirs in columns.items()}

    return rename


def chats(row: RawRow) -> Iterator[RawRow]:
    """A whole chat: the last message is the completion, those before it are the prompt."""
    messages = as_list(row, "messages", None)
    if len(messages) < 2 or not isinstance(messages[-1], dict):
        raise DataError(
            f"messages holds {messages!r:.80}, expected a chat whose last message is the answer"
        )
    shared = {name: value for name, value in row.items() if name not in ("messages", "prompt")}
    yield shared | {"prompt": messages[:-1], "completion": messages[-1:]}


def grouped(
    row: RawRow, completions: str = "completions", named: tuple[str, ...] = ()
) -> Iterator[RawRow]:
    """`prompt` and lists: one entry a completion, under the plural of our names.

    An entry that is an object (a text with its score, say) becomes columns of its completion's row.

    Args:
        row: one problem.
        completions: its list of completions.
        named: more lists, which the user names; an entry keeps the name of its list.

    """
    of_each = PLURALS | {name: name for name in named} | {completions: "completion"}
    of_each = {name: one for name, one in of_each.items() if isinstance(row.get(name), list)}
    many = len(as_list(row, completions, None))
    shared = {name: value for name, value in row.items() if name not in of_each}
    for each in _entries({one: as_list(row, name, many) for name, one in of_each.items()}):
        entry = each["completion"]
        if isinstance(entry, dict) and "role" not in entry:
            del each["completion"]
            each |= entry
        yield shared | each


def pairs(row: RawRow) -> Iterator[RawRow]:
    """A preferred completion and another: what TRL's `unpair_preference_dataset` makes of them.

    A column named after a side (`chosen_finish_reason`) belongs to that completion only.
    """
    shared = {name: value for name, value in row.items() if name not in _SIDES}
    for side, right in _SIDES.items():
        of_side = {
            name: row[f"{side}_{name}"]
            for name in ("finish_reason", "last_token_id")
            if f"{side}_{name}" in row
        }
        yield shared | {"completion": row[side], "label": right} | of_side


def verl(row: RawRow) -> Iterator[RawRow]:
    """Data set of verl with the `responses` that `main_generation` adds, and scores if any;
    `topr export` adds how they ended."""
    truth, extra = expect_object(row, "reward_model"), as_object(row.get("extra_info")) or {}
    parts = [row.get("data_source"), extra.get("split"), extra.get("index")]
    made = "-".join(str(part) for part in parts if part is not None)
    shared = {
        "prompt": row["prompt"],
        "gold": truth.get("ground_truth"),
        "problem_id": extra.get("problem_id") or (made if parts[2] is not None else None),
    }
    many = len(as_list(row, "responses", None))
    lists = {
        "completion": "responses",
        "finish_reason": "finish_reasons",
        "last_token_id": "last_token_ids",
        "reward": "scores" if row.get("rewards") is None else "rewards",
    }
    for each in _entries(
        {
            one: [None] * many if row.get(name) is None else as_list(row, name, many)
            for one, name in lists.items()
        }
    ):
        yield shared | each


def tinker(row: RawRow) -> Iterator[RawRow]:
    """A datum: position i of the input predicts token i + 1, and all tensors go by that.

    Prompt 7 8 9, completion 4 5:

        input        7 8 9 4
        target       8 9 4 5
        mask         0 0 1 1
    """
    inputs, tensors = _tokens(row["model_input"]), expect_object(row, "loss_fn_inputs")

    def tensor(name: str) -> list[Any]:
        return _tensor(tensors, name, len(inputs))

    targets, advantages, logprobs = map(tensor, ("target_tokens", "advantages", "logprobs"))
    if targets[:-1] != inputs[1:]:
        raise DataError("target_tokens are not the input shifted by one: not a completion")
    masks = (tensor(name) for name in ("mask", "weights", "advantages"))
    mask = next(filter(any, masks), [])
    if not mask:
        raise DataError(
            "nothing says where the completion begins: give mask or weights, or leave out data "
            "whose advantages are all 0"
        )
    start = next(i for i, value in enumerate(mask) if value)
    if not all(mask[start:]):
        raise DataError("several turns are in one datum: expected one completion, at its end")
    if len(set(advantages[start:])) > 1:
        raise DataError("the advantages of one completion differ from token to token")
    yield {
        "prompt_ids": inputs[: start + 1],
        "completion_ids": targets[start:],
        "logprobs": logprobs[start:] or None,
        "reward": row.get("reward", advantages[start] if advantages else None),
        "gold": row.get("gold"),
        "problem_id": row.get("problem_id"),
    }


def as_list(row: RawRow, name: str, length: int | None) -> list[Any]:
    """Return a column that must be a list, of so many entries if a length is given."""
    values = row.get(name)
    if not isinstance(values, list) or length not in (None, len(values)):
        many = "a list" if length is None else f"a list of {length}, one for each completion"
        raise DataError(f"{name} holds {values!r:.80}, expected {many}")
    return values


def expect_object(row: RawRow, name: str) -> RawRow:
    """Return a column that must be an object, or the JSON text of one."""
    value = as_object(row.get(name))
    if value is None:
        raise DataError(f"{name} holds {row.get(name)!r:.80}, expected an object")
    return dict(value)


def _entries(lists: dict[str, list[Any]]) -> Iterator[RawRow]:
    """Yield an object of the first entries of all lists, of the second ones, and so on."""
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def _tokens(model_input: Any) -> list[int]:
    chunks = model_input.get("chunks") if isinstance(model_input, dict) else None
    if isinstance(model_input, list):
        return model_input
    if not isinstance(chunks, list) or not all("tokens" in (chunk or {}) for chunk in chunks):
        raise DataError(
            f"model_input holds {model_input!r:.80}, expected chunks of tokens (images are not "
            "read)"
        )
    return [token for chunk in chunks for token in chunk["tokens"]]


def _tensor(tensors: RawRow, name: str, length: int) -> list[Any]:
    """Return a tensor of one number a token, as a datum's JSON or as a plain list; [] for none."""
    value = tensors.get(name)
    data = value.get("data") if isinstance(value, dict) else value
    if data is None and name != "target_tokens":
        return []
    if not isinstance(data, list) or len(data) != length:
        raise DataError(f"{name} holds {value!r:.80}, expected {length} numbers, one a token")
    return data
