"""From a dataset of graded completions to the rows that are trained on, checked before any step."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.features.features import require_decoding
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128_digest

from topr.errors import DataError
from topr.interop import ColumnMap, ImportOptions
from topr.interop.column_map import USUAL_NAMES
from topr.interop.row_files import rows_of
from topr.interop.row_tokens import RowTokens, TokenReader
from topr.interop.row_values import RowReader, are_verdicts
from topr.records import FinishReason
from topr.training.distributed import SINGLE_PROCESS, DistributedContext
from topr.training.mapped_rows import PART, dataset_of, write_once_per_node, write_rows

logger = logging.getLogger(__name__)

LEFT_OUT = ("unscored", "empty", "too_long", "truncated", "greedy")
"""Why a row is left out: see `Composition`."""

ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # number in the dataset that was given
        ("name", pa.string()),  # problem and sample, for people
        ("revision", pa.string()),  # of the model that wrote the completion, or null
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # log mu as the sampler recorded it, or null
        ("temperature", pa.float32()),
        ("truncated_sampling", pa.bool_()),  # another distribution than is scored was sampled
        ("reward", pa.float32()),
    ]
)
"""What is read of each row. Once all are read, a column is added: `group`, the prompt's number."""


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
    group_N: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Number of each row's prompt, as prompts come up."""


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
    options = ImportOptions(eos_ids=eos_ids, vocabulary=vocabulary)
    reader = _Reader(
        tokens=TokenReader(tokenizer=tokenizer, options=options, texts=False),
        max_length=max_length,
        mask_truncated=mask_truncated,
        keep_greedy=keep_greedy,
    )

    def write(path: Path) -> _Counts:
        write_rows(path, ROW_SCHEMA, reader.rows(_given(dataset)))
        return reader.counted()

    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        table, counts = write_once_per_node(folder, "training-rows", distributed, write)
    return _composed(table, counts)


def _composed(table: pa.Table, counts: _Counts) -> tuple[Dataset, Composition]:
    """Return the rows with their groups and final rewards, and what they are made of; warn of what
    is odd.
    """
    table = table.append_column("group", pa.array(counts.group_N))
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


def _given(dataset: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return rows to be read one by one; of a data set in Arrow, with arrays for lists of numbers.

    One that makes its values when it is asked (a transform, an image) is asked row by row.
    """
    if not isinstance(dataset, Dataset):
        return dataset
    rows: Iterable[Mapping[str, Any]] = dataset
    if dataset.format["type"] or any(map(require_decoding, dataset.features.values())):
        return rows
    parts: Iterable[pa.Table] = dataset.with_format("arrow").iter(batch_size=PART)
    return rows_of((batch for part in parts for batch in part.to_batches()), arrays=True)


_Draft = tuple[RowReader, RowTokens, dict[str, Any]]
"""A row that is not left out so far: what it says in tokens, and its other fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Reads rows in a model's tokens, and counts those that it leaves out."""

    tokens: TokenReader
    max_length: int | None
    mask_truncated: bool
    keep_greedy: bool
    counts: _Counts = field(default_factory=_Counts)
    prompts: bytearray = field(default_factory=bytearray)
    """A hash of each row's prompt: the prompts themselves would fill the memory."""

    def rows(self, dataset: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield rows of `ROW_SCHEMA`.

        Raises:
            DataError: see `prepare_rows`.

        """
        left_out = self.counts.left_out
        numbered = enumerate(dataset)
        while part := list(islice(numbered, PART)):
            drafts = [self._draft(number, given) for number, given in part]
            self.tokens.tokenize([each[1] for each in drafts if not isinstance(each, str)])
            for draft in drafts:
                row = draft if isinstance(draft, str) else self._row(*draft)
                if isinstance(row, str):
                    left_out[row] += 1
                    continue
                self.prompts.extend(xxh3_128_digest(row["prompt_ids"].tobytes()))
                yield row
        if not self.prompts:
            raise DataError(
                f"no rows to train on: {left_out['unscored']} have no reward, {left_out['empty']} "
                f"are empty, {left_out['too_long']} exceed max_length={self.max_length}, "
                f"{left_out['truncated']} are truncated (mask_truncated={self.mask_truncated}) and "
                f"{left_out['greedy']} were sampled at temperature 0, where nothing is sampled and "
                "the ratio pi/mu has no meaning"
            )

    def counted(self) -> _Counts:
        """Return what is known when all rows were read."""
        hashes = np.frombuffer(self.prompts, dtype="S16")
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        self.counts.group_N = rank[inverse]
        self.counts.cut = self.tokens.tally["cut_at_end"]
        return self.counts

    def _draft(self, number: int, given: Mapping[str, Any]) -> _Draft | str:
        """Return what a row says, or why it is left out."""
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
        tokens = self.tokens.read(source, source.finish({}))
        if tokens.prompt_ids is None and not tokens.prompt:
            raise source.error("prompt", "a question that has tokens")
        return (
            source,
            tokens,
            {
                "row": number,
                "name": f"{source.label('problem_id') or number}#{source.integer('sample') or 0}",
                "revision": _revision(given, source),
                "temperature": sampled.temperature or 1.0,
                "truncated_sampling": not sampled.scored,
                "reward": reward,
            },
        )

    def _row(
        self, source: RowReader, tokens: RowTokens, others: dict[str, Any]
    ) -> dict[str, Any] | str:
        """Return a row of `ROW_SCHEMA`, or why it is left out."""
        prompt, completion = (
            self._checked(ids, source, name)
            for name, ids in (("prompt", tokens.prompt_ids), ("completion", tokens.completion_ids))
        )
        if not len(prompt):
            raise source.error("prompt", "a question that has tokens")
        logprobs = source.logprobs(len(completion))
        if self.mask_truncated and tokens.finish_reason is FinishReason.LENGTH:
            return "truncated"
        if not len(completion):  # imported text can be empty: there is nothing to train on
            return "empty"
        if self.max_length and len(prompt) + len(completion) > self.max_length:
            return "too_long"
        return others | {
            "prompt_ids": prompt,
            "completion_ids": completion,
            "logprobs": None if logprobs is None else np.asarray(logprobs, np.float32),
        }

    def _checked(self, ids: Any, source: RowReader, name: str) -> NDArray[np.int32]:
        if not isinstance(ids, np.ndarray):  # text was tokenised
            source.check_ids(ids, name, self.tokens.vocabulary)
        return np.asarray(ids, np.int32)
