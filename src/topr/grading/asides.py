"""What a statement says around its value without changing it. Text in, text out.

`33, not 36` and `33, since 36 would be too many` say 33; `0.5, that is 1/2` and `14 (fourteen)`
say one value twice. What changes a value is `topr.grading.modifiers`'s business.
"""

import re

_DOUBTFUL = (
    r"[?=]|\b(?:so|thus|hence|therefore|then|which|or|maybe|perhaps|possibly|wait|actually|otherwise|unless|else|if|but|sorry|no|however"
    r"|though|although)\b"
)
_REASON = re.compile(
    r"(?:\s(?:since|because)|,\s?as\s(?=(?:the|it|there|this|that|we|s?he|they|each)\b))\b.*", re.S
)
_DENIAL = re.compile(
    r"(?:\s?[,;(\u2014-]\s?|\s)(?:(?:and|but)\s)?(?:not|rather\s+than|instead\s+of|as\s+opposed\s+to)\s+"
    r"(?P<other>\$[^$]{1,100}\$|[-+]?\$?\d[\d.,/]{0,40}%?)(?P<words>(?:\s[a-z]{1,20}){0,3})\s?\)?[.!]?\s*\Z"
)
_VALUE_NEXT = r"(?=[-+$(\s]{0,4}(?:\\[(\[]\s?)?(?:\.?\d|\\[a-z]|[\u221a\u03c0]))"
_AGAIN = re.compile(
    r"\s?(?:[,;:(\u2014]\s?)?\b(?:(?:or|and)\s+)?(?:(?:that|which)\s+(?:is|equals|(?:simplifies|reduces)\s+to"
    r"|is\s+(?:equal|equivalent)\s+to|is\s+the\s+same\s+as|can\s+be\s+(?:written|simplified|reduced)\s+(?:as|to))"
    r"|i\.\s?e\.|equivalently)(?:\s?[,:]|\b|(?<=\.))" + _VALUE_NEXT
)
_OR_AGAIN = re.compile(r",?\sor\b" + _VALUE_NEXT)
_IN_BRACKETS = re.compile(
    r"(?<=[\w%*])\s+\(\s*(?:=|i\.e\.,?|or)?\s*(-?\$?(?:[\d.,/]{1,40}%?|[a-zA-Z][a-z -]{0,60})"
    r"(?:\s[a-zA-Z]{1,20}){0,3}\s*)\)"
)


def without_asides(text: str) -> str:
    """A statement without its reasons and the value that it denies, where that is unambiguous."""
    reason = (
        _REASON.search(text) if "since" in text or "because" in text or " as " in text else None
    )
    if reason is not None and re.search(_DOUBTFUL, reason.group(), re.I) is None:
        kept = text[: reason.start()].rstrip(" ,")
        if re.search(r"\d", kept) is not None or re.search(r"\d", text) is None:
            text = kept
    denial = (
        _DENIAL.search(text) if any(w in text for w in ("not ", "than ", "of ", "to ")) else None
    )
    if denial is None or re.search(_DOUBTFUL, denial["words"]) is not None:
        return text
    other = re.escape(denial["other"].strip("$.,"))
    kept = text[: denial.start()]
    return text if re.search(rf"(?<![\d.]){other}(?![\d.])", kept) else kept


def said_again(text: str) -> list[str]:
    """The parts of a statement that each say its value; one where it says it once."""
    return _AGAIN.split(text) if _AGAIN.search(text) is not None else [text]


def numbers_again(text: str) -> list[str]:
    """As `said_again`, for a number: also `14 (fourteen)` and `2/4, or 1/2`."""
    bracket = _IN_BRACKETS.search(text) if " (" in text else None
    if bracket is not None:
        return [text[: bracket.start()] + " " + text[bracket.end() :], bracket[1]]
    return [part for again in said_again(text) for part in _OR_AGAIN.split(again)]
