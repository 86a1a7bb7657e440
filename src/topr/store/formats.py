"""The shapes in which other tools leave completions. A format is a small pure function from one of
its rows to rows of our own names (those of `ColumnMap`, one completion each); `FORMATS` is the
table of them. No tokenizer and no files here.

Read in the tools' documentation and source: TRL 1.16, verl (`_dump_generations`,
`main_generation`), tinker 0.38 (`Datum`), OpenAI's batch API, open-instruct (`RolloutRecord`).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from topr.errors import ConfigError, DataError
from topr.store.rows import Row, Rows
from topr.store.schema import OPTIONAL_COLUMNS, ROLLOUT_SCHEMA

OURS = "topr"


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One shape."""

    about: str
    """What it is, for people."""
    needs: frozenset[str]
    """Columns that every such file has, and by which it is recognised."""
    rows: Callable[[Row], Iterator[Row]]
    """One of the tool's rows to rows of ours."""
    joined_by: str = ""
    """Column that names the row of a second file, which is then in the row as `request`."""
    notes: tuple[str, ...] = field(default=())
    """What the user has to know of completions in this shape."""


def recognise(row: Row) -> str:
    """Return the name of the format that a row has: of those that fit, the one that says most.

    Raises:
        DataError: several fit, none of which says more than the others.

    """
    fitting = [name for name, shape in FORMATS.items() if shape.needs <= set(row)]
    most = [n for n in fitting if not any(FORMATS[n].needs < FORMATS[o].needs for o in fitting)]
    if len(most) > 1:
        shapes = "; ".join(f"{name} ({', '.join(sorted(FORMATS[name].needs))})" for name in most)
        raise DataError(
            f"the columns {', '.join(row)} fit several formats: {shapes}. Say which it is: "
            f"--format {most[0]}"
        )
    return most[0]


def reshape(
    rows: Rows, name: str, beside: Rows | None = None, *, tally: Counter[str] | None = None
) -> Rows:
    """Return rows of our own names; messages name the rows of the source.

    Args:
        rows: as the tool left them.
        name: of the format.
        beside: rows of the second file, where the format joins one.
        tally: gets the number of rows that hold no completion as `left_out`.

    Raises:
        ConfigError: no such format, or a second file that is missing or has no use.
        DataError: on the way through: a row that does not have this shape.

    """
    shape = named(name)
    if bool(shape.joined_by) != (beside is not None):
        wanted = "needs the" if shape.joined_by else "takes no"
        raise ConfigError(f"the format {name} {wanted} file of requests: --requests FILE")
    requests = {} if beside is None else {row[shape.joined_by]: row for _, row in beside}
    counted: Counter[str] = Counter() if tally is None else tally

    def read() -> Iterator[tuple[str, Row]]:
        counted["left_out"] = 0  # of this pass
        for place, row in rows:
            try:
                made = list(_shaped(row, name, requests))
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            counted["left_out"] += not made
            yield from ((place, row) for row in made)

    return Rows(read)


def named(name: str) -> Format:
    """Return a format.

    Raises:
        ConfigError: there is none of that name.

    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}, only {', '.join(FORMATS)}")
    return FORMATS[name]


def _shaped(row: Row, name: str, requests: dict[Any, Row]) -> Iterator[Row]:
    shape = FORMATS[name]
    if missing := shape.needs - set(row):
        raise DataError(
            f"found the columns {', '.join(row)}, expected {', '.join(sorted(missing))} as well, "
            f"as the format {name} has it. Mend the row, or say another --format"
        )
    if shape.joined_by:
        key = row[shape.joined_by]
        if key not in requests:
            raise DataError(
                f"no request has the {shape.joined_by} {key!r}: give the file that this batch was "
                "started with"
            )
        row = row | {"request": requests[key]}
    return shape.rows(row)


def _same(row: Row) -> Iterator[Row]:
    yield row


def _grouped(row: Row) -> Iterator[Row]:
    """`prompt` and lists: one entry a completion, under the plural of our names."""
    of_each = {"completions": "completion"} | {
        name: one for name, one in _PLURALS.items() if isinstance(row.get(name), list)
    }
    completions = _list(row, "completions", None)
    lists = {one: _list(row, name, len(completions)) for name, one in of_each.items()}
    shared = {name: value for name, value in row.items() if name not in of_each}
    for index in range(len(completions)):
        yield shared | {name: values[index] for name, values in lists.items()}


def _pairs(row: Row) -> Iterator[Row]:
    """A preferred completion and another: what TRL's `unpair_preference_dataset` makes of them."""
    shared = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    yield shared | {"completion": row["chosen"], "label": True}
    yield shared | {"completion": row["rejected"], "label": False}


def _verl(row: Row) -> Iterator[Row]:
    """Data set of verl with the `responses` that `main_generation` adds, and scores if any."""
    truth, extra = _object(row, "reward_model"), row.get("extra_info") or {}
    responses = _list(row, "responses", None)
    scores = next((row[name] for name in ("rewards", "scores") if row.get(name) is not None), None)
    rewards = [None] * len(responses) if scores is None else scores
    if len(rewards) != len(responses):
        raise DataError(f"found {len(rewards)} scores of {len(responses)} responses")
    parts = [row.get("data_source"), extra.get("split"), extra.get("index")]
    made = "-".join(str(part) for part in parts if part is not None)
    for response, reward in zip(responses, rewards, strict=True):
        yield {
            "prompt": row["prompt"],
            "completion": response,
            "reward": reward,
            "gold": _text(truth.get("ground_truth")),
            "problem_id": extra.get("problem_id") or (made if parts[2] is not None else None),
        }


def _verl_dump(row: Row) -> Iterator[Row]:
    """A line of `rollout_data_dir` or `validation_data_dir`."""
    yield {
        "prompt": row["input"],
        "completion": row["output"],
        "gold": _text(row.get("gts")),
        "reward": row["score"],
        "iteration": row.get("step"),
    }


def _tinker(row: Row) -> Iterator[Row]:
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


def _openai(row: Row) -> Iterator[Row]:
    """A line of a batch's output; a failed request has no completion and is left out."""
    response = row["response"] or {}
    if row.get("error") or response.get("status_code", 200) != 200:
        return
    body, asked = _object(response, "body"), _object(row["request"], "body")
    prompt = asked.get("messages", asked.get("prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        raise DataError("the request has several prompts: expected one for each custom_id")
    ids = bool(prompt) and isinstance(prompt, list) and isinstance(prompt[0], int)
    drawn = {n: asked[n] for n in ("temperature", "top_p", "top_k") if asked.get(n) is not None}
    plain = (
        drawn.get("temperature", 1) == 1 and drawn.get("top_p", 1) == 1 and not drawn.get("top_k")
    )
    if drawn.get("top_k") == -1:  # vLLM's word for off
        drawn["top_k"] = 0
    for choice in _list(body, "choices", None):
        chat = choice.get("message")
        token_ids = choice.get("token_ids")
        yield {
            "prompt": None if ids else prompt,
            "prompt_ids": prompt if ids else choice.get("prompt_token_ids"),
            "completion": chat.get("content") if isinstance(chat, dict) else choice.get("text"),
            "completion_ids": token_ids,
            # They are of the model's own distribution, whatever was sampled.
            "logprobs": _openai_logprobs(choice) if token_ids and plain else None,
            "finish_reason": choice.get("finish_reason"),
            "sampling": drawn,
            "model": body.get("model"),
            "id": row["custom_id"],
        }


def _openai_logprobs(choice: Row) -> list[float] | None:
    found = choice.get("logprobs") or {}
    if found.get("content") is not None:
        return [token["logprob"] for token in found["content"]]
    return found.get("token_logprobs")


def _open_instruct(row: Row) -> Iterator[Row]:
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


_PLURALS = {
    "rewards": "reward",
    "labels": "reward",
    "scores": "reward",
    "completion_ids": "completion_ids",
    "logprobs": "logprobs",
    "finish_reasons": "finish_reason",
    "samples": "sample",
}

_REPORTED = "verl writes text without special tokens, so its ids are not those that were sampled"

FORMATS: dict[str, Format] = {
    "columns": Format(
        about="any rows with a prompt and a completion, by usual names or those you give",
        needs=frozenset(),
        rows=_same,
    ),
    OURS: Format(
        about="rollouts in topr's own schema, kept as they are",
        needs=frozenset(ROLLOUT_SCHEMA.names) - OPTIONAL_COLUMNS,
        rows=_same,
    ),
    "trl": Format(
        about="prompt, completion, and reward or label if any; text or messages",
        needs=frozenset({"prompt", "completion"}),
        rows=_same,
    ),
    "trl-dpo": Format(
        about="TRL's preferences: prompt, chosen, rejected",
        needs=frozenset({"prompt", "chosen", "rejected"}),
        rows=_pairs,
        notes=("preferences are read as chosen: right, rejected: wrong",),
    ),
    "grouped": Format(
        about="prompt with lists: completions, rewards, logprobs, completion_ids, ...",
        needs=frozenset({"prompt", "completions"}),
        rows=_grouped,
    ),
    "verl": Format(
        about="verl's data with responses, and rewards if any",
        needs=frozenset({"prompt", "reward_model", "responses"}),
        rows=_verl,
        notes=(_REPORTED,),
    ),
    "verl-dump": Format(
        about="verl's rollout_data_dir: input, output, gts, score, step",
        needs=frozenset({"input", "output", "score"}),
        rows=_verl_dump,
        notes=(_REPORTED,),
    ),
    "tinker": Format(
        about="Tinker's datums as JSON: model_input, loss_fn_inputs",
        needs=frozenset({"model_input", "loss_fn_inputs"}),
        rows=_tinker,
        notes=(
            "where a datum has no reward of its own, its advantage is the reward: train with "
            "train.baseline=0",
        ),
    ),
    "openai-batch": Format(
        about="output of OpenAI's batch API (vLLM's run-batch too), with --requests",
        needs=frozenset({"custom_id", "response"}),
        rows=_openai,
        joined_by="custom_id",
        notes=(
            "log-probabilities are kept only beside token ids, and where temperature, top_p and "
            "top_k left the distribution as it was",
        ),
    ),
    "open-instruct": Format(
        about="open-instruct's traces: prompt_tokens, response_tokens, reward, ...",
        needs=frozenset({"prompt_tokens", "response_tokens"}),
        rows=_open_instruct,
    ),
}
"""By name. `topr import --format` takes one; else it is recognised by the first row's columns."""
