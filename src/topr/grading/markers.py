"""The places of a text that announce its answer. Positions only: what stands there is read later.

All kinds are found in one list, in order: which of them counts is decided by
`topr.grading.statements`, not by its kind.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_ANSWER_WORD = (
    "[Aa]nswers?|ANSWERS?|[Cc]orrect (?:option|choice)|答案|答え|答|정답|[Оо]твет|[Rr]espuesta"
    "|[Rr]éponse|[Aa]ntwort|[Rr]isposta|[Rr]esposta"
)
_EMPHASIS = r"[*_`]{0,3}"
_SEPARATOR = rf"(?:{_EMPHASIS}[ \t]{{0,9}}(?:=>|->|→|⇒|[:：=])|[ \t]{{1,9}}[-–—](?=[ \t]))"
_IS = (
    r"(?:(?:therefore|thus|then|hence|so|now|simply|just)[ \t,]+){0,2}"
    r"(?:is|are|was|will\s+be|would\s+be|should\s+be|must\s+be|has\s+to\s+be|becomes|equals"
    r"|is\s+equal\s+to|comes\s+(?:out\s+)?to|turns\s+out\s+to\s+be|works\s+out\s+to|sera|est|es|ist"
    r"|является)(?![^\W\d_])"
)
# What may stand between the word and what it announces: "answer to the question", "answer (B)".
_OBJECT = (
    r"(?:[ \t]{0,4}\((?!\s?(?:number|count|length|how|confiden|certain))[^()\n]{1,60}\)"
    r"|\s{1,4}(?:to|for|of|in|as|here|we\s+seek)\b[^.\n:：=]{0,80}?)?"
)
_STATED = re.compile(
    rf"(?:{_ANSWER_WORD})(?![a-zA-Z])"
    rf"(?:{_OBJECT}"
    rf"(?P<sentence>[ \t,]{{0,4}}\s{{1,9}}{_IS}\s{{0,9}}[:：]?|\s{{0,4}}[是为は]\s{{0,4}}[:：]?)"
    rf"|{_OBJECT}(?P<label>{_SEPARATOR})|(?P<heading>{_EMPHASIS}[ \t]{{0,9}}(?=\n)))"
)
_ANSWER = re.compile(_ANSWER_WORD)
_SHORT_LABEL = re.compile(rf"(?:\A|(?<=\n))[ \t]*{_EMPHASIS}A[ ]?[:：]{_EMPHASIS}")
_HEADING = re.compile(r"(?:\A|\n)[ \t>#*_]{0,12}(?:[\w']{1,20}[ \t]+){0,3}\Z")
# Before the word: "We check our answer: ...", "Is it a coincidence that the answer is 24?", or the
# noun of a property ("Confidence in this answer: 95%"), or what supposes it ("If the answer is 5").
_CHECKING = re.compile(
    r"(?:check|verify|confirm|validate|test|compare)\w*\s+(?:(?:our|the|this|that|my|your|final)\s+){0,2}\Z"
    r"|(?<!\bvalue )\b(?:in|of|for|about|behind|with|per|on|before|until"
    r"|(?:steps?|time|way|path|minutes|seconds|attempts?|hints?|clues?)\s+to)"
    r"\s+(?:(?:the|this|that|my|our|your|an|each|any)\s+)?(?:(?:final|correct|given|above|right)\s+)?\Z"
    r"|\b(?:confidence|certainty|chances?|probability|likelihood|odds)\s+that\s+(?:the|this|my|our)"
    r"\s+(?:\w{1,10}\s+)?\Z"
    r"|\b(?:if|suppos\w{1,3}|assum\w{1,3}|imagine|pretend|claim\w{0,3})\s+(?:that\s+)?"
    r"(?:the|this|my|our)\s+(?:\w{1,10}\s+)?\Z"
    r"|(?:\A|[.!?:\n])\s*(?:is|are|was|why|how|can|could|does|did|would|what)\b[^.!?\n]{0,70}\Z",
    re.I,
)
_HASHES = re.compile(
    r"(?:\A|(?<=\n))[ \t]*####(?!#)[ \t]*[:：]?(?![ \t]*[*_]*(?:[Ff]inal|Answer))"
    r"|(?<=[ \t])####[ \t]{0,9}(?=[-+$\\]{0,3}[\d.(])"
)
# Tags around a whole solution are the answer only where nothing but a line stands in them.
_TAG = re.compile(
    r"<(?:final[_ -]?)?answer>|<final>|<\|begin_of_box\|>"
    r"|<(conclusion|output|solution|response|result)>(?=\s{0,9}[^<>\n]{1,300}?\s{0,9}</\1>)",
    re.I,
)
BOX = re.compile(
    r"\\f(?:rame)?box(?:\[[^\[\]\n]{0,20}\]){0,2}(?![a-zA-Z])|\\box(?:ed)?(?![a-zA-Z])"
)


class Kind(Enum):
    """How a statement is announced."""

    HASHES = "#### N"
    SENTENCE = "the answer is N"
    LABEL = "Answer: N, A: N, or a heading with the answer under it"
    TAG = "<answer>N</answer>"
    BOX = r"\boxed{N}"
    BOLD = "the only bold words of a last line that announces nothing"
    WHOLE = "a completion that is an answer and nothing else"


@dataclass(frozen=True, slots=True)
class Marker:
    """Where a statement is announced; for a box, `end` is where its command ends."""

    start: int
    end: int
    kind: Kind


def find_markers(text: str) -> list[Marker]:
    """All places that announce a statement, in order."""
    found: list[tuple[Kind, re.Match[str]]] = []
    words = _ANSWER.finditer(text) if _may_say_answer(text) else ()
    for word in _ends(words):
        match = _STATED.match(text, word.start())
        if match is None:
            continue
        before = text[max(0, word.start() - 80) : word.start()]
        if _CHECKING.search(before) is not None:
            continue
        if match["heading"] is None or _HEADING.search(before) is not None:
            found.append((Kind.SENTENCE if match["sentence"] is not None else Kind.LABEL, match))
    for hints, pattern, kind in (
        (("A:", "A :", "A："), _SHORT_LABEL, Kind.LABEL),
        (("####",), _HASHES, Kind.HASHES),
        (("<",), _TAG, Kind.TAG),
        (("box",), BOX, Kind.BOX),
    ):
        if any(hint in text for hint in hints):
            found += [(kind, match) for match in _ends(pattern.finditer(text))]
    markers = [Marker(match.start(), match.end(), kind) for kind, match in found]
    return sorted(markers, key=lambda marker: marker.start)


def _may_say_answer(text: str) -> bool:
    """Whether the pattern of the word has to be tried: plain search is much faster."""
    return "nswer" in text or "orrect " in text or "NSWER" in text or not text.isascii()


def _ends(found: Iterable[re.Match[str]]) -> list[re.Match[str]]:
    """The first and the last of very many: no honest completion announces so much."""
    matches = list(found)
    return matches if len(matches) <= 120 else matches[:20] + matches[-100:]
