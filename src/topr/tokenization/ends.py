"""How a completion ended, and which token ended it: one reader for training, import and grading.

Prompts are rendered in `topr.tokenization.prompts`; which tokens end a text for a model is in
`topr.models.facts`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from topr.errors import DataError, ModelError
from topr.records import FinishReason
from topr.tokenization.prompts import chat_marks, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Finish(Enum):
    """What a finish reason says."""

    END = "stop"
    """The model wrote its end. (Where a stop string was set, this word may mean that instead.)"""
    STOP_STRING = "stop_string"
    """A stop string ended it: the model wrote no end itself."""
    LENGTH = "length"
    """A limit cut it off."""
    DROP = "drop"
    """It is not a whole completion (an error, a filter): leave it out. Only users say this."""

    @property
    def reason(self) -> FinishReason:
        """Return the same as rollouts record it."""
        return FinishReason.LENGTH if self is Finish.LENGTH else FinishReason.STOP


_WORDS = {
    Finish.END: "stop eos eos_id eos_token eos_found end end_of_text endoftext end_turn end_of_turn"
    " complete completed finish finished natural",
    Finish.STOP_STRING: "stop_string stop_sequence stop_word word",
    Finish.LENGTH: "length max_length model_length max_model_len max_tokens max_new_tokens"
    " max_output_tokens max_completion_tokens token_limit limit context_length"
    " context_length_exceeded model_context_window_exceeded incomplete truncated",
}
FINISH_WORDS: dict[str, Finish] = {
    word: finish for finish, words in _WORDS.items() for word in words.split()
}
"""What servers and libraries write as a finish reason, in lower case with underscores: OpenAI,
Anthropic, Gemini, Mistral, Cohere, Bedrock, vLLM, SGLang, TGI, llama.cpp, Ollama, Together."""


def read_finish(value: Any, words: Mapping[str, Finish] | None = None) -> Finish | None:
    """Return what a finish reason says; None where it says nothing (null, or an empty text).

    >>> read_finish("MAX_TOKENS"), read_finish("FinishReason.STOP"), read_finish(None)
    (<Finish.LENGTH: 'length'>, <Finish.END: 'stop'>, None)

    Args:
        value: a word, or SGLang's object with the keys `type` and `matched`.
        words: the user's own words, which come before the known ones.

    Raises:
        DataError: nobody knows what it means.

    """
    if isinstance(value, Mapping):
        matched_text = isinstance(value.get("matched"), str)
        found = read_finish(value.get("type"), words)
        return Finish.STOP_STRING if matched_text and found is Finish.END else found
    if value is None or value == "":
        return None
    if words and str(value) in words:
        return words[str(value)]
    word = re.sub(r"[\s-]+", "_", str(value).strip().lower().rpartition(".")[2])
    word = word.removeprefix("finish_reason_")
    if isinstance(value, str) and word in FINISH_WORDS:
        return FINISH_WORDS[word]
    raise DataError(
        f"the finish reason {value!r} is unknown, expected a word such as stop, eos, end_turn "
        "(ended by itself), stop_sequence (a stop string ended it), length or max_tokens (cut "
        f"off), or null. Say what it means: topr import --finish-reason '{value}=stop' "
        "(or =length, or =drop to leave such rows out); in a file of your own, write stop or length"
    )


def is_truncated(value: Any) -> bool:
    """Return whether a finish reason says that a limit cut the completion off.

    Raises:
        DataError: as `read_finish`.

    """
    return read_finish(value) is Finish.LENGTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A completion's text, read."""

    text: str
    """Up to where it ended; an end that it spelled out is not in it."""
    end: int | None
    """Token that follows those of the text; None: the model wrote no end."""
    reason: FinishReason
    assumed: bool = False
    """Nothing in the row says how it ended."""
    cut: bool = False
    """The text continued after an end that it spelled out: that part is left out."""


class Ends:
    """The ends of completions in one tokenizer's tokens.

    Args:
        tokenizer: of the model to be trained.
        eos_ids: tokens that end a text for that model (`topr.models.facts.eos_ids`), next to
            those that the tokenizer and its chat template name.

    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", eos_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)

    @cached_property
    def ids(self) -> frozenset[int]:
        """Every token that ends a text or a turn."""
        named = {self._tokenizer.eos_token_id, self._turn_end} - {None}
        return self._eos_ids | {end for end in named if isinstance(end, int)}

    @property
    def names(self) -> list[str]:
        """The same as text, for people."""
        return [str(self._tokenizer.convert_ids_to_tokens(end)) for end in sorted(self.ids)]

    def of_answer(self, prompt: Any) -> int:
        """Return the token that ends what answers a prompt: a chat's (messages, or text that the
        chat template rendered) ends as a turn does, any other as a text does.

        Raises:
            ModelError: there is none.

        """
        end: int | None = self._tokenizer.eos_token_id
        if not isinstance(prompt, str) or chat_marks(self._tokenizer).opened(prompt):
            end = turn_end(self._tokenizer) if self._turn_end is None else self._turn_end
        if not isinstance(end, int):
            raise ModelError(
                "the tokenizer has no eos_token, which a completion that ended by itself ends "
                "with: set tokenizer.eos_token, give completion_ids that hold the end, or say that "
                "completions were truncated (finish_reason length; topr import --ends no)"
            )
        return end

    def of_ids(
        self, ids: Sequence[int], finish: Finish | None, *, ended: bool | None = None
    ) -> tuple[FinishReason, bool]:
        """Return how a completion of these ids ended, and whether something says so.

        Ids are never changed: the model wrote them.

        Args:
            ids: the completion.
            finish: what its row says.
            ended: what holds where the row says nothing; None: the last id decides.

        """
        if finish is not None:
            return finish.reason, True
        if ended is None and self.ids:
            return (
                FinishReason.STOP if self.ids.intersection(ids[-1:]) else FinishReason.LENGTH
            ), True
        return FinishReason.LENGTH if ended is False else FinishReason.STOP, False

    def of_text(
        self,
        text: str,
        prompt: Any,
        finish: Finish | None,
        *,
        ended: bool | None = None,
        last_id: int | None = None,
        stop: Sequence[str] = (),
    ) -> Written:
        """Return where a text ended, and the token that ended it.

        An end that the text spells out is the end, whatever else is said. Else the model wrote one
        where the completion ended by itself, and neither a stop string (in the text, or by its
        finish reason) nor `last_id` says otherwise.

        Args:
            text: what the model wrote.
            prompt: what it answers: text or messages.
            finish: what the row says; None: nothing.
            ended: what holds where the row says nothing; None: text has ended.
            last_id: the completion's last token, where it is known (`topr export` writes it).
            stop: stop strings that it was sampled with.

        Raises:
            ModelError: it needs an end that the tokenizer does not have.

        """
        spelled = self._spelled.search(text) if self._spelled else None
        if spelled is not None:
            rest = self._spelled.sub("", text[spelled.end() :]) if self._spelled else ""
            return Written(
                text=text[: spelled.start()],
                end=self._by_text[spelled.group()],
                reason=FinishReason.STOP,
                cut=bool(rest.strip()),
            )
        if last_id is not None:
            end = last_id if last_id in self.ids else None
            reason, _ = self.of_ids([last_id], finish, ended=ended)
            return Written(text=text, end=end, reason=reason)
        stopped = any(string and string in text for string in stop)
        if finish is Finish.END and any(stop) and not stopped:
            finish = None  # the word may mean a stop string, which servers leave out of the text
        assumed = finish is None
        if finish is None:
            finish = Finish.LENGTH if ended is False else Finish.END
        own = finish is Finish.END and not stopped
        return Written(
            text=text,
            end=self.of_answer(prompt) if own else None,
            reason=finish.reason,
            assumed=assumed,
        )

    @cached_property
    def _turn_end(self) -> int | None:
        """The token that ends a turn; None where the chat template tells none."""
        try:
            return turn_end(self._tokenizer)
        except ModelError:  # no template, or one that has no answers
            return None

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Ends by the text that spells them out: special tokens alone, a word is not an end."""
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return {str(self._tokenizer.convert_ids_to_tokens(end)): end for end in self.ids & special}

    @cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        texts = sorted(self._by_text, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None
