"""From a row of another tool's to rows of ours, one function a shape: pure, no tokenizer, no files.

Read in the tools' documentation and source: TRL 1.16, verl (`_dump_generations`,
`main_generation`), tinker 0.38 (`Datum`), OpenAI's batch API, open-instruct (`RolloutRecord`).
`formats` says when a row has which shape. A row that has not is a DataError here, its place there.
"""

from collections.abc import Iterator
from typing import Any

from topr.errors import DataError
from topr.interop.row_reader import Row
from topr.store.cells import as_object

_PLURALS = {
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


def same(row: Row) -> Iterator[Row]:
    """Columns that are ours already, or that the user names."""
    yield row


def chats(row: Row) -> Iterator[Row]:
    """A whole chat: what the assistant said last, and what it was said to."""
    messages = as_list(row, "messages", None)
    if len(messages) < 2 or not isinstance(messages[-1], dict):
        raise DataError(
            f"messages holds {_short(messages)}, expected a chat whose last message is the answer"
        )
    shared = {name: value for name, value in row.items() if name not in ("messages", "prompt")}
    yield shared | {"prompt": messages[:-1], "completion": messages[-1:]}


def stepwise(row: Row) -> Iterator[Row]:
    """TRL's stepwise supervision: the list holds the steps of one solution, and no completions of
    their own.
    """
    raise DataError(
        f"the columns {', '.join(row)} are as in TRL's stepwise supervision, where a list holds "
        "the steps of one solution and labels say which steps are right: nothing to train on as it "
        "is. If each entry is a whole completion, say --format grouped; else join the steps into a "
        "column completion, with a reward for the whole"
    )
    yield row


def grouped(
    row: Row, completions: str = "completions", named: tuple[str, ...] = ()
) -> Iterator[Row]:
    """`prompt` and lists: one entry a completion, under the plural of our names.

    An entry that is an object (a text with its score, say) becomes columns of its completion's row.

    Args:
        row: one problem.
        completions: its list of completions.
        named: further lists, which the user names; an entry keeps the name of its list.

    """
    of_each = _PLURALS | {name: name for name in named} | {completions: "completion"}
    of_each = {name: one for name, one in of_each.items() if isinstance(row.get(name), list)}
    entries = as_list(row, completions, None)
    lists = {one: as_list(row, name, len(entries)) for name, one in of_each.items()}
    shared = {name: value for name, value in row.items() if name not in of_each}
    for index, entry in enumerate(entries):
        each = {name: values[index] for name, values in lists.items()}
        if isinstance(entry, dict) and "role" not in entry:
            del each["completion"]
            each |= entry
        yield shared | each


def pairs(row: Row) -> Iterator[Row]:
    """A preferred completion and another: what TRL's `unpair_preference_dataset` makes of them.

    A column named after a side (`chosen_finish_reason`) is of that completion alone.
    """
    of_sides = {f"{side}_{name}" for side in _SIDES for name in ("finish_reason", "last_token_id")}
    shared = {name: row[name] for name in row if name not in _SIDES and name not in of_sides}
    for side, right in _SIDES.items():
        own = {
            name.removeprefix(f"{side}_"): row[name]
            for name in of_sides & set(row)
            if name.startswith(side)
        }
        yield shared | {"completion": row[side], "label": right} | own


def verl(row: Row) -> Iterator[Row]:
    """Data set of verl with the `responses` that `main_generation` adds, and scores if any."""
    truth, extra = expect_object(row, "reward_model"), as_object(row.get("extra_info")) or {}
    responses = as_list(row, "responses", None)
    scores = next((row[name] for name in ("rewards", "scores") if row.get(name) is not None), None)
    rewards = [None] * len(responses) if scores is None else scores
    if len(rewards) != len(responses):
        raise DataError(f"found {len(rewards)} scores of {len(responses)} responses")
    # `topr export` adds these.
    ends, last = (
        as_list(row, name, len(responses)) if row.get(name) else [None] * len(responses)
        for name in ("finish_reasons", "last_token_ids")
    )
    parts = [row.get("data_source"), extra.get("split"), extra.get("index")]
    made = "-".join(str(part) for part in parts if part is not None)
    for response, reward, end, last_id in zip(responses, rewards, ends, last, strict=True):
        yield {
            "prompt": row["prompt"],
            "completion": response,
            "finish_reason": end,
            "last_token_id": last_id,
            "reward": reward,
            "gold": truth.get("ground_truth"),
            "problem_id": extra.get("problem_id") or (made if parts[2] is not None else None),
        }


def verl_dump(row: Row) -> Iterator[Row]:
    """A line of `rollout_data_dir` or `validation_data_dir`."""
    yield {
        "prompt": row["input"],
        "completion": row["output"],
        "gold": row.get("gts"),
        "reward": row["score"],
        "iteration": row.get("step"),
    }


def tinker(row: Row) -> Iterator[Row]:
    """A datum: position i of the input predicts token i + 1, and all tensors go by that."""
    inputs, tensors = _tokens(row["model_input"]), expect_object(row, "loss_fn_inputs")
    targets = _tensor(tensors, "target_tokens", len(inputs))
    if targets[:-1] != inputs[1:]:
        raise DataError("target_tokens are not the input shifted by one: this is no completion")
    advantages = _tensor(tensors, "advantages", len(inputs)) or None
    where = next(
        (
            t
            for n in ("mask", "weights", "advantages")
            if any(t := _tensor(tensors, n, len(inputs)))
        ),
        None,
    )
    if where is None:
        raise DataError(
            "nothing says where the completion begins: give mask or weights, or leave out data "
            "whose advantages are all 0"
        )
    start = next(i for i, value in enumerate(where) if value)
    if not all(where[start:]):
        raise DataError("several turns are in one datum: expected one completion, at its end")
    if advantages is not None and len(set(advantages[start:])) > 1:
        raise DataError("the advantages of one completion differ from token to token")
    logprobs = _tensor(tensors, "logprobs", len(inputs))
    yield {
        "prompt_ids": [*inputs[: start + 1]],
        "completion_ids": targets[start:],
        "logprobs": logprobs[start:] if logprobs else None,
        "reward": row.get("reward", advantages[start] if advantages else None),
        "gold": row.get("gold"),
        "problem_id": row.get("problem_id"),
    }


def open_instruct(row: Row) -> Iterator[Row]:
    """A line that `--save_traces` writes."""
    yield {
        "prompt_ids": row["prompt_tokens"],
        "completion_ids": row["response_tokens"],
        "logprobs": row.get("logprobs"),
        "finish_reason": row.get("finish_reason"),
        "reward": row.get("reward"),
        "gold": row.get("ground_truth"),
        "iteration": row.get("step"),
    }


def as_list(row: Row, name: str, length: int | None) -> list[Any]:
    """Return a column that must be a list, of so many entries if a length is given."""
    values = row.get(name)
    if not isinstance(values, list) or length not in (None, len(values)):
        many = "a list" if length is None else f"a list of {length}, one for each completion"
        raise DataError(f"{name} holds {_short(values)}, expected {many}")
    return values


def expect_object(row: Row, name: str) -> Row:
    """Return a column that must be an object, or the JSON text of one."""
    value = as_object(row.get(name))
    if value is None:
        raise DataError(f"{name} holds {_short(row.get(name))}, expected an object")
    return dict(value)


def _tokens(model_input: Any) -> list[int]:
    chunks = model_input.get("chunks") if isinstance(model_input, dict) else None
    if isinstance(model_input, list):
        return model_input
    if not isinstance(chunks, list) or not all("tokens" in (chunk or {}) for chunk in chunks):
        raise DataError(
            f"model_input holds {_short(model_input)}, expected chunks of tokens (images are not "
            "read)"
        )
    return [token for chunk in chunks for token in chunk["tokens"]]


def _tensor(tensors: Row, name: str, length: int) -> list[Any]:
    """Return a tensor of one number a token, as a datum's JSON or as a plain list; [] for none."""
    value = tensors.get(name)
    data = value.get("data") if isinstance(value, dict) else value
    if data is None and name != "target_tokens":
        return []
    if not isinstance(data, list) or len(data) != length:
        raise DataError(f"{name} holds {_short(value)}, expected {length} numbers, one a token")
    return data


def _short(value: Any) -> str:
    found = repr(value)
    return found if len(found) <= 80 else found[:77] + "..."
