"""From a row of another tool's to rows of ours, one function a shape: pure, no tokenizer, no files.

Read in the tools' documentation and source: TRL 1.16, verl (`_dump_generations`,
`main_generation`), tinker 0.38 (`Datum`), OpenAI's batch API, open-instruct (`RolloutRecord`).
`formats` says when a row has which shape. A row that has not is a DataError here, its place there.
"""

import json
from collections.abc import Iterator
from typing import Any

from topr.distribution import distribution
from topr.errors import DataError
from topr.store.rows import Row

_PLURALS = {
    "rewards": "reward",
    "labels": "reward",
    "scores": "reward",
    "completion_ids": "completion_ids",
    "logprobs": "logprobs",
    "finish_reasons": "finish_reason",
    "samples": "sample",
}
"""Columns of lists, one entry a completion, and what an entry is."""


def same(row: Row) -> Iterator[Row]:
    """Columns that are ours already, or that the user names."""
    yield row


def grouped(row: Row) -> Iterator[Row]:
    """`prompt` and lists: one entry a completion, under the plural of our names."""
    of_each = {"completions": "completion"} | {
        name: one for name, one in _PLURALS.items() if isinstance(row.get(name), list)
    }
    completions = _list(row, "completions", None)
    lists = {one: _list(row, name, len(completions)) for name, one in of_each.items()}
    shared = {name: value for name, value in row.items() if name not in of_each}
    for index in range(len(completions)):
        yield shared | {name: values[index] for name, values in lists.items()}


def pairs(row: Row) -> Iterator[Row]:
    """A preferred completion and another: what TRL's `unpair_preference_dataset` makes of them."""
    shared = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    yield shared | {"completion": row["chosen"], "label": True}
    yield shared | {"completion": row["rejected"], "label": False}


def verl(row: Row) -> Iterator[Row]:
    """Data set of verl with the `responses` that `main_generation` adds, and scores if any."""
    truth, extra = _object(row, "reward_model"), row.get("extra_info") or {}
    responses = _list(row, "responses", None)
    scores = next((row[name] for name in ("rewards", "scores") if row.get(name) is not None), None)
    rewards = [None] * len(responses) if scores is None else scores
    if len(rewards) != len(responses):
        raise DataError(f"found {len(rewards)} scores of {len(responses)} responses")
    said = row.get("finish_reasons")  # which `topr export` adds
    ends = _list(row, "finish_reasons", len(responses)) if said else [None] * len(responses)
    parts = [row.get("data_source"), extra.get("split"), extra.get("index")]
    made = "-".join(str(part) for part in parts if part is not None)
    for response, reward, end in zip(responses, rewards, ends, strict=True):
        yield {
            "prompt": row["prompt"],
            "completion": response,
            "finish_reason": end,
            "reward": reward,
            "gold": _text(truth.get("ground_truth")),
            "problem_id": extra.get("problem_id") or (made if parts[2] is not None else None),
        }


def verl_dump(row: Row) -> Iterator[Row]:
    """A line of `rollout_data_dir` or `validation_data_dir`."""
    yield {
        "prompt": row["input"],
        "completion": row["output"],
        "gold": _text(row.get("gts")),
        "reward": row["score"],
        "iteration": row.get("step"),
    }


def tinker(row: Row) -> Iterator[Row]:
    """A datum: position i of the input predicts token i + 1, and all tensors go by that."""
    inputs, tensors = _tokens(row["model_input"]), _object(row, "loss_fn_inputs")
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
        "gold": _text(row.get("gold")),
        "problem_id": row.get("problem_id"),
    }


_NO_ANSWER = ("content_filter", "tool_calls", "function_call")
"""Reasons to finish of what is no whole completion."""


def openai(row: Row) -> Iterator[Row | None]:
    """A line of a batch's output. A failed request has no completion, nor has a tool call or what a
    filter stopped: None stands for each."""
    response = row["response"] or {}
    if row.get("error") or response.get("status_code", 200) != 200:
        yield None
        return
    body, asked = _object(response, "body"), _object(row["request"], "body")
    prompt = asked.get("messages", asked.get("prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = [_spoken(message) for message in prompt]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        raise DataError("the request has several prompts: expected one for each custom_id")
    ids = bool(prompt) and isinstance(prompt, list) and isinstance(prompt[0], int)
    drawn = {n: asked[n] for n in ("temperature", "top_p", "top_k") if asked.get(n) is not None}
    # What is not said may be the server's default, or the model's own.
    plain = drawn.get("temperature") == 1 and drawn.get("top_p") == 1 and distribution(asked).scored
    if drawn.get("top_k") == -1:  # vLLM's word for off
        drawn["top_k"] = 0
    for choice in _list(body, "choices", None):
        chat = choice.get("message")
        token_ids = choice.get("token_ids")
        text = chat.get("content") if isinstance(chat, dict) else choice.get("text")
        if choice.get("finish_reason") in _NO_ANSWER or (text is None and not token_ids):
            yield None
            continue
        yield {
            "prompt": None if ids else prompt,
            "prompt_ids": prompt if ids else choice.get("prompt_token_ids"),
            "completion": text,
            "completion_ids": token_ids,
            # They are of the model's own distribution, whatever was sampled.
            "logprobs": _openai_logprobs(choice) if token_ids and plain else None,
            "finish_reason": choice.get("finish_reason"),
            "sampling": drawn,
            "model": body.get("model"),
            "id": row["custom_id"],
        }


def _spoken(message: Any) -> Any:
    """Return a message with its parts of text as one text; other parts are left as they are."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}


def _openai_logprobs(choice: Row) -> list[float] | None:
    found = choice.get("logprobs") or {}
    if found.get("content") is not None:
        return [token["logprob"] for token in found["content"]]
    return found.get("token_logprobs")


def open_instruct(row: Row) -> Iterator[Row]:
    """A line that `--save_traces` writes."""
    yield {
        "prompt_ids": row["prompt_tokens"],
        "completion_ids": row["response_tokens"],
        "logprobs": row.get("logprobs"),
        "finish_reason": row.get("finish_reason"),
        "reward": row.get("reward"),
        "gold": _text(row.get("ground_truth")),
        "iteration": row.get("step"),
    }


def _list(row: Row, name: str, length: int | None) -> list[Any]:
    values = row.get(name)
    if not isinstance(values, list) or length not in (None, len(values)):
        many = "a list" if length is None else f"a list of {length}, one for each completion"
        raise DataError(f"{name} holds {_short(values)}, expected {many}")
    return values


def _object(row: Row, name: str) -> Row:
    value = row.get(name)
    if not isinstance(value, dict):
        raise DataError(f"{name} holds {_short(value)}, expected an object")
    return value


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


def _text(value: Any) -> str | None:
    """Return a reference answer as text: the only one of a list, else JSON."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    found = repr(value)
    return found if len(found) <= 80 else found[:77] + "..."
