"""From a dataset of graded completions to the rows that are trained on, checked before any step."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from topr.distribution import Distribution, distribution
from topr.ends import Ends, Finish, read_finish
from topr.errors import DataError
from topr.prompts import render
from topr.records import FinishReason, Message
from topr.store import ColumnMap, plain
from topr.store.cells import as_messages
from topr.store.columns import USUAL_NAMES
from topr.store.reasoning import rebuild
from topr.store.values import RowReader

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
    eos_ids: Collection[int] = (),
) -> tuple[Dataset, Composition]:
    """Turn rows of prompt, completion and reward into tokens, and check every one.

    Args:
        dataset: rows with `prompt` (text or messages), `completion` (text) and `reward` (number;
            None leaves the row out), and where there are: `prompt_ids`, `completion_ids`,
            `logprobs` (log mu per completion token), `sampling` (see `topr.distribution`),
            `problem_id`, `sample`, `finish_reason`, `revision` (of the writing model). Ids are
            kept as they are; text without ids is tokenised once, with the token that ended it:
            see `topr.ends`, which `topr import` goes by too.
        tokenizer: for text, and for the end-of-sequence token.
        vocabulary: token ids that the model knows; none given: as many as the tokenizer. A model's
            embedding is often padded, and a sampler may draw what is beyond the tokenizer.
        max_length: prompt and completion tokens at most.
        mask_truncated: leave out rows that a limit cut off, as their `finish_reason` says.
        keep_greedy: keep rows of temperature 0, scored at temperature 1, for objectives whose
            weights need no log mu. Otherwise they are left out.
        eos_ids: tokens that end a text for the model, beside those that the tokenizer names.

    Returns:
        Rows of `ROW_SCHEMA`, and what they are made of.

    Raises:
        DataError: a column is missing, a value is of the wrong kind, or no row is left.

    """
    rows: list[dict[str, Any]] = []
    groups: dict[tuple[int, ...], int] = {}
    dropped: Counter[str] = Counter()
    ends = Ends(tokenizer, eos_ids)
    for number, given in enumerate(dataset):
        source = {name: plain(value) for name, value in given.items()}
        reward = _reward(source, number)
        if reward is None:
            dropped["unscored"] += 1
            continue
        drawn = _distribution(source, number)
        if drawn.greedy and not keep_greedy:
            dropped["greedy"] += 1
            continue
        finish = _finish(source, number, needed=mask_truncated)
        prompt_ids = source.get("prompt_ids")
        prompt = _prompt(source, number, tokenizer)
        if prompt_ids is None:
            prompt_ids = render(prompt, tokenizer).ids
        completion_ids, reason, cut = _completion_ids(
            source, number, finish, prompt, tokenizer, ends
        )
        if mask_truncated and reason is FinishReason.LENGTH:
            dropped["truncated"] += 1
            continue
        dropped["cut"] += cut
        row = _row(
            source, number, reward, drawn, prompt_ids, completion_ids, vocabulary or len(tokenizer)
        )
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
    if dropped["cut"]:
        logger.warning(
            "%d completions go on after an end that their text spells out: what follows it is left "
            "out", dropped["cut"],
        )  # fmt: skip
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


def _finish(source: Mapping[str, Any], number: int, *, needed: bool) -> Finish | None:
    if needed and "finish_reason" not in source:
        raise DataError(
            f"row {number} has no column 'finish_reason' (columns: {', '.join(source)}), which "
            "mask_truncated goes by: 'length' where the token limit cut the completion off. Add "
            "it, or leave mask_truncated out"
        )
    try:
        return read_finish(source.get("finish_reason"))
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def _row(
    source: Mapping[str, Any],
    number: int,
    reward: float,
    drawn: Distribution,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    vocabulary: int,
) -> dict[str, Any]:
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


def _prompt(
    source: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase
) -> str | tuple[Message, ...]:
    """Return what the prompt says: its ids, and the end of an answer in text, depend on it."""
    prompt, ids = source.get("prompt"), source.get("prompt_ids")
    if ids is not None and source.get("completion_ids") is not None:
        return ""  # nothing depends on it
    try:
        prompt = as_messages(prompt)
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error
    if isinstance(prompt, list):
        prompt = tuple(_message(turn, number) for turn in prompt)
    if isinstance(prompt, str | tuple):
        return prompt
    if ids is not None:
        return str(tokenizer.decode(list(ids)))
    raise DataError(
        f"row {number}: prompt is {type(prompt).__name__}, expected text or a list of "
        "{role, content} messages (or a column 'prompt_ids')"
    )


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
    finish: Finish | None,
    prompt: str | tuple[Message, ...],
    tokenizer: PreTrainedTokenizerBase,
    ends: Ends,
) -> tuple[list[int], FinishReason, bool]:
    """Return the tokens that the model wrote, its end among them, how it ended, and whether its
    text went on after that.
    """
    ids = source.get("completion_ids")
    if ids is not None:
        return ids, ends.of_ids(ids, finish)[0], False
    thought = next((name for name in USUAL_NAMES["reasoning"] if source.get(name)), "")
    row = RowReader(
        source, ColumnMap(completion="completion", reasoning=thought), place=f"row {number}"
    )
    completion, reasoning = row.written(), row.reasoning()
    if reasoning is not None:
        try:
            completion = rebuild(reasoning, completion, tokenizer)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from error
    stop = (source.get("sampling") or {}).get("stop") or ()
    found = ends.of_text(
        completion,
        prompt,
        finish,
        last_id=source.get("last_token_id"),
        stop=(stop,) if isinstance(stop, str) else stop,
    )
    written = list(tokenizer(found.text, add_special_tokens=False)["input_ids"])
    whole = written if found.end is None else [*written, found.end]
    return whole, found.reason, found.cut


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
