"""Text of models and users made safe to show: visible, finite, of bounded length.

Escaping for HTML is not done here: the template does it (autoescape), and the page's script
writes with `textContent` alone.
"""

import base64
import json
import math
import unicodedata
import zlib
from typing import Any

_KEPT = frozenset("\n\t\u200c\u200d")  # line ends, and joiners that honest scripts and emoji need
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """Return the text with control, format and bidirectional characters spelled out.

    >>> visible("1\\u202e2")
    '1⟨U+202E⟩2'
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        f"⟨U+{ord(char):04X}⟩"
        if char not in _KEPT and unicodedata.category(char) in _HIDDEN
        else char
        for char in text
    )


def clip(text: str, *, head: int, tail: int = 0) -> str:
    """Return at most `head` first and `tail` last characters, and a mark that says what is gone.

    >>> clip("abcdefgh", head=2, tail=1)
    'ab … [5 characters left out] … h'
    """
    left_out = len(text) - head - tail
    if left_out <= 0:
        return text
    end = f" … {text[-tail:]}" if tail else ""
    return f"{text[:head]} … [{left_out:,} characters left out]{end}"


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun.

    >>> plural(1, "problem"), plural(1200, "problem")
    ('1 problem', '1,200 problems')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def align_tokens(tokens: list[str], text: str) -> list[str]:
    """Return the tokens with the white space that decoding them one by one has lost.

    Some tokenizers put a space between tokens only when they decode a whole sequence. A token
    that the text does not continue with (an end-of-sequence token, half a character) stays as
    it is.

    >>> align_tokens(["12", "+", "3", "</s>"], "12 + 3")
    ['12', ' +', ' 3', '</s>']
    """
    pieces = []
    at = 0
    for token in tokens:
        piece = token
        if not text.startswith(token, at):
            gap = len(text) - at - len(text[at:].lstrip())
            if token.strip() and text.startswith(token.strip(), at + gap):
                piece = text[at : at + gap] + token.strip()
        if text.startswith(piece, at):
            at += len(piece)
        pieces.append(piece)
    return pieces


def packed(value: Any) -> str:
    """Return JSON, deflated, in base64: a fifth of its size, and letters that can end no element.

    NaN and infinities become null.
    """
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def without_empty(value: Any) -> Any:
    """Return nested data without the fields that say nothing: None, False, and what is empty.

    >>> without_empty({"text": "", "reward": 0.0, "tokens": (), "answer": None})
    {'reward': 0.0}
    """
    if isinstance(value, dict):
        kept = {key: without_empty(item) for key, item in value.items()}
        return {
            k: v for k, v in kept.items() if v is not None and v is not False and v not in ("", [])
        }
    return [without_empty(item) for item in value] if isinstance(value, list | tuple) else value


def as_number(value: Any) -> float | None:
    """Return the value if it is a number, else None: files hold null, text and NaN too.

    None as well for one beyond 1e100, with which sums and charts would overflow.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and abs(value) <= 1e100 else None  # which NaN is not


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
