"""Completions that other tools wrote, as rollouts: text is tokenised once, here, never again.

What the rows lack is not invented: no log-probabilities means that training has to recompute
them with the behaviour model (`behavior_logprobs: recompute`). Nothing is graded here.

Prompt and completion are tokenised apart. Where a tokenizer joins a space to the word after it,
the text at the seam decides the tokens: let a template end in a newline or without a space, and
keep a leading space of the completions where the tool kept it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.errors import ConfigError, DataError, ModelError
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store.columns import ColumnMap
from topr.store.values import RowReader, read_grades

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "import"
_CHUNK = 512


def import_rollouts(
    table: pa.Table,
    *,
    columns: ColumnMap,
    tokenizer: "PreTrainedTokenizerBase",
    model: str,
    sampling: SamplingParams | None = None,
    template: str = "{prompt}",
    ends: bool | str = True,
    iteration: int = 0,
) -> Iterator[Rollout]:
    """Yield one rollout per row, in order.

    Token ids in the rows are kept as they are. Otherwise the prompt gets the tokenizer's special
    tokens (no end-of-sequence token), and the completion none but the end-of-sequence token,
    appended where it ended. A completion is cut at an end-of-sequence token that its text spells
    out, and ended there.

    A reward becomes a grade: a column of verdicts (bool, 0 and 1, correct and wrong) gives +1 and
    -1; other numbers are kept, those above 0 as correct. A null stays ungraded.

    Args:
        table: rows of text, as `read_rows` gives them.
        columns: where what is; None in it means the usual names.
        tokenizer: of the model to be trained.
        model: behaviour model of rows that do not name one.
        sampling: how they were drawn; none given: temperature 1, nothing cut off.
        template: text around a prompt, `{prompt}` standing for it.
        ends: whether completions without a finish reason ended by themselves; a string names a
            column that says so for each.
        iteration: number recorded with the rollouts.

    Raises:
        ConfigError: the template has no `{prompt}`.
        ModelError: the tokenizer has no end-of-sequence token and a completion needs one.
        DataError: a column is missing, or a row does not hold what it should (named by number).

    """
    found = columns.resolve(table)
    _check(table, found, template, ends)
    rollouts = _Importer(found, tokenizer, model, sampling or SamplingParams(), template, ends)
    return rollouts.run(table, iteration)


def _check(table: pa.Table, columns: ColumnMap, template: str, ends: bool | str) -> None:
    if "{prompt}" not in template:
        raise ConfigError(f"template {template!r} has no {{prompt}}, the place of the prompt")
    if columns.prompt_ids and template != "{prompt}":
        raise DataError(
            f"column {columns.prompt_ids} holds prompt ids, which a template cannot change: leave "
            'out the template, or the ids (prompt_ids="")'
        )
    if columns.logprobs and not columns.completion_ids:
        raise DataError(
            f"column {columns.logprobs} holds log-probabilities, but there are no completion ids "
            "that they belong to: name their column (completion_ids=COLUMN), or leave them out "
            '(logprobs="")'
        )
    if isinstance(ends, str) and ends not in table.column_names:
        raise DataError(f"no column {ends!r} for ends: found {', '.join(table.column_names)}")


class _Importer:
    """Rows to rollouts, a chunk at a time: tokenizers are fastest on many texts at once."""

    def __init__(
        self,
        columns: ColumnMap,
        tokenizer: "PreTrainedTokenizerBase",
        model: str,
        sampling: SamplingParams,
        template: str,
        ends: bool | str,
    ) -> None:
        self._columns = columns
        self._tokenizer = tokenizer
        self._model = model
        self._sampling = sampling
        self._template = template
        self._ends = ends
        self._counts: Counter[str] = Counter()
        self._seen: set[tuple[str, int]] = set()

    def run(self, table: pa.Table, iteration: int) -> Iterator[Rollout]:
        grades = iter(read_grades(table, self._columns))
        rows = (
            RowReader(row, self._columns, number=number)
            for number, row in enumerate(_plain_rows(table), start=1)
        )
        while chunk := list(islice(rows, _CHUNK)):
            drafts = [self._draft(row) for row in chunk]
            self._tokenize(drafts)
            for row, draft in zip(chunk, drafts, strict=True):
                yield Rollout(
                    **draft,
                    logprobs=row.logprobs(len(draft["completion_ids"])),
                    sampling=self._sampling,
                    model=row.label("model") or self._model,
                    revision=None,
                    engine=ENGINE,
                    iteration=iteration,
                    gold=row.label("gold"),
                    grade=next(grades),
                )

    def _draft(self, row: RowReader) -> dict[str, Any]:
        """Return the fields that are read, the ids still None where text has to be tokenised."""
        question, completion = row.text("prompt"), row.text("completion")
        completion_ids = row.ids("completion_ids")
        finish_reason = row.finish_reason(self._ends)
        end = self._tokenizer.eos_token
        if completion_ids is None and end and end in completion:
            completion, finish_reason = completion.partition(end)[0], FinishReason.STOP
        problem_id = row.label("problem_id") or _hash(question)
        return {
            "problem_id": problem_id,
            "sample": self._number(row, problem_id),
            "prompt": self._template.replace("{prompt}", question),
            "question": question,
            "prompt_ids": row.ids("prompt_ids"),
            "completion": completion,
            "completion_ids": completion_ids,
            "finish_reason": finish_reason,
        }

    def _number(self, row: RowReader, problem_id: str) -> int:
        sample = row.integer("sample")
        if sample is None:
            sample = self._counts[problem_id]
            self._counts[problem_id] += 1
        if (problem_id, sample) in self._seen:
            raise row.error(
                "sample", f'a number that no other row of {problem_id} has (sample="" numbers them)'
            )
        self._seen.add((problem_id, sample))
        return sample

    def _tokenize(self, drafts: Sequence[dict[str, Any]]) -> None:
        end, end_id = self._tokenizer.eos_token, self._tokenizer.eos_token_id
        prompts = self._encode(
            [draft["prompt"] for draft in drafts if draft["prompt_ids"] is None], special=True
        )
        completions = self._encode(
            [draft["completion"] for draft in drafts if draft["completion_ids"] is None],
            special=False,
        )
        for draft in drafts:
            if draft["prompt_ids"] is None:
                ids = prompts[draft["prompt"]]
                spelled_out = bool(end) and draft["prompt"].endswith(end)
                # Some tokenizers end every text; a prompt is to be continued.
                drop = bool(ids) and ids[-1] == end_id and not spelled_out
                draft["prompt_ids"] = ids[:-1] if drop else ids
            if draft["completion_ids"] is None:
                ids = completions[draft["completion"]]
                finished = draft["finish_reason"] is FinishReason.STOP
                draft["completion_ids"] = (*ids, self._end_id()) if finished else ids

    def _encode(self, texts: Sequence[str], *, special: bool) -> dict[str, tuple[int, ...]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        encoded = self._tokenizer(distinct, add_special_tokens=special)["input_ids"]
        return {text: tuple(ids) for text, ids in zip(distinct, encoded, strict=True)}

    def _end_id(self) -> int:
        end_id = self._tokenizer.eos_token_id
        if not isinstance(end_id, int):
            raise ModelError(
                "the tokenizer has no end-of-sequence token, which a finished completion ends "
                "with: set tokenizer.eos_token, or import with ends=False"
            )
        return end_id


def _plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_CHUNK):
        yield from batch.to_pylist()


def _hash(prompt: str) -> str:
    return "prompt-" + hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:16]
