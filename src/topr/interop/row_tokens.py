"""What rows say in a model's tokens: one reader for import and training.

Not here: which columns there are (`column_map`), and what becomes of the tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from topr.errors import DataError
from topr.interop.import_options import PLACE, ImportOptions
from topr.interop.reasoning import rebuild
from topr.interop.row_values import RowReader
from topr.records import FinishReason, Message
from topr.tokenization.ends import Ends, Finish
from topr.tokenization.prompts import RenderedPrompt, encode_prompts, escape_special_tokens, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | tuple[Message, ...]


@dataclass(kw_only=True, slots=True)
class RowTokens:
    """A prompt and a completion. What is None is filled in by `TokenReader.tokenize`."""

    question: Prompt
    """As the row has it."""
    prompt: Prompt
    """With the template around it; once tokenised, the text that was."""
    prompt_ids: Sequence[int] | None
    completion: str | None
    completion_ids: Sequence[int] | None
    end: int | None
    """Token that follows those of the completion's text."""
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class TokenReader:
    """Reads rows, and tokenises or decodes what they lack. Ids in the rows are kept as they are."""

    tokenizer: "PreTrainedTokenizerBase"
    options: ImportOptions
    tally: Counter[str] = field(default_factory=Counter)
    """Counts of what was tokenised, decoded and assumed."""
    texts: bool = True
    """Whether texts are wanted where there are ids. Otherwise they are not looked at."""

    @cached_property
    def ends(self) -> Ends:
        """The tokens that end a completion."""
        return Ends(self.tokenizer, self.options.eos_ids)

    @cached_property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return self.options.vocabulary or len(self.tokenizer)

    def read(self, row: RowReader, finish: Finish | None) -> RowTokens:
        """Return what a row holds, checked.

        Args:
            row: the row.
            finish: what its finish reason says.

        Raises:
            DataError: a value is not what it should be.
            ModelError: the tokenizer lacks the end that a text needs.

        """
        prompt_ids = row.ids("prompt_ids", self.vocabulary)
        completion_ids = row.ids("completion_ids", self.vocabulary)
        wanted = self.texts or prompt_ids is None or completion_ids is None
        question = self._prompt(row, prompt_ids) if wanted else ""
        self.tally["prompts_tokenized"] += prompt_ids is None
        prompt = question
        if isinstance(question, str):
            prompt = self.options.template.replace(PLACE, question)
        return RowTokens(
            question=question,
            prompt=prompt,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            **self._completion(row, question, completion_ids, finish),
        )

    def tokenize(self, rows: Sequence[RowTokens]) -> None:
        """Fill in the ids and the texts that rows lack."""
        texts = [row.completion for row in rows if row.completion_ids is None]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        of_text = iter(encoded)
        for row in rows:
            if row.completion_ids is None:
                row.completion_ids = (*next(of_text), *(() if row.end is None else (row.end,)))
            if row.completion is None and self.texts:
                row.completion = self._decode(row.completion_ids, skip_special_tokens=True)
        asked = [row.prompt for row in rows if row.prompt_ids is None]
        prompts = self._rendered(list(dict.fromkeys(asked)))
        for row in rows:
            if row.prompt_ids is None:
                row.prompt, row.prompt_ids = prompts[row.prompt].text, prompts[row.prompt].ids
            elif not isinstance(row.prompt, str):  # the text of a chat is what its ids say
                row.prompt = self._decode(row.prompt_ids)

    def _decode(self, ids: Sequence[int], **how: bool) -> str:
        return str(self.tokenizer.decode(list(map(int, ids)), **how))

    def _prompt(self, row: RowReader, ids: Sequence[int] | None) -> Prompt:
        if ids is not None and not row.there("prompt"):
            return self._decode(ids)
        prompt = row.turns("prompt")
        if not isinstance(prompt, str) and self.options.template != PLACE:
            raise row.error("prompt", "text, which a template goes around (messages need none)")
        escape = self.options.escape_special_tokens
        return escape_special_tokens(prompt, self.tokenizer) if escape else prompt

    def _completion(
        self, row: RowReader, prompt: Prompt, ids: Sequence[int] | None, finish: Finish | None
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
            text = row.written() if self.texts and row.there("completion") else None
            end = None
            tally["completions_decoded"] += text is None
            reason, known = self.ends.of_ids(ids, finish, ended=ended)
            assumed = not known
            if finish is Finish.END and self.ends.ids.isdisjoint(ids[-1:]):
                tally["stopped_without_end"] += 1
            if finish is None and known:
                tally["ended_by_id" if reason == "stop" else "cut_off_by_id"] += 1
        tally["ends_assumed"] += assumed and not told
        return {"completion": text, "end": end, "finish_reason": reason}

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

    def _rendered(self, prompts: Sequence[Prompt]) -> dict[Prompt, RenderedPrompt]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = zip(texts, encode_prompts(texts, self.tokenizer), strict=True)
        found: dict[Prompt, RenderedPrompt] = {
            text: RenderedPrompt(text=text, ids=ids) for text, ids in encoded
        }
        chats = [prompt for prompt in prompts if not isinstance(prompt, str)]
        return found | {chat: render(chat, self.tokenizer) for chat in chats}
