"""What a model thought, put back before what it said, as the model itself writes it.

Servers give the two apart and leave out the marks between them. Where there are token ids nothing
has to be put back; here is what can be done with text alone.
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
    "than the model wrote (--drop-reasoning); where the column is no part of the completion, "
    "--reasoning ''"
)


DETAIL_KEYS = ("reasoning_details", "thinking_blocks")
"""Names under which a message has it in parts (OpenRouter, LiteLLM), some of them hidden."""


def thought_of(message: Mapping[str, Any]) -> str | bool | None:
    """Return what was thought before a message's text; None for nothing, True where a part of it
    was kept back: summarised or encrypted.

    >>> thought_of({"content": "2", "thinking": "1 + 1"})
    '1 + 1'
    >>> thought_of({"content": "2", "reasoning_details": [{"type": "reasoning.encrypted"}]})
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
            raise DataError(f"{name} holds {said!r:.80}, expected text: what the model thought")
        if said.strip():
            return said
    return "".join(part for part in parts if part) or None


def _part(part: Any) -> str | None:
    """Return the text of a part of a thought; None where it does not hold what was thought."""
    given = part if isinstance(part, Mapping) else {}
    if given.get("type") not in ("reasoning.text", "thinking"):
        return None
    text = given.get("text", given.get("thinking"))
    return text if isinstance(text, str) else None


def rebuild(
    thought: str | bool, text: str, tokenizer: "PreTrainedTokenizerBase", marks: str = ""
) -> str:
    """Return the text that the model wrote: what it thought, then what it said.

    Args:
        thought: what it thought; True: something that nobody recorded.
        text: what it said; empty where the thought was cut off.
        tokenizer: its chat template knows how a model writes a thought.
        marks: text with `{reasoning}` that says it instead.

    Raises:
        DataError: nothing says how a thought is written, or what it was.

    """
    if isinstance(thought, bool):
        raise DataError(
            "the model thought before it answered, and the server kept that back: what is here is "
            "not what the model wrote. Leave it out and train on less (--drop-reasoning), or "
            "sample from a model that shows it"
        )
    if marks:
        before, _, after = marks.partition(_PLACE)
        return f"{before}{thought}{after}{text}" if text else f"{before}{thought}"
    written = _by_template(thought, text, tokenizer) if tokenizer.chat_template else ""
    core = thought.strip()
    if core not in written or text.strip() not in written:
        raise DataError(
            "the model thought before it answered, and the chat template does not say how it "
            f"writes that: {_ADVICE}"
        )
    if not text.strip():  # cut off before it said anything
        return written[: written.index(core) + len(core)]
    return written


def _by_template(thought: str, text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what the chat template writes from where an answer begins to where it ends."""
    asked = (Message(role="user", content="?"),)
    opened = apply_template(asked, tokenizer)
    whole = apply_template(
        (*asked, Message(role="assistant", content=text)), tokenizer,
        answered=True, reasoning=thought,
    )  # fmt: skip
    if not whole.startswith(opened):
        return ""
    written, end = whole.removeprefix(opened), chat_marks(tokenizer).end
    return written.rpartition(end)[0] if end and end in written else written.rstrip("\n")
