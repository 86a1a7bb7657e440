"""Reasoning, put back before the answer as the model itself writes it.

Servers give the two in separate fields, without the marks between them. Where there are token ids
nothing has to be put back; here is what can be done if there is only text.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from topr.errors import DataError
from topr.records import Message
from topr.tokenization.prompts import REASONING_KEYS, apply_template, chat_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = "{reasoning}"
_ADVICE = (
    "say how this model writes it (--reasoning-marks '<think>\\n{reasoning}\\n</think>\\n\\n'), "
    "have the server return token ids (vLLM: return_token_ids), or leave it out and train on less "
    "than the model wrote (--drop-reasoning); if the column is not part of the completion, ignore "
    "it (--reasoning '')"
)


DETAIL_KEYS = ("reasoning_details", "thinking_blocks")
"""Names under which a message has its reasoning in parts (OpenRouter, LiteLLM), some hidden."""


def reasoning_of(message: Mapping[str, Any]) -> str | bool | None:
    """Return the reasoning of a message; None if there is none, True if a part of it is hidden:
    summarised or encrypted.

    >>> reasoning_of({"content": "2", "thinking": "1 + 1"})
    '1 + 1'
    >>> reasoning_of({"content": "2", "reasoning_details": [{"type": "reasoning.encrypted"}]})
    True

    Raises:
        DataError: it is in a form that is not known here.

    """
    details: Any = next((message[name] for name in DETAIL_KEYS if message.get(name)), [])
    parts = [_part(part) for part in details] if isinstance(details, list) else [None]
    if None in parts:
        return True
    for name in (*REASONING_KEYS, *(n for n in message if str(n).startswith("reasoning"))):
        said = message.get(name)
        if not said or name in DETAIL_KEYS:
            continue
        if not isinstance(said, str):
            raise DataError(f"{name} holds {said!r:.80}, expected text: the reasoning")
        if said.strip():
            return said
    return "".join(part for part in parts if part) or None


def _part(part: Any) -> str | None:
    """Return the text of a part of the reasoning; None if it is hidden."""
    given = part if isinstance(part, Mapping) else {}
    if given.get("type") not in ("reasoning.text", "thinking"):
        return None
    text = given.get("text", given.get("thinking"))
    return text if isinstance(text, str) else None


def rebuild(
    reasoning: str | bool, text: str, tokenizer: "PreTrainedTokenizerBase", marks: str = ""
) -> str:
    """Return the text that the model wrote: its reasoning, then its answer.

    Args:
        reasoning: the text; True if it was not recorded.
        text: the answer; empty if the reasoning was truncated.
        tokenizer: its chat template knows how the model writes its reasoning.
        marks: text with `{reasoning}` that says it instead.

    Raises:
        DataError: it is not known what the reasoning was, or how it is written.

    """
    if isinstance(reasoning, bool):
        raise DataError(
            "the server hides the model's reasoning: the text is not all that the model wrote. "
            "Leave the reasoning out and train on less (--drop-reasoning), or sample from a model "
            "that shows it"
        )
    if marks:
        before, _, after = marks.partition(_PLACE)
        return f"{before}{reasoning}{after}{text}" if text else f"{before}{reasoning}"
    written = _by_template(reasoning, text, tokenizer) if tokenizer.chat_template else ""
    core = reasoning.strip()
    if core not in written or text.strip() not in written:
        raise DataError(
            "the completion has its reasoning in a separate field, and the chat template does "
            f"not say how the model writes it: {_ADVICE}"
        )
    if not text.strip():  # truncated before the answer
        return written[: written.index(core) + len(core)]
    return written


def _by_template(reasoning: str, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what the chat template writes from where an answer begins to where it ends."""
    asked = (Message(role="user", content="?"),)
    opened = apply_template(asked, tokenizer)
    whole = apply_template(
        (*asked, Message(role="assistant", content=text)), tokenizer,
        answered=True, reasoning=reasoning,
    )  # fmt: skip
    if not whole.startswith(opened):
        return ""
    written, end = whole.removeprefix(opened), chat_marks(tokenizer).end
    return written.rpartition(end)[0] if end and end in written else written.rstrip("\n")
