"""A prompt becomes text and token ids here, and nowhere else.

What a prompt says is its task's matter; here a tokenizer's own conventions are applied.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from topr.errors import DataError, ModelError
from topr.records import Message

if TYPE_CHECKING:  # transformers takes seconds to import, and nothing here runs it
    from transformers import PreTrainedTokenizerBase

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Names under which servers, chat templates and data sets have what a model thought, as text."""
TODAY = datetime(2024, 7, 26)
"""The date that chat templates are told. A fixed one: the same messages are the same prompt for the
base and the trained model, for a run and its continuation, on every machine. It is the date that
Llama 3's own template falls back to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedPrompt:
    """What the model is given."""

    text: str
    """The text that was tokenised. Special tokens that the tokenizer adds are not in it."""
    ids: tuple[int, ...]
    """Its tokens, a beginning-of-sequence token included where the tokenizer adds one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMarks:
    """What a chat template writes around an answer.

    >>> marks = ChatMarks(opening="<|im_start|>assistant", end="<|im_end|>", begins=False)
    >>> marks.opened("<|im_start|>user\\n1+1?<|im_end|>\\n<|im_start|>assistant\\n")
    True
    """

    opening: str
    """Text that opens an answer; "": the template writes none."""
    end: str
    """Text of the token that ends a turn; "": there is none."""
    begins: bool
    """The template itself writes the beginning-of-sequence token."""

    def opened(self, text: str) -> bool:
        """Whether a text is a chat that a template rendered, up to where the answer begins."""
        _, opening, after = text.rpartition(self.opening or "\0")
        return bool(opening) and not (self.end and self.end in after)


_MARKS: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, ChatMarks]]" = WeakKeyDictionary()


def render(
    prompt: str | tuple[Message, ...],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    escape: bool = False,
) -> RenderedPrompt:
    """Return the prompt as text and ids.

    Plain text is tokenised as it stands, with the special tokens that the tokenizer puts before a
    text and without those that it puts after one. Messages go through the chat template, up to
    where the assistant's turn begins; one that asks for the date is told `TODAY`. With `escape`,
    special tokens that the text spells out (`<|eot_id|>`) are taken apart by a space.

    Raises:
        ModelError: messages, but the tokenizer has no chat template, or one that refuses them.
        DataError: the prompt is empty.

    """
    if escape:
        prompt = escape_special_tokens(prompt, tokenizer)
    text = prompt if isinstance(prompt, str) else apply_template(prompt, tokenizer)
    ids = encode_prompts([text], tokenizer, template_wrote_it=not isinstance(prompt, str))[0]
    if not text or not ids:
        raise DataError(
            f"the prompt {text!r} has no tokens, expected a question. Look at the problem's source"
        )
    return RenderedPrompt(text=text, ids=ids)


def encode_prompts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, template_wrote_it: bool = False
) -> list[tuple[int, ...]]:
    """Return the ids of several texts at once, each without an end that it does not spell out.

    The special tokens that the tokenizer puts before a text are there, unless the text opens with
    the beginning-of-sequence token already, or a chat template wrote it: whether this is known
    (`template_wrote_it`) or the text shows it, the ids are the same.
    """
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    marks = chat_marks(tokenizer)
    # A text that opens with the BOS already, as rendered chats do, must not get a second one.
    bare = [
        template_wrote_it
        or bool(begin and text.startswith(begin))
        or (not marks.begins and marks.opened(text))
        for text in texts
    ]
    encoded: list[tuple[int, ...]] = [()] * len(texts)
    for special in (True, False):
        chosen = [number for number, plain in enumerate(bare) if plain is not special]
        if not chosen:
            continue
        found = tokenizer([texts[n] for n in chosen], add_special_tokens=special)["input_ids"]
        for number, ids in zip(chosen, found, strict=True):
            kept = list(ids)
            if special and not texts[number].endswith(end or "\0"):
                # After an end of sequence a model starts a new text, it does not answer.
                while kept and kept[-1] == tokenizer.eos_token_id:
                    kept.pop()
            encoded[number] = tuple(kept)
    return encoded


def escape_special_tokens(
    prompt: str | tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase"
) -> str | tuple[Message, ...]:
    """Return the prompt with a space after the first character of each special token in it, so that
    what a model or a stranger wrote cannot end a turn or a text.
    """
    if not isinstance(prompt, str):
        return tuple(
            Message(role=turn.role, content=str(escape_special_tokens(turn.content, tokenizer)))
            for turn in prompt
        )
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in sorted(special, key=len, reverse=True):
        if len(token) > 1:
            prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
    return prompt


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id of the token that ends an answer in a chat: the first special token that the
    chat template writes after an assistant's turn, else the end-of-sequence token.

    Raises:
        ModelError: as in `render`.

    """
    answer = "an answer"
    turns = (Message(role="user", content="?"), Message(role="assistant", content=answer))
    after = apply_template(turns, tokenizer, answered=True).rpartition(answer)[2]
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return next((i for i in ids if i in special), end if isinstance(end, int) else None)


_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")


def _told_the_date(template: str) -> str:
    """Return a template with `TODAY` where it asks for the date.

    Raises:
        ModelError: it asks in a way that is not known here.

    """
    told = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), template)
    if re.search(r"strftime_now\s*\(", told):
        raise ModelError(
            "the chat template calls strftime_now with something else than a text, so the date "
            "that it prints cannot be fixed, and prompts would change from day to day: write the "
            "format into the call, or a date into the template"
        )
    return told


def chat_marks(tokenizer: "PreTrainedTokenizerBase") -> ChatMarks:
    """Return what the chat template writes around an answer; all empty where there is none."""
    template = str(tokenizer.chat_template)
    known = _MARKS.get(tokenizer)
    if known is None or known[0] != template:
        known = _MARKS[tokenizer] = (template, _read_marks(tokenizer))
    return known[1]


def _read_marks(tokenizer: "PreTrainedTokenizerBase") -> ChatMarks:
    asked = (Message(role="user", content="?"),)
    with suppress(ModelError):  # no template, or one that refuses such a chat
        closed = apply_template(asked, tokenizer, answered=True)
        opened = apply_template(asked, tokenizer)
        end = turn_end(tokenizer)
        return ChatMarks(
            opening=opened.removeprefix(closed).strip() if opened.startswith(closed) else "",
            end="" if end is None else str(tokenizer.convert_ids_to_tokens(end)),
            begins=bool(tokenizer.bos_token and opened.startswith(tokenizer.bos_token)),
        )
    return ChatMarks(opening="", end="", begins=False)


def apply_template(
    messages: tuple[Message, ...],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    answered: bool = False,
    reasoning: str | None = None,
) -> str:
    """Return what the chat template makes of messages: up to where an answer begins, or with
    `answered` as they are. With `reasoning`, the last one's content was thought about first.

    Raises:
        ModelError: there is no chat template, or it refuses the messages.

    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the prompt is {len(messages)} chat messages, but the tokenizer of "
            f"{tokenizer.name_or_path or 'this model'} has no chat template: set "
            "task.prompt=plain, take the model's instruction-tuned version, or put a "
            "chat_template.jinja into its directory"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if reasoning is not None:  # templates have no common name for it
        turns[-1] |= dict.fromkeys(REASONING_KEYS, reasoning)
    dated = "strftime_now" in str(tokenizer.chat_template)
    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=_told_the_date(tokenizer.get_chat_template()) if dated else None,
            add_generation_prompt=not answered,
            tokenize=False,
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'this model'} refuses messages with "
            f"the roles {roles}: {error}. Use the roles that this model knows, or set "
            "task.prompt=plain"
        ) from error
    return str(text)
