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
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.distribution import distribution
from topr.errors import DataError
from topr.interop.column_map import TEXT_OR_IDS, ColumnMap
from topr.interop.import_options import PLACE, Reading
from topr.interop.reasoning import Rebuilt, rebuild
from topr.interop.row_reader import Rows
from topr.interop.row_values import Grades, RowReader
from topr.records import Message, Rollout, SamplingParams
from topr.tokenization.ends import Ends, Finish
from topr.tokenization.prompts import RenderedPrompt, encode_prompts, render, taken_apart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "import"
_CHUNK = 512


def import_rollouts(
    table: pa.Table | Rows,
    *,
    columns: ColumnMap,
    tokenizer: "PreTrainedTokenizerBase",
    model: str,
    sampling: SamplingParams | None = None,
    reading: Reading | None = None,
    iteration: int = 0,
    tally: Counter[str] | None = None,
) -> Iterator[Rollout]:
    """Yield one rollout per row, in order. All rows are checked before the first is yielded.

    Token ids in the rows are kept as they are; text that is not beside them is decoded from them.
    Otherwise the prompt gets the tokenizer's special tokens (no end-of-sequence token), and the
    completion none but the token that ended it: see `topr.tokenization.ends`. A prompt of messages
    goes through the chat template. What a server kept apart as reasoning is put back before the
    text.

    Where a row was sampled with more than a rollout can say (a penalty, min_p), its
    log-probabilities are left out: they are those of another distribution.

    A reward becomes a grade: a column of verdicts (bool, 0 and 1, correct and wrong) gives +1 and
    -1; other numbers are kept, those above 0 as correct. A null stays ungraded.

    Args:
        table: rows as `read_rows` or `Rows.open` give them; of the latter few are in memory.
        columns: where what is; None in it means the usual names.
        tokenizer: of the model to be trained.
        model: behaviour model of rows that do not name one.
        sampling: how they were drawn; defaults to temperature 1, nothing cut off.
        reading: how rows are read.
        iteration: number recorded with rollouts that have none.
        tally: counts what was tokenised, kept, decoded and assumed, as `intake` explains.

    Raises:
        ConfigError: the template has no `{prompt}`.
        ModelError: the tokenizer lacks an end-of-sequence token or chat template that is needed.
        DataError: a column is missing, or a row does not hold what it should (named by number).

    """
    rows = Rows.of(table)
    reading = reading or Reading()
    distribution(asdict(sampling or SamplingParams()))  # is refused here, where it cannot be
    found = columns.resolve(rows, required=TEXT_OR_IDS)
    reading.check(rows, found)
    grades = Grades(rows, found)
    defaults = {"model": model, "sampling": sampling or SamplingParams(), "iteration": iteration}
    _Importer(found, grades, tokenizer, defaults, reading, Counter()).check(rows)
    counted = Counter() if tally is None else tally
    return _Importer(found, grades, tokenizer, defaults, reading, counted).run(rows)


class _Importer:
    """Rows to rollouts, a chunk at a time: tokenizers are fastest on many texts at once."""

    def __init__(
        self,
        columns: ColumnMap,
        grades: Grades,
        tokenizer: "PreTrainedTokenizerBase",
        defaults: dict[str, Any],
        reading: Reading,
        tally: Counter[str],
    ) -> None:
        self._columns = columns
        self._grades = grades
        self._tokenizer = tokenizer
        self._ends = Ends(tokenizer, reading.eos_ids)
        self._defaults = defaults
        self._reading = reading
        self._vocabulary = reading.vocabulary or len(tokenizer)
        self._tally = tally
        self._tally["verdicts"] = grades.verdicts
        self._counts: Counter[str] = Counter()
        self._seen: set[tuple[str, int]] = set()

    def check(self, rows: Rows) -> None:
        """Read every row and make nothing of it: what is refused is refused before all work."""
        for row, finish in self._kept(rows):
            ids = self._draft(row, finish)["completion_ids"]
            if ids is not None:
                row.logprobs(len(ids))

    def run(self, rows: Rows) -> Iterator[Rollout]:
        readers = self._kept(rows)
        while chunk := list(islice(readers, _CHUNK)):
            drafts = [self._draft(row, finish) for row, finish in chunk]
            self._tokenize(drafts)
            for (row, _), draft in zip(chunk, drafts, strict=True):
                del draft["end"]
                logprobs = row.logprobs(len(draft["completion_ids"]))
                if logprobs is not None and row.changes_unrecorded():
                    logprobs = None
                    self._tally["logprobs_left_out"] += 1
                self._tally["without_logprobs"] += logprobs is None
                yield Rollout(
                    **draft,
                    logprobs=logprobs,
                    revision=None,
                    engine=ENGINE,
                    grade=self._grades.read(row),
                )

    def _kept(self, rows: Rows) -> Iterator[tuple[RowReader, Finish | None]]:
        for place, row in rows:
            reader = RowReader(row, self._columns, place=place)
            finish = reader.finish(self._reading.finish_words)
            if finish is Finish.DROP:
                self._tally["dropped"] += 1
            else:
                yield reader, finish

    def _draft(self, row: RowReader, finish: Finish | None) -> dict[str, Any]:
        """Return the fields that are read: ids are still None where text has to be tokenised, and
        the text where it has to be decoded.
        """
        prompt_ids = row.ids("prompt_ids", self._vocabulary)
        completion_ids = row.ids("completion_ids", self._vocabulary)
        prompt = self._prompt(row, prompt_ids)
        ends = self._reading.ends
        known_by_column = finish is None and isinstance(ends, str)
        ended = row.verdict(ends) if known_by_column and isinstance(ends, str) else ends
        said: dict[str, Any] = {"ended": ended if isinstance(ended, bool) else None}
        self._tally["prompts_tokenized"] += prompt_ids is None
        if completion_ids is None:
            draft = self._of_text(row, prompt, finish, said)
        else:
            draft = self._of_ids(row, completion_ids, finish, said)
        self._tally["ends_assumed"] += draft.pop("assumed") and not known_by_column
        problem_id = row.label("problem_id") or _hash(prompt)
        text = self._reading.template.replace(PLACE, prompt) if isinstance(prompt, str) else prompt
        iteration = row.integer("iteration")
        return draft | {
            "sampling": row.sampling(self._defaults["sampling"]),
            "model": row.label("model") or self._defaults["model"],
            "iteration": self._defaults["iteration"] if iteration is None else iteration,
            "gold": row.gold(self._reading.several_golds),
            "problem_id": problem_id,
            "sample": self._number(row, problem_id),
            "prompt": text,
            "question": prompt if isinstance(prompt, str) else prompt[-1].content,
            "prompt_ids": prompt_ids,
        }

    def _of_text(
        self, row: RowReader, prompt: Any, finish: Finish | None, said: dict[str, Any]
    ) -> dict[str, Any]:
        self._tally["completions_tokenized"] += 1
        rebuilt = self._rebuilt(row)
        if rebuilt is not None:
            self._tally["reasoning_rebuilt"] += not rebuilt.dropped
            self._tally["reasoning_dropped"] += rebuilt.dropped
        found = self._ends.of_text(
            row.written() if rebuilt is None else rebuilt.text,
            prompt,
            finish,
            last_id=row.integer("last_token_id"),
            stop=row.sampling(self._defaults["sampling"]).stop,
            **said,
        )
        self._tally["cut_at_end"] += found.cut
        return {
            "completion": found.text,
            "completion_ids": None,
            "end": found.end,
            "finish_reason": found.reason,
            "assumed": found.assumed,
        }

    def _of_ids(
        self, row: RowReader, ids: tuple[int, ...], finish: Finish | None, said: dict[str, Any]
    ) -> dict[str, Any]:
        text = row.written() if row.there("completion") else None
        self._tally["completions_decoded"] += text is None
        reason, known = self._ends.of_ids(ids, finish, **said)
        if finish is Finish.END and self._ends.ids.isdisjoint(ids[-1:]):
            self._tally["stopped_without_end"] += 1
        if finish is None and known:
            by_id = "ended_by_id" if reason == "stop" else "cut_off_by_id"
            self._tally[by_id] += 1
        return {
            "completion": text,
            "completion_ids": ids,
            "end": None,
            "finish_reason": reason,
            "assumed": not known,
        }

    def _rebuilt(self, row: RowReader) -> Rebuilt | None:
        """Return the text with what was thought before it; None where nothing was kept apart."""
        thought = row.reasoning()
        if thought is None:
            return None
        text = row.written()
        if self._reading.drop_reasoning:
            return Rebuilt(text=text, dropped=True)
        try:
            found = rebuild(thought, text, self._tokenizer, self._reading.reasoning_marks)
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from error
        return Rebuilt(text=found, dropped=False)

    def _prompt(self, row: RowReader, ids: tuple[int, ...] | None) -> str | tuple[Message, ...]:
        if ids is not None and not row.there("prompt"):
            return str(self._tokenizer.decode(list(ids)))
        prompt = row.turns("prompt")
        if not isinstance(prompt, str) and self._reading.template != PLACE:
            raise row.error("prompt", "text, which a template goes around (messages need none)")
        return taken_apart(prompt, self._tokenizer) if self._reading.literal else prompt

    def _number(self, row: RowReader, problem_id: str) -> int:
        sample = row.integer("sample")
        while sample is None:
            counted = self._counts[problem_id]
            self._counts[problem_id] += 1
            sample = None if (problem_id, counted) in self._seen else counted
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
            if draft["completion"] is None:
                ids = list(draft["completion_ids"])
                draft["completion"] = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            if draft["completion_ids"] is None:
                end = () if draft["end"] is None else (draft["end"],)
                draft["completion_ids"] = (*completions[draft["completion"]], *end)
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


def _hash(prompt: str | tuple[Message, ...]) -> str:
    if not isinstance(prompt, str):
        prompt = json.dumps([[turn.role, turn.content] for turn in prompt])
    return "prompt-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
