"""From a dataset of graded completions to the rows that are trained on, checked before any step."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128_digest

from topr.errors import DataError
from topr.interop import ColumnMap
from topr.interop.column_map import USUAL_NAMES
from topr.interop.reasoning import rebuild
from topr.interop.row_values import RowReader, are_verdicts
from topr.records import FinishReason, Message, SamplingParams
from topr.tokenization.ends import Ends, Finish
from topr.tokenization.prompts import render
from topr.training.distributed import SINGLE_PROCESS, DistributedContext
from topr.training.mapped_rows import dataset_of, write_once_per_node, write_rows

logger = logging.getLogger(__name__)

LEFT_OUT = ("unscored", "empty", "too_long", "truncated", "greedy")
"""Why a row is left out: see `Composition`."""

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
    """Rows left out since their completion is truncated, with `mask_truncated`."""
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


@dataclass(kw_only=True, slots=True)
class _Counts:
    """What is known of the rows when all were read."""

    left_out: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Completions whose text continued after its end."""
    rewards: set[float] = field(default_factory=set)
    """The first three different ones: with three they are not verdicts."""
    graded: bool = False


def prepare_rows(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: int | None = None,
    max_length: int | None = None,
    mask_truncated: bool = False,
    keep_greedy: bool = False,
    eos_ids: Collection[int] = (),
    folder: Path | None = None,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> tuple[Dataset, Composition]:
    """Turn rows of prompt, completion and reward into tokens, and check every one.

    One process of each machine reads the rows, once, and their tokens lie on disk: what is in
    memory does not grow with their number.

    Args:
        dataset: rows with `prompt` (text or messages), `completion` (text) and `reward` (number;
            None leaves the row out; where all are verdicts, true and false or 1 and 0, a wrong
            one is -1), and where there are: `prompt_ids`, `completion_ids`,
            `logprobs` (log mu per completion token), `sampling` (see `topr.records.distribution`),
            `problem_id`, `sample`, `finish_reason`, `revision` (of the writing model). Ids are
            kept as they are; text without ids is tokenised once, with the token that ended it.
            Cells are read as `topr import` reads them.
        tokenizer: for text, and for the end-of-sequence token.
        vocabulary: token ids that the model has, often more than the tokenizer, whose number is
            the default.
        max_length: prompt and completion tokens at most.
        mask_truncated: leave out truncated rows, as their `finish_reason` says.
        keep_greedy: keep rows of temperature 0, scored at temperature 1, for objectives whose
            weights need no log mu. Otherwise they are left out.
        eos_ids: tokens that end a text for the model, other than those the tokenizer names.
        folder: where the tokens lie, at most 8 bytes each; defaults to the system's temporary one.
        distributed: the processes that train on the rows of `ROW_SCHEMA` that are returned.

    Raises:
        DataError: a column is missing, a value is of the wrong kind, or no row is left.

    """
    reader = _Reader(
        tokenizer=tokenizer,
        ends=Ends(tokenizer, eos_ids),
        vocabulary=vocabulary or len(tokenizer),
        max_length=max_length,
        mask_truncated=mask_truncated,
        keep_greedy=keep_greedy,
    )

    def write(path: Path) -> _Counts:
        write_rows(path, ROW_SCHEMA, reader.rows(dataset))
        return reader.counts

    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        table, counts = write_once_per_node(folder, "training-rows", distributed, write)
    return _composed(table, counts)


def _composed(table: pa.Table, counts: _Counts) -> tuple[Dataset, Composition]:
    """Return the rows with their final rewards, and what they are made of; warn of what is odd."""
    rewards = np.asarray(table["reward"])
    from_verdicts = 0.0 in counts.rewards and are_verdicts(counts.rewards, graded=counts.graded)
    if from_verdicts:
        logger.warning(
            "every reward is 1 or 0 (true or false): these are taken for right and wrong, and %d "
            "rows get the reward -1, as topr import reads them",
            int((rewards == 0).sum()),
        )
        rewards = np.where(rewards == 0, np.float32(-1), rewards)
        at = table.schema.get_field_index("reward")
        table = table.set_column(at, ROW_SCHEMA.field("reward"), pa.array(rewards))
    left_out = counts.left_out
    if left_out["greedy"]:
        logger.warning(
            "%d completions were sampled at temperature 0, where nothing is sampled and the ratio "
            "pi/mu has no meaning: left out",
            left_out["greedy"],
        )
    if counts.cut:
        logger.warning(
            "%d completions continue after an end that their text spells out: what follows it is "
            "left out", counts.cut,
        )  # fmt: skip
    return dataset_of(table), Composition(
        rows=len(rewards),
        positives=int((rewards > 0).sum()),
        **{reason: left_out[reason] for reason in LEFT_OUT},
        lowest=float(rewards.min()),
        highest=float(rewards.max()),
        signed=bool((np.abs(rewards) == 1).all()),
        from_verdicts=from_verdicts,
    )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Reads rows in a model's tokens, one at a time, and counts those that it leaves out."""

    tokenizer: PreTrainedTokenizerBase
    ends: Ends
    vocabulary: int
    max_length: int | None
    mask_truncated: bool
    keep_greedy: bool
    counts: _Counts = field(default_factory=_Counts)

    def rows(self, dataset: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield rows of `ROW_SCHEMA`.

        Raises:
            DataError: see `prepare_rows`.

        """
        left_out = self.counts.left_out
        groups: dict[bytes, int] = {}  # by a hash: the prompts themselves would fill the memory
        for number, given in enumerate(dataset):
            row = self._row(number, given)
            if isinstance(row, str):
                left_out[row] += 1
                continue
            prompt = xxh3_128_digest(np.asarray(row["prompt_ids"], np.int32).tobytes())
            row["group"] = groups.setdefault(prompt, len(groups))
            yield row
        if not groups:
            raise DataError(
                f"no rows to train on: {left_out['unscored']} have no reward, {left_out['empty']} "
                f"are empty, {left_out['too_long']} exceed max_length={self.max_length}, "
                f"{left_out['truncated']} are truncated (mask_truncated={self.mask_truncated}) and "
                f"{left_out['greedy']} were sampled at temperature 0, where nothing is sampled and "
                "the ratio pi/mu has no meaning"
            )

    def _row(self, number: int, given: Mapping[str, Any]) -> dict[str, Any] | str:
        """Return a row but for its group, or why it is left out."""
        source, counts = _source(given, number, masked=self.mask_truncated), self.counts
        reward = source.reward()
        if reward is None:
            return "unscored"
        if len(counts.rewards) < 3:
            counts.rewards.add(reward)
        counts.graded = counts.graded or source.graded()
        sampled = source.drawn()
        if sampled.greedy and not self.keep_greedy:
            return "greedy"
        ids, reason, cut = self.read(source)
        if self.mask_truncated and reason is FinishReason.LENGTH:
            return "truncated"
        counts.cut += cut
        if not ids["completion_ids"]:  # imported text can be empty: there is nothing to train on
            return "empty"
        tokens = len(ids["prompt_ids"]) + len(ids["completion_ids"])
        if self.max_length and tokens > self.max_length:
            return "too_long"
        return ids | {
            "row": number,
            "name": f"{source.label('problem_id') or number}#{source.integer('sample') or 0}",
            "revision": _revision(given, source),
            "temperature": sampled.temperature or 1.0,
            "truncated_sampling": not sampled.scored,
            "reward": reward,
        }

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
