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
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.errors import DataError
from topr.interop.column_map import ColumnMap
from topr.interop.import_options import PLACE, ImportOptions
from topr.interop.reasoning import rebuild
from topr.interop.row_files import RowStream
from topr.interop.row_values import RowReader, are_verdicts, as_grade
from topr.records import Message, Rollout
from topr.tokenization.ends import Ends, Finish
from topr.tokenization.prompts import (
    RenderedPrompt,
    encode_prompts,
    escape_special_tokens,
    render,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "import"
_CHUNK = 512
"""Rows that are tokenised together: tokenizers are fastest on many texts at once."""


def import_rollouts(
    table: pa.Table | RowStream,
    *,
    columns: ColumnMap,
    tokenizer: "PreTrainedTokenizerBase",
    options: ImportOptions | None = None,
    tally: Counter[str] | None = None,
) -> Iterator[Rollout]:
    """Yield one rollout per row, in order. All rows are checked before the first is yielded.

    Token ids in the rows are kept as they are; where their text is missing, it is decoded from
    them. Otherwise the prompt gets the tokenizer's special tokens (no end-of-sequence token), and
    the completion none but the token that ended it: see `topr.tokenization.ends`. A prompt of
    messages goes through the chat template. What a server kept apart as reasoning is put back
    before the text.

    Where a row was sampled with more than a rollout can say (a penalty, min_p), its
    log-probabilities are left out: they are those of another distribution.

    A reward becomes a grade: a column of verdicts (bool, 0 and 1, correct and wrong) gives +1 and
    -1; other numbers are kept, those above 0 as correct. A null stays ungraded.

    Args:
        table: rows as `read_rows` or `RowStream.open` give them; of the latter few are in memory.
        columns: the column of each field; None in it means the usual names.
        tokenizer: of the model to be trained.
        options: how rows are read.
        tally: gets the counts of what was tokenised, decoded and assumed: see `import_stage`.

    Raises:
        ConfigError: the template has no `{prompt}`.
        ModelError: the tokenizer lacks an end-of-sequence token or chat template that is needed.
        DataError: a column is missing, or a row does not hold what it should (named by number).

    """
    rows = RowStream.of(table)
    options = options or ImportOptions()
    found = columns.resolve(rows, or_ids=True)
    options.validate(rows, found)
    verdicts = _Importer(found, tokenizer, options, Counter()).check(rows)
    tally = Counter() if tally is None else tally
    return _Importer(found, tokenizer, options, tally).run(rows, verdicts=verdicts)


@dataclass
class _Importer:
    """Rows to rollouts, a chunk at a time."""

    columns: ColumnMap
    tokenizer: "PreTrainedTokenizerBase"
    options: ImportOptions
    tally: Counter[str]
    counts: Counter[str] = field(default_factory=Counter)
    """Samples of a problem that were numbered here."""
    seen: set[tuple[str, int]] = field(default_factory=set)

    @cached_property
    def ends(self) -> Ends:
        return Ends(self.tokenizer, self.options.eos_ids)

    @cached_property
    def vocabulary(self) -> int:
        return self.options.vocabulary or len(self.tokenizer)

    def check(self, rows: RowStream) -> bool:
        """Read every row and make nothing of it: what is refused is refused before all work.

        Returns:
            Whether the rewards are verdicts: see `are_verdicts`.

        """
        rewards, graded = set(), False
        for place, row in rows:
            reader = RowReader(row, self.columns, place=place)
            rewards.add(reader.reward())
            graded = graded or reader.graded()
            draft = self._draft(reader)
            if draft and draft["completion_ids"] is not None:
                reader.logprobs(len(draft["completion_ids"]))
        return bool(self.columns.reward) and are_verdicts(rewards, graded=graded)

    def run(self, rows: RowStream, *, verdicts: bool) -> Iterator[Rollout]:
        self.tally["verdicts"] = verdicts
        readers = (RowReader(row, self.columns, place=place) for place, row in rows)
        drafts = ((reader, draft) for reader in readers if (draft := self._draft(reader)))
        while chunk := list(islice(drafts, _CHUNK)):
            self._tokenize([draft for _, draft in chunk])
            for reader, draft in chunk:
                logprobs = reader.logprobs(len(draft["completion_ids"]))
                if logprobs is not None and reader.drawn().unrecorded:
                    logprobs = None
                    self.tally["logprobs_left_out"] += 1
                grade = as_grade(reader.reward(), verdicts=verdicts)
                del draft["end"]
                yield Rollout(**draft, logprobs=logprobs, grade=grade, revision=None, engine=ENGINE)

    def _draft(self, row: RowReader) -> dict[str, Any] | None:
        """Return the fields that are read, and `end`, the token to append. Ids are still None where
        text has to be tokenised, and the text where it has to be decoded. None: a row to be left
        out.
        """
        finish = row.finish(self.options.finish_words)
        if finish is Finish.DROP:
            self.tally["dropped"] += 1
            return None
        prompt_ids = row.ids("prompt_ids", self.vocabulary)
        prompt = self._prompt(row, prompt_ids)
        completion = self._completion(
            row, prompt, row.ids("completion_ids", self.vocabulary), finish
        )
        self.tally["prompts_tokenized"] += prompt_ids is None
        problem_id = row.label("problem_id") or _hash(prompt)
        iteration = row.integer("iteration")
        text = isinstance(prompt, str)
        return completion | {
            "sampling": row.sampling(self.options.sampling),
            "model": row.label("model") or self.options.model,
            "iteration": self.options.iteration if iteration is None else iteration,
            "gold": row.gold(self.options.several_golds),
            "problem_id": problem_id,
            "sample": self._number(row, problem_id),
            "prompt": self.options.template.replace(PLACE, prompt) if text else prompt,
            "question": prompt if text else prompt[-1].content,
            "prompt_ids": prompt_ids,
        }

    def _prompt(self, row: RowReader, ids: tuple[int, ...] | None) -> Any:
        """Return text or messages."""
        if ids is not None and not row.there("prompt"):
            return str(self.tokenizer.decode(list(ids)))
        prompt = row.turns("prompt")
        if not isinstance(prompt, str) and self.options.template != PLACE:
            raise row.error("prompt", "text, which a template goes around (messages need none)")
        escape = self.options.escape_special_tokens
        return escape_special_tokens(prompt, self.tokenizer) if escape else prompt

    def _completion(
        self, row: RowReader, prompt: Any, ids: tuple[int, ...] | None, finish: Finish | None
    ) -> dict[str, Any]:
        """Return what was written, and how it ended."""
        ends, tally = self.options.ends, self.tally
        told = finish is None and isinstance(ends, str)  # by a column
        ended = row.verdict(ends) if told and isinstance(ends, str) else ends
        ended = ended if isinstance(ended, bool) else None
        text: str | None
        if ids is None:
            tally["completions_tokenized"] += 1
            written = self.ends.of_text(
                self._text(row), prompt, finish, ended=ended,
                last_id=row.integer("last_token_id"), stop=row.sampling(self.options.sampling).stop,
            )  # fmt: skip
            tally["cut_at_end"] += written.cut
            text, end, reason, assumed = written.text, written.end, written.reason, written.assumed
        else:
            text, end = row.written() if row.there("completion") else None, None
            tally["completions_decoded"] += text is None
            reason, known = self.ends.of_ids(ids, finish, ended=ended)
            assumed = not known
            if finish is Finish.END and self.ends.ids.isdisjoint(ids[-1:]):
                tally["stopped_without_end"] += 1
            if finish is None and known:
                tally["ended_by_id" if reason == "stop" else "cut_off_by_id"] += 1
        tally["ends_assumed"] += assumed and not told
        return {"completion": text, "completion_ids": ids, "end": end, "finish_reason": reason}

    def _text(self, row: RowReader) -> str:
        """Return the completion's text, with its reasoning before it."""
        text, reasoning = row.written(), row.reasoning()
        if reasoning is None:
            return text
        if self.options.drop_reasoning:
            self.tally["reasoning_dropped"] += 1
            return text
        self.tally["reasoning_rebuilt"] += 1
        try:
            return rebuild(reasoning, text, self.tokenizer, self.options.reasoning_marks)
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from error

    def _number(self, row: RowReader, problem_id: str) -> int:
        sample = row.integer("sample")
        while sample is None:
            counted = self.counts[problem_id]
            self.counts[problem_id] += 1
            sample = None if (problem_id, counted) in self.seen else counted
        if (problem_id, sample) in self.seen:
            raise row.error(
                "sample", f'a number that no other row of {problem_id} has (sample="" numbers them)'
            )
        self.seen.add((problem_id, sample))
        return sample

    def _tokenize(self, drafts: Sequence[dict[str, Any]]) -> None:
        """Fill in the ids or the text that drafts lack."""
        texts = [draft["completion"] for draft in drafts if draft["completion_ids"] is None]
        encoded = iter(self._encode(texts))
        for draft in drafts:
            if draft["completion_ids"] is None:
                end = () if draft["end"] is None else (draft["end"],)
                draft["completion_ids"] = (*next(encoded), *end)
            if draft["completion"] is None:
                ids = list(draft["completion_ids"])
                draft["completion"] = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        asked = dict.fromkeys(draft["prompt"] for draft in drafts if draft["prompt_ids"] is None)
        prompts = self._render(list(asked))
        for draft in drafts:
            if draft["prompt_ids"] is None:
                prompt = prompts[draft["prompt"]]
                draft["prompt"], draft["prompt_ids"] = prompt.text, prompt.ids
            elif not isinstance(draft["prompt"], str):  # the text of a chat is what its ids say
                draft["prompt"] = str(self.tokenizer.decode(list(draft["prompt_ids"])))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    def _render(self, prompts: Sequence[Any]) -> dict[Any, RenderedPrompt]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = zip(texts, encode_prompts(texts, self.tokenizer), strict=True)
        found = {text: RenderedPrompt(text=text, ids=ids) for text, ids in encoded}
        chats = [prompt for prompt in prompts if not isinstance(prompt, str)]
        return found | {chat: render(chat, self.tokenizer) for chat in chats}


def _hash(prompt: str | tuple[Message, ...]) -> str:
    if not isinstance(prompt, str):
        prompt = json.dumps([[turn.role, turn.content] for turn in prompt])
    return "prompt-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
