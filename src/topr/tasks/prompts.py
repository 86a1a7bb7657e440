"""A prompt becomes text and token ids: `render` is the only place where one does.

What a prompt says is its task's matter; here a tokenizer's own conventions are applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from topr.errors import DataError, ModelError
from topr.records import Message

if TYPE_CHECKING:  # transformers takes seconds to import, and nothing here runs it
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedPrompt:
    """What the model is given."""

    text: str
    """The text that was tokenised. Special tokens that the tokenizer adds are not in it."""
    ids: tuple[int, ...]
    """Its tokens, a beginning-of-sequence token included where the tokenizer adds one."""


def render(
    prompt: str | tuple[Message, ...],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    literal: bool = False,
) -> RenderedPrompt:
    """Return the prompt as text and ids.

    Plain text is tokenised as it stands, with the special tokens that the tokenizer puts before a
    text and without those that it puts after one. Messages go through the chat template, up to
    where the assistant's turn begins. With `literal`, special tokens that the text spells out
    (`<|eot_id|>`) are taken apart by a space.

    Raises:
        ModelError: messages, but the tokenizer has no chat template, or one that refuses them.
        DataError: the prompt is empty.

    """
    if literal:
        prompt = _taken_apart(prompt, tokenizer)
    if isinstance(prompt, str):
        text = prompt
        # A text that opens with the BOS already, as rendered chats do, must not get a second one.
        add_special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    else:
        text = _apply_template(prompt, tokenizer)
        add_special = False  # the template writes its own
    ids: list[int] = list(tokenizer(text, add_special_tokens=add_special)["input_ids"])
    if add_special and not text.endswith(tokenizer.eos_token or "\0"):
        # After an end of sequence a model starts a new text, it does not answer.
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    if not text or not ids:
        raise DataError(
            f"the prompt {text!r} has no tokens, expected a question. Look at the problem's source"
        )
    return RenderedPrompt(text=text, ids=tuple(ids))


def chat_prompt(
    question: str, examples: Sequence[tuple[str, str]], instruction: str
) -> tuple[Message, ...]:
    """Return the examples as turns of user and assistant, then the question.

    Without examples, `instruction` comes before the question.
    """
    turns = [
        message
        for asked, answer in examples
        for message in (
            Message(role="user", content=asked),
            Message(role="assistant", content=answer),
        )
    ]
    content = question if examples else f"{instruction}\n\n{question}"
    return (*turns, Message(role="user", content=content))


def _apply_template(messages: tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            f"the prompt is {len(messages)} chat messages, but the tokenizer of "
            f"{tokenizer.name_or_path or 'this model'} has no chat template: set "
            "task.prompt=plain, take the model's instruction-tuned version, or put a "
            "chat_template.jinja into its directory"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'this model'} refuses messages with "
            f"the roles {roles}: {error}. Use the roles that this model knows, or set "
            "task.prompt=plain"
        ) from error
    return str(text)


def _taken_apart(
    prompt: str | tuple[Message, ...], tokenizer: "PreTrainedTokenizerBase"
) -> str | tuple[Message, ...]:
    """Return the prompt with a space after the first character of each special token in it."""
    if not isinstance(prompt, str):
        return tuple(
            Message(role=turn.role, content=str(_taken_apart(turn.content, tokenizer)))
            for turn in prompt
        )
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in sorted(special, key=len, reverse=True):
        if len(token) > 1:
            prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
    return prompt
