"""Completions that other tools wrote, as rollouts: text is tokenised once, here, never again.

What the rows lack is not invented: no log-probabilities means that training has to recompute
them with the behaviour model (`behavior_logprobs: recompute`). Nothing is graded here.

Prompt and completion are tokenised apart. Where a tokenizer joins a space to the word after it,
the text at the seam decides the tokens: let a template end in a newline or without a space, and
keep a leading space of the completions where the tool kept it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.errors import ConfigError, DataError, ModelError
from topr.prompts import RenderedPrompt, encode_prompts, render, taken_apart, turn_end
from topr.records import FinishReason, Message, Rollout, SamplingParams
from topr.store.columns import TEXT_OR_IDS, ColumnMap
from topr.store.rows import Rows
from topr.store.values import Grades, RowReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "import"
_CHUNK = 512
_PLACE = "{prompt}"


def import_rollouts(
    table: pa.Table | Rows,
    *,
    columns: ColumnMap,
    tokenizer: "PreTrainedTokenizerBase",
    model: str,
    sampling: SamplingParams | None = None,
    template: str = _PLACE,
    ends: bool | str | None = None,
    literal: bool = False,
    iteration: int = 0,
    tally: Counter[str] | None = None,
) -> Iterator[Rollout]:
    """Yield one rollout per row, in order.

    Token ids in the rows are kept as they are; text that is not beside them is decoded from them.
    Otherwise the prompt gets the tokenizer's special tokens (no end-of-sequence token), and the
    completion none but the end-of-sequence token, appended where it ended. A prompt of messages
    goes through the chat template, and what ends its answer is the token that ends a turn there.
    A completion is cut at an end that its text spells out, and ended there.

    Where a row was sampled with more than a rollout can say (a penalty, min_p), its
    log-probabilities are left out: they are those of another distribution.

    A reward becomes a grade: a column of verdicts (bool, 0 and 1, correct and wrong) gives +1 and
    -1; other numbers are kept, those above 0 as correct. A null stays ungraded.

    Args:
        table: rows as `read_rows` or `Rows.open` give them; of the latter few are in memory.
        columns: where what is; None in it means the usual names.
        tokenizer: of the model to be trained.
        model: behaviour model of rows that do not name one.
        sampling: how they were drawn; none given: temperature 1, nothing cut off.
        template: text around a prompt, `{prompt}` standing for it.
        ends: whether completions without a finish reason ended by themselves; a string names a
            column that says so for each. None given: text did, and token ids did where the last one
            ends a text or a turn, if the tokenizer has such a token.
        literal: special tokens that a prompt's text spells out are taken apart by a space.
        iteration: number recorded with rollouts that have none.
        tally: counts what was tokenised, kept, decoded and assumed, as `intake` explains.

    Raises:
        ConfigError: the template has no `{prompt}`.
        ModelError: the tokenizer lacks an end-of-sequence token or chat template that is needed.
        DataError: a column is missing, or a row does not hold what it should (named by number).

    """
    rows = Rows.of(table)
    found = columns.resolve(rows, required=TEXT_OR_IDS)
    _check(rows, found, template, ends)
    importer = _Importer(
        found,
        Grades(rows, found),
        tokenizer,
        {"model": model, "sampling": sampling or SamplingParams(), "iteration": iteration},
        template,
        ends,
        literal,
        Counter() if tally is None else tally,
    )
    return importer.run(rows)


def _check(rows: Rows, columns: ColumnMap, template: str, ends: bool | str | None) -> None:
    if _PLACE not in template:
        raise ConfigError(f"template {template!r} has no {_PLACE}, the place of the prompt")
    if columns.prompt_ids and template != _PLACE:
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
    if isinstance(ends, str) and ends not in rows.column_names:
        raise DataError(f"no column {ends!r} for ends: found {', '.join(rows.column_names)}")


class _Importer:
    """Rows to rollouts, a chunk at a time: tokenizers are fastest on many texts at once."""

    def __init__(
        self,
        columns: ColumnMap,
        grades: Grades,
        tokenizer: "PreTrainedTokenizerBase",
        defaults: dict[str, Any],
        template: str,
        ends: bool | str | None,
        literal: bool,
        tally: Counter[str],
    ) -> None:
        self._columns = columns
        self._grades = grades
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._template = template
        self._ends = ends
        self._literal = literal
        self._tally = tally
        self._tally["verdicts"] = grades.verdicts
        self._counts: Counter[str] = Counter()
        self._seen: set[tuple[str, int]] = set()

    def run(self, rows: Rows) -> Iterator[Rollout]:
        readers = (RowReader(row, self._columns, place=place) for place, row in rows)
        while chunk := list(islice(readers, _CHUNK)):
            drafts = [self._draft(row) for row in chunk]
            self._tokenize(drafts)
            for row, draft in zip(chunk, drafts, strict=True):
                iteration = row.integer("iteration")
                logprobs = row.logprobs(len(draft["completion_ids"]))
                if logprobs is not None and row.changes_unrecorded():
                    logprobs = None
                    self._tally["logprobs_left_out"] += 1
                self._tally["without_logprobs"] += logprobs is None
                yield Rollout(
                    **draft,
                    logprobs=logprobs,
                    sampling=row.sampling(self._defaults["sampling"]),
                    model=row.label("model") or self._defaults["model"],
                    revision=None,
                    engine=ENGINE,
                    iteration=self._defaults["iteration"] if iteration is None else iteration,
                    gold=row.label("gold"),
                    grade=self._grades.read(row),
                )

    def _draft(self, row: RowReader) -> dict[str, Any]:
        """Return the fields that are read, the ids still None where text has to be tokenised."""
        prompt, prompt_ids = self._prompt(row), row.ids("prompt_ids")
        completion, completion_ids = self._completion(row)
        finish_reason = row.finish_reason(True if self._ends is None else self._ends)
        known = row.there("finish_reason") or isinstance(self._ends, str)
        if completion_ids is None:
            end = self._end(prompt)
            spelled = None if end is None else str(self._tokenizer.convert_ids_to_tokens(end))
            if spelled and spelled in completion:
                completion, known = completion.partition(spelled)[0], True
                finish_reason = FinishReason.STOP
        elif not known and self._ends is None and self._end_ids:
            ended, known = not self._end_ids.isdisjoint(completion_ids[-1:]), True
            finish_reason = FinishReason.STOP if ended else FinishReason.LENGTH
            self._tally["ended_by_id" if ended else "cut_off_by_id"] += 1
        self._tally["ends_assumed"] += not known
        self._tally["completions_tokenized"] += completion_ids is None
        self._tally["prompts_tokenized"] += prompt_ids is None
        problem_id = row.label("problem_id") or _hash(prompt)
        if isinstance(prompt, str):
            text = self._template.replace(_PLACE, prompt)
            said: dict[str, Any] = {"prompt": text, "question": prompt}
        else:
            said = {"prompt": prompt, "question": prompt[-1].content}
        return {
            "problem_id": problem_id,
            "sample": self._number(row, problem_id),
            **said,
            "prompt_ids": prompt_ids,
            "completion": completion,
            "completion_ids": completion_ids,
            "finish_reason": finish_reason,
        }

    def _prompt(self, row: RowReader) -> str | tuple[Message, ...]:
        ids = row.ids("prompt_ids")
        if ids is not None and not row.there("prompt"):
            return str(self._tokenizer.decode(list(ids)))
        prompt = row.turns("prompt")
        if not isinstance(prompt, str) and self._template != _PLACE:
            raise row.error("prompt", "text, which a template goes around (messages need none)")
        return taken_apart(prompt, self._tokenizer) if self._literal else prompt

    def _completion(self, row: RowReader) -> tuple[str, tuple[int, ...] | None]:
        ids = row.ids("completion_ids")
        if ids is None or row.there("completion"):
            return row.written(), ids
        self._tally["completions_decoded"] += 1
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)), ids

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
        completions = self._encode(
            [draft["completion"] for draft in drafts if draft["completion_ids"] is None]
        )
        for draft in drafts:
            if draft["completion_ids"] is None:
                ids = completions[draft["completion"]]
                finished = draft["finish_reason"] is FinishReason.STOP
                end = (self._end_id(draft["prompt"]),) if finished else ()
                draft["completion_ids"] = (*ids, *end)
        self._render([draft for draft in drafts if not isinstance(draft["prompt"], str)])
        texts = list(dict.fromkeys(d["prompt"] for d in drafts if d["prompt_ids"] is None))
        prompts = dict(zip(texts, encode_prompts(texts, self._tokenizer), strict=True))
        for draft in drafts:
            if draft["prompt_ids"] is None:
                draft["prompt_ids"] = prompts[draft["prompt"]]

    def _render(self, drafts: Sequence[dict[str, Any]]) -> None:
        """Put chats through the template; where a row has ids, its text is what they say."""
        rendered: dict[Any, RenderedPrompt] = {}
        for draft in drafts:
            prompt, ids = draft["prompt"], draft["prompt_ids"]
            if ids is not None:
                draft["prompt"] = str(self._tokenizer.decode(list(ids)))
                continue
            if prompt not in rendered:
                rendered[prompt] = render(prompt, self._tokenizer)
            draft["prompt"], draft["prompt_ids"] = rendered[prompt].text, rendered[prompt].ids

    def _encode(self, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        encoded = self._tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {text: tuple(ids) for text, ids in zip(distinct, encoded, strict=True)}

    @cached_property
    def _turn_end(self) -> int | None:
        return turn_end(self._tokenizer)

    @cached_property
    def _end_ids(self) -> set[int]:
        """The tokens that end a text or a turn, as far as the tokenizer says."""
        turn = None
        if self._tokenizer.chat_template:
            with suppress(ModelError):  # a template that has no answers
                turn = self._turn_end
        return {end for end in (self._tokenizer.eos_token_id, turn) if isinstance(end, int)}

    def _end(self, prompt: str | tuple[Message, ...]) -> int | None:
        """Return the token that ends what answers this prompt."""
        if not isinstance(prompt, str):
            return self._turn_end
        end = self._tokenizer.eos_token_id
        return end if isinstance(end, int) else None

    def _end_id(self, prompt: str | tuple[Message, ...]) -> int:
        end = self._end(prompt)
        if end is None:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, which a finished completion ends "
                "with: set tokenizer.eos_token, or import with ends=False"
            )
        return end


def _hash(prompt: str | tuple[Message, ...]) -> str:
    if not isinstance(prompt, str):
        prompt = json.dumps([[turn.role, turn.content] for turn in prompt])
    return "prompt-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
