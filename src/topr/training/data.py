"""From a dataset of graded completions to the rows that are trained on, checked before any step."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from topr.distribution import Distribution, distribution
from topr.errors import DataError
from topr.prompts import render, turn_end
from topr.records import FinishReason, Message

logger = logging.getLogger(__name__)

ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # number in the dataset that was given
        ("name", pa.string()),  # problem and sample, for people
        ("group", pa.int64()),  # number of the prompt
        ("revision", pa.string()),  # of the model that wrote the completion, or null
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # log mu as the sampler recorded it, or null
        ("temperature", pa.float32()),
        ("truncated_sampling", pa.bool_()),  # another distribution than is scored was sampled
        ("reward", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """What a training set is made of."""

    rows: int
    positives: int
    """Rows with reward > 0."""
    unscored: int
    """Rows left out since they have no reward."""
    empty: int
    """Rows left out since their completion has no tokens."""
    too_long: int
    """Rows left out since they exceed `max_length`."""
    truncated: int
    """Rows left out since the token limit cut their completion off, with `mask_truncated`."""
    greedy: int
    """Rows left out since nothing was sampled: at temperature 0 there is no log mu."""

    lowest: float
    """Smallest reward."""
    highest: float
    """Largest reward."""
    signed: bool
    """Whether all rewards are +1 or -1."""

    @property
    def positive_share(self) -> float:
        """P, the share of positives."""
        return self.positives / self.rows


def prepare_rows(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: int | None = None,
    max_length: int | None = None,
    mask_truncated: bool = False,
    keep_greedy: bool = False,
) -> tuple[Dataset, Composition]:
    """Turn rows of prompt, completion and reward into tokens, and check every one.

    Args:
        dataset: rows with `prompt` (text or messages), `completion` (text) and `reward` (number;
            None leaves the row out), and where there are: `prompt_ids`, `completion_ids`,
            `logprobs` (log mu per completion token), `sampling` (see `topr.distribution`),
            `problem_id`, `sample`, `finish_reason`, `revision` (of the writing model). Ids are
            kept as they are; text without ids is tokenised once, with an end-of-sequence token
            unless `finish_reason` is `length`. What answers messages ends as a turn does in the
            chat template.
        tokenizer: for text, and for the end-of-sequence token.
        vocabulary: token ids that the model knows; none given: as many as the tokenizer. A model's
            embedding is often padded, and a sampler may draw what is beyond the tokenizer.
        max_length: prompt and completion tokens at most.
        mask_truncated: leave out rows with `finish_reason` `length`.
        keep_greedy: keep rows of temperature 0, scored at temperature 1, for objectives whose
            weights need no log mu. Otherwise they are left out.

    Returns:
        Rows of `ROW_SCHEMA`, and what they are made of.

    Raises:
        DataError: a column is missing, a value is of the wrong kind, or no row is left.

    """
    rows: list[dict[str, Any]] = []
    groups: dict[tuple[int, ...], int] = {}
    dropped: Counter[str] = Counter()
    ends = cache(partial(turn_end, tokenizer))
    for number, source in enumerate(dataset):
        reward = _reward(source, number)
        if reward is None:
            dropped["unscored"] += 1
            continue
        if mask_truncated and _finish_reason(source, number) == FinishReason.LENGTH:
            dropped["truncated"] += 1
            continue
        drawn = _distribution(source, number)
        if drawn.greedy and not keep_greedy:
            dropped["greedy"] += 1
            continue
        row = _row(source, number, reward, drawn, tokenizer, vocabulary or len(tokenizer), ends)
        if not row["completion_ids"]:  # imported text can be empty: there is nothing to train on
            dropped["empty"] += 1
            continue
        if max_length and len(row["prompt_ids"]) + len(row["completion_ids"]) > max_length:
            dropped["too_long"] += 1
            continue
        row["group"] = groups.setdefault(tuple(row["prompt_ids"]), len(groups))
        rows.append(row)
    if not rows:
        raise DataError(
            f"no rows to train on: {dropped['unscored']} have no reward, {dropped['empty']} are "
            f"empty, {dropped['too_long']} exceed max_length={max_length}, "
            f"{dropped['truncated']} were cut off (mask_truncated={mask_truncated}) and "
            f"{dropped['greedy']} were drawn at temperature 0, where nothing is sampled and the "
            "ratio pi/mu has no meaning"
        )
    if dropped["greedy"]:
        logger.warning(
            "%d completions were drawn at temperature 0, where nothing is sampled and the ratio "
            "pi/mu has no meaning: left out",
            dropped["greedy"],
        )
    composition = Composition(
        rows=len(rows),
        positives=sum(row["reward"] > 0 for row in rows),
        unscored=dropped["unscored"],
        empty=dropped["empty"],
        too_long=dropped["too_long"],
        truncated=dropped["truncated"],
        greedy=dropped["greedy"],
        lowest=min(row["reward"] for row in rows),
        highest=max(row["reward"] for row in rows),
        signed=all(row["reward"] in (1.0, -1.0) for row in rows),
    )
    return Dataset(pa.Table.from_pylist(rows, schema=ROW_SCHEMA)), composition


def _reward(source: Mapping[str, Any], number: int) -> float | None:
    if "reward" not in source:
        raise DataError(
            f"row {number} has no column 'reward' (columns: {', '.join(source)}); expected +1 for "
            "a correct completion and -1 for any other: grade the file with `topr grade` first"
        )
    reward = source["reward"]
    if reward is None:
        return None
    try:
        value = float(reward)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"row {number}: reward {reward!r} is no finite number")
    return value


def _finish_reason(source: Mapping[str, Any], number: int) -> Any:
    if "finish_reason" not in source:
        raise DataError(
            f"row {number} has no column 'finish_reason' (columns: {', '.join(source)}), which "
            "mask_truncated goes by: 'length' where the token limit cut the completion off. Add "
            "it, or leave mask_truncated out"
        )
    return source["finish_reason"]


def _row(
    source: Mapping[str, Any],
    number: int,
    reward: float,
    drawn: Distribution,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    turn_end: Callable[[], int | None],
) -> dict[str, Any]:
    prompt_ids = source.get("prompt_ids")
    if prompt_ids is None:
        prompt_ids = _prompt_ids(source, number, tokenizer)
    completion_ids = source.get("completion_ids")
    if completion_ids is None:
        completion_ids = _completion_ids(source, number, tokenizer, turn_end)
    if len(prompt_ids) == 0:
        raise DataError(f"row {number}: prompt_ids is empty, expected at least one token id")
    return {
        "row": number,
        "name": f"{source.get('problem_id', number)}#{source.get('sample', 0)}",
        "revision": source.get("revision"),
        "prompt_ids": _checked_ids(prompt_ids, "prompt_ids", number, vocabulary),
        "completion_ids": _checked_ids(completion_ids, "completion_ids", number, vocabulary),
        "logprobs": _checked_logprobs(source.get("logprobs"), len(completion_ids), number),
        "temperature": drawn.temperature or 1.0,
        "truncated_sampling": not drawn.scored,
        "reward": reward,
    }


def _distribution(source: Mapping[str, Any], number: int) -> Distribution:
    sampling = source.get("sampling")
    if not isinstance(sampling, Mapping | None):
        raise DataError(
            f"row {number}: sampling is {type(sampling).__name__}, expected a mapping such as "
            '{"temperature": 0.7, "top_p": 1.0}'
        )
    try:
        return distribution(sampling)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def _prompt_ids(
    source: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    prompt = source.get("prompt")
    if isinstance(prompt, list):
        prompt = tuple(_message(turn, number) for turn in prompt)
    if not isinstance(prompt, str | tuple):
        raise DataError(
            f"row {number}: prompt is {type(prompt).__name__}, expected text or a list of "
            "{role, content} messages (or a column 'prompt_ids')"
        )
    return list(render(prompt, tokenizer).ids)


def _message(turn: Any, number: int) -> Message:
    role, content = (
        (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"row {number}: the prompt has the turn {turn!r:.80}, expected a message with the "
            "texts 'role' and 'content'"
        )
    return Message(role=role, content=content)


def _completion_ids(
    source: Mapping[str, Any],
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    turn_end: Callable[[], int | None],
) -> list[int]:
    completion = source.get("completion")
    if isinstance(completion, list) and len(completion) == 1:
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise DataError(
            f"row {number}: completion is {type(completion).__name__}, expected text or one "
            "{role, content} message (or a column 'completion_ids')"
        )
    ids = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    if source.get("finish_reason", FinishReason.STOP) == FinishReason.LENGTH:
        return ids
    end = turn_end() if isinstance(source.get("prompt"), list) else tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"row {number}: the tokenizer has no eos_token, so a completion's text can't be given "
            "its end. Name one (tokenizer.eos_token), or give completion_ids that hold it"
        )
    return [*ids, end]


def _checked_ids(ids: Any, column: str, number: int, vocabulary: int) -> list[int]:
    checked = [int(i) for i in ids]
    bad = next((i for i in checked if not 0 <= i < vocabulary), None)
    if bad is not None:
        raise DataError(
            f"row {number}: {column} holds {bad}, but the model knows {vocabulary} tokens; were "
            "these completions made with another model's tokenizer?"
        )
    return checked


def _checked_logprobs(logprobs: Any, length: int, number: int) -> list[float] | None:
    if logprobs is None:
        return None
    if len(logprobs) != length:
        raise DataError(
            f"row {number}: {len(logprobs)} logprobs for {length} completion tokens, "
            "expected one each"
        )
    values = np.asarray(logprobs, dtype=np.float32)
    if not np.isfinite(values).all() or (values > 1e-3).any():
        raise DataError(
            f"row {number}: logprobs hold {values[~(np.isfinite(values) & (values <= 1e-3))][0]}, "
            "expected finite natural logarithms of probabilities, at most 0"
        )
    result: list[float] = values.tolist()
    return result
