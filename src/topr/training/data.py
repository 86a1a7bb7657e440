"""From a dataset of graded completions to the rows that are trained on, checked before any step."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from topr.errors import DataError
from topr.interop import ColumnMap
from topr.interop.column_map import USUAL_NAMES
from topr.interop.reasoning import rebuild
from topr.interop.row_values import RowReader, are_verdicts
from topr.records import FinishReason, Message, SamplingParams
from topr.tokenization.ends import Ends, Finish
from topr.tokenization.prompts import render

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
    from_verdicts: bool
    """Whether they were given as 1 and 0, true and false."""

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
            None leaves the row out; where all are verdicts, true and false or 1 and 0, a wrong
            one is -1), and where there are: `prompt_ids`, `completion_ids`,
            `logprobs` (log mu per completion token), `sampling` (see `topr.distribution`),
            `problem_id`, `sample`, `finish_reason`, `revision` (of the writing model). Ids are
            kept as they are; text without ids is tokenised once, with the token that ended it.
            Every cell is read as `topr import` reads it, CSV's too.
        tokenizer: for text, and for the end-of-sequence token.
        vocabulary: token ids that the model knows; defaults to as many as the tokenizer. A model's
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
    reader = _Reader(
        tokenizer=tokenizer,
        ends=Ends(tokenizer, eos_ids),
        vocabulary=vocabulary or len(tokenizer),
    )
    rewards: set[float] = set()
    graded = False
    for number, given in enumerate(dataset):
        source = _source(given, number, masked=mask_truncated)
        reward = source.reward()
        if reward is None:
            dropped["unscored"] += 1
            continue
        rewards.add(reward)
        graded = graded or source.graded()
        drawn = source.drawn()
        if drawn.greedy and not keep_greedy:
            dropped["greedy"] += 1
            continue
        ids, reason, cut = reader.read(source)
        if mask_truncated and reason is FinishReason.LENGTH:
            dropped["truncated"] += 1
            continue
        dropped["cut"] += cut
        row = ids | {
            "row": number,
            "name": f"{source.label('problem_id') or number}#{source.integer('sample') or 0}",
            "revision": _revision(given, source),
            "temperature": drawn.temperature or 1.0,
            "truncated_sampling": not drawn.scored,
            "reward": reward,
        }
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
    from_verdicts = 0.0 in rewards and are_verdicts(rewards, graded=graded)
    if from_verdicts:
        _as_signs(rows)
    if dropped["greedy"]:
        logger.warning(
            "%d completions were drawn at temperature 0, where nothing is sampled and the ratio "
            "pi/mu has no meaning: left out",
            dropped["greedy"],
        )
    if dropped["cut"]:
        logger.warning(
            "%d completions continue after an end that their text spells out: what follows it is "
            "left out", dropped["cut"],
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
        from_verdicts=from_verdicts,
    )
    return Dataset(pa.Table.from_pylist(rows, schema=ROW_SCHEMA)), composition


_NOT_READ = ("gold", "model", "iteration")
_COLUMNS = {
    thought: ColumnMap(
        **{name: "" if name in _NOT_READ else name for name in USUAL_NAMES} | {"reasoning": thought}
    )
    for thought in ("", *USUAL_NAMES["reasoning"])
}
"""The columns of rows that are trained on: our own names, and that of what was thought."""


def _source(given: Mapping[str, Any], number: int, *, masked: bool) -> RowReader:
    """Return the reader of a row: the one by which `topr import` goes."""
    if not isinstance(given, Mapping):
        raise DataError(
            f"row {number} is {type(given).__name__}, expected an object with prompt, completion "
            "and reward (of a DatasetDict give one split)"
        )
    if "reward" not in given:
        raise DataError(
            f"row {number} has no column 'reward' (columns: {', '.join(given)}); expected +1 for "
            "a correct completion and -1 for any other: grade the file with `topr grade` first"
        )
    if masked and "finish_reason" not in given:
        raise DataError(
            f"row {number} has no column 'finish_reason' (columns: {', '.join(given)}), which "
            "mask_truncated goes by: 'length' where the token limit cut the completion off. Add "
            "it, or leave mask_truncated out"
        )
    thought = next((name for name in USUAL_NAMES["reasoning"] if given.get(name)), "")
    return RowReader(given, _COLUMNS[thought], place=f"row {number}")


def _revision(given: Mapping[str, Any], source: RowReader) -> str | None:
    revision = given.get("revision")
    if isinstance(revision, float) and revision != revision:  # pandas' null
        return None
    if not isinstance(revision, str | None):
        raise source.error("revision", "text, the revision of the model that wrote it")
    return revision or None


def _as_signs(rows: list[dict[str, Any]]) -> None:
    """Give what is wrong the reward -1, where rewards are verdicts."""
    wrong = [row for row in rows if row["reward"] == 0]
    for row in wrong:
        row["reward"] = -1.0
    logger.warning(
        "every reward is 1 or 0 (true or false): these are taken for right and wrong, and %d "
        "rows get the reward -1, as topr import reads them",
        len(wrong),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Reads what was written in a model's tokens."""

    tokenizer: PreTrainedTokenizerBase
    ends: Ends
    vocabulary: int

    def read(self, source: RowReader) -> tuple[dict[str, Any], FinishReason, bool]:
        """Return the ids and log-probabilities of a row, how its completion ended, and whether its
        text continued after that.
        """
        finish = source.finish({})
        prompt_ids = source.ids("prompt_ids", self.vocabulary)
        completion_ids = source.ids("completion_ids", self.vocabulary)
        # Its ids, and the end of an answer in text, depend on what a prompt says.
        prompt = "" if prompt_ids and completion_ids is not None else self._prompt(source)
        cut = False
        if completion_ids is None:
            written, reason, cut = self._written(source, finish, prompt)
            source.check_ids(written, "completion", self.vocabulary)
        else:
            written, reason = list(completion_ids), self.ends.of_ids(completion_ids, finish)[0]
        if prompt_ids is None:
            prompt_ids = render(prompt, self.tokenizer).ids
            source.check_ids(prompt_ids, "prompt", self.vocabulary)
        logprobs = source.logprobs(len(written))
        ids = {"prompt_ids": prompt_ids, "completion_ids": written, "logprobs": logprobs}
        return ids, reason, cut

    def _prompt(self, source: RowReader) -> str | tuple[Message, ...]:
        ids = source.ids("prompt_ids", self.vocabulary)
        if ids is not None and not source.there("prompt"):
            return str(self.tokenizer.decode(list(ids)))
        return source.turns("prompt")

    def _written(
        self, source: RowReader, finish: Finish | None, prompt: str | tuple[Message, ...]
    ) -> tuple[list[int], FinishReason, bool]:
        """Return the tokens of a text with its end, how it ended, and whether it continued."""
        text, thought = source.written(), source.reasoning()
        if thought is not None:
            try:
                text = rebuild(thought, text, self.tokenizer)
            except DataError as error:
                raise DataError(f"{source.place}: {error}") from error
        found = self.ends.of_text(
            text,
            prompt,
            finish,
            last_id=source.integer("last_token_id"),
            stop=source.sampling(SamplingParams()).stop,
        )
        ids = list(self.tokenizer(found.text, add_special_tokens=False)["input_ids"])
        return ids if found.end is None else [*ids, found.end], found.reason, found.cut
