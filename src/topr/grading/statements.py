"""Where a completion states its answer, and which of its statements counts. Text in, text out.

What a statement's text means is decided by a grader, which `extract_answer` asks. A completion is
hostile text: every search here is linear, and what is absurdly long is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from topr.grading.beside import changes_after_box, changes_before, is_denied, is_retracted

T = TypeVar("T")

MAX_COMPLETION = 400_000
"""Characters. Beyond any token limit in use; nobody's reasoning is that long."""
MAX_ANSWER = 2_000
"""Characters. The longest answer of MATH has under 200."""
MAX_DEPTH = 40
"""Nested brackets. The deepest answer of MATH has 6."""
_MAX_STATEMENTS = 12
"""So many remarks may follow an answer."""

_ANSWER_WORD = (
    "[Aa]nswers?|ANSWERS?|答案|答え|答|정답|[Оо]твет|[Rr]espuesta|[Rr]éponse|[Aa]ntwort|[Rr]isposta"
    "|[Rr]esposta"
)
_EMPHASIS = r"[*_`]{0,3}"
_SEPARATOR = rf"(?:{_EMPHASIS}[ \t]*(?:=>|->|→|⇒|[:：=])|[ \t]+[-–—](?=[ \t]))"
_IS = (
    r"(?:(?:therefore|thus|then|hence|so|now|simply|just)[ \t,]+){0,2}"
    r"(?:is|are|was|will\s+be|would\s+be|should\s+be|must\s+be|has\s+to\s+be|becomes|equals"
    r"|is\s+equal\s+to|comes\s+(?:out\s+)?to|turns\s+out\s+to\s+be|works\s+out\s+to|sera|est|es|ist"
    r"|является)(?![^\W\d_])"
)
# What may stand between the word and what it announces: "answer to the question", "answer (B)".
_OBJECT = r"(?:[ \t]*\([^()\n]{1,60}\)|\s+(?:to|for|of|in|as|here|we\s+seek)\b[^.\n:：=]{0,80}?)?"
_STATED = re.compile(
    rf"(?:{_ANSWER_WORD})(?![a-zA-Z])"
    rf"(?:{_OBJECT}(?P<sentence>[ \t,]*\s+{_IS}\s*[:：]?|\s*[是为は]\s*[:：]?)"
    rf"|{_OBJECT}(?P<label>{_SEPARATOR})|(?P<heading>{_EMPHASIS}[ \t]*(?=\n)))"
)
_ANSWER = re.compile(_ANSWER_WORD)
_SHORT_LABEL = re.compile(rf"(?:\A|(?<=\n))[ \t]*{_EMPHASIS}A(?:[ \t]?[:：]|\d?[:：]){_EMPHASIS}")
_HEADING = re.compile(r"(?:\A|\n)[ \t>#*_]{0,12}(?:[\w']{1,20}[ \t]+){0,3}\Z")
# Before the word: "We check our answer: ...", "Is it a coincidence that the answer is 24?"
_CHECKING = re.compile(
    r"(?:check|verify|confirm|validate|test|compare)\w*\s+(?:(?:our|the|this|that|my|your|final)\s+){0,2}\Z"
    r"|(?:\A|[.!?:\n])\s*(?:is|are|was|why|how|can|could|does|did|would|what)\b[^.!?\n]{0,70}\Z",
    re.I,
)
_HASHES = re.compile(r"(?:\A|(?<=\n))[ \t]*####(?!#)[ \t]*[:：]?(?![ \t]*[*_]*(?:[Ff]inal|Answer))")
_TAG = re.compile(r"<answer>|<\|begin_of_box\|>", re.I)
_TAG_END = re.compile(r"</?answer>|<\|end_of_box\|>", re.I)
_TAG_BEFORE = re.compile(r"</answer>\W{0,4}(?:or|and|vs|maybe|perhaps|possibly)\b\W{0,4}\Z", re.I)
_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")
_UNBRACED = re.compile(r"[-\u2212]?[$]?[\d.,]*\d(?![\w^/*+])|[A-Za-z](?![\w^/*+])")

_NEXT_QUESTION = re.compile(
    r"\n[ \t>#*_\[-]{0,12}(?:\d{1,3}[.)][ \t]*)?(?:(?:the|a|an|here is|now)[ \t]+){0,2}"
    r"(?:(?:next|new|another|similar|follow-?up|bonus|word|math|practice|sample|related)[ \t]+)?"
    r"(?:(?:question|problem|exercise|example|task|instruction|input|user|human|assistant|system"
    r"|问题|题目|问|例题|例|вопрос|задача|pregunta|problema|frage|aufgabe|exemple|domanda|pergunta)"
    r"(?![a-z])[ \t]*(?:\([^()\n]{1,30}\)|(?:no\.?|number|nr\.?)?[ \t]*#?\d{1,4}[a-z]?[.)\]]?|\])?"
    r"[*_]{0,3}[ \t]*(?:[:：—]|(?:(?<=[\d.)\]])|(?<=[\d.)\]]\*\*))[ \t]|\n|$)|Q[ \t]?\d{0,4}[*_]{0,3}[ \t]*[:：.)])"
    r"|\n[ \t]*let(?:'s| us)[ \t]+(?:try|do|solve|look at|move on to)[ \t]+(?:another|the next|a new)\b",
    re.I,
)
JOINED = re.compile(
    r"(?:[\s$,;.()/|~&\u2013\u2014-]|\\[()\[\],;:! ]|\\q?quad|\\text\{[^{}]*\}"
    r"|\b(?:and|or|to|vs|versus|maybe|perhaps|possibly)\b){0,40}",
    re.I,
)
"""What stands between the members of a list."""
_EMPHASIZED = re.compile(r"\A([*_`]{1,3})([^*_`\n]+)\1(?!\w)")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
HOPE = re.compile(r"\bI hope (?:it|this|that) (?:is|was) (?:correct|right)\b.*", re.I | re.S)
_SENTENCE_END = re.compile(r"(?<!\bvs)(?<!\bapprox)(?<!\.)[.!?](?:\*\*)?(?=\s+[A-Z\"'(]|\s*$)")
SPAN = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>(?:[^$\\]|\\.)+)\$"
    r"|\\\[(?P<c>(?:[^\\]|\\[^\]])+)\\\]|\\\((?P<d>(?:[^\\]|\\[^)])+)\\\)",
    re.S,
)
"""A formula set off by dollars or brackets."""


class Kind(Enum):
    """How a statement is announced."""

    HASHES = "#### N"
    SENTENCE = "the answer is N"
    LABEL = "Answer: N, A: N, or a heading with the answer under it"
    TAG = "<answer>N</answer>"
    BOX = r"\boxed{N}"
    BOLD = "the only bold words of a last line that announces nothing"
    WHOLE = "a completion that is an answer and nothing else"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """One place where a completion states, or seems to state, its answer."""

    kind: Kind
    text: str
    start: int
    """Where its marker begins."""
    end: int
    """Where its text ends."""


class Unread(Enum):
    """Why a statement gives no value."""

    REMARK = "it says something of the answer, not what it is"
    UNCLEAR = "it gives several values, or something beside the value changes it"


_REMARK = re.compile(
    r"[\s*_\"'(]*(?:(?:now|also|indeed|clearly|thus|therefore|hopefully|quite|very|both|already|fully"
    r"|the|then|just)\s+){0,3}(?:correct|right|verified|valid|clear|unclear|reasonable|sensible"
    r"|consistent|plausible|confirmed|complete|checked|above|below|boxed|exact(?!ly)|final|obvious"
    r"|simple|easy|unique|what|see|same|as\s+\w+|in\s+(?!fact|total|all)\w+|based|rounded|expressed"
    r"|found|(?:given|shown|stated|listed|written|derived|obtained|explained)\s+(?:above|below|in"
    r"|here|earlier|already|as|by\s+(?:the|this|our))|(?:positive|negative)(?!\s*\W{0,3}\s*[\w\d])"
    r"|(?:positive|negative)\s+(?:because|since|as|for)|because|since|important|wrong|incorrect)\b",
    re.I,
)


def is_remark(stated: str) -> bool:
    """Whether a sentence only speaks of the answer: `correct`, `as stated`, `in dollars`."""
    return _REMARK.match(stated) is not None


def is_absurd(answer: str) -> bool:
    """Whether an answer is too long or too deeply nested to be given to a parser."""
    if len(answer) > MAX_ANSWER:
        return True
    depth = deepest = 0
    for character in answer:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest > MAX_DEPTH


def extract_answer(
    text: str, read: Callable[[Statement], T | Unread]
) -> tuple[T | Unread, Statement] | None:
    """What the last statement with a value says, and that statement; None where there is none.

    Remarks ("The answer is correct.") hide nothing. A statement that is unclear does: a text that
    first says 5 and then "5 or 7" has no answer. Once a value has been stated, a new question ends
    the text: a model that runs on into the next example of its prompt is not judged by that one.

    Args:
        text: The visible part of a completion.
        read: What a statement says, by a grader.

    """
    markers = _markers(text)
    if not markers:
        return None
    if _NEXT_QUESTION.search(text, markers[0].end) is not None:
        statements = (_statement(text, markers, i) for i in range(len(markers[:_MAX_STATEMENTS])))
        first = next((s for s in statements if read(s) is not Unread.REMARK), None)
        following = _NEXT_QUESTION.search(text, first.end) if first is not None else None
        if following is not None:
            text = text[: following.start()]
            markers = [marker for marker in markers if marker.start < len(text)]
    for index in reversed(range(len(markers))[-_MAX_STATEMENTS:]):
        statement = _statement(text, markers, index)
        value = read(statement)
        if value is Unread.REMARK:
            continue
        if is_changed(text, statement) or is_retracted(text[statement.end :]):
            value = Unread.UNCLEAR
        return value, statement
    return None


def is_changed(text: str, statement: Statement) -> bool:
    """Whether words around a statement deny it, or change the value in a box."""
    before = text[max(0, statement.start - 120) : statement.start]
    if statement.kind is Kind.SENTENCE:
        return is_denied(before)
    if statement.kind is Kind.TAG:
        return _TAG_BEFORE.search(before) is not None
    if statement.kind in (Kind.BOX, Kind.BOLD):
        after = text[statement.end : statement.end + 120]
        return changes_before(before) or changes_after_box(after)
    return False


@dataclass(frozen=True, slots=True)
class _Marker:
    """Where a statement is announced; for a box, `end` is where its command ends."""

    start: int
    end: int
    kind: Kind


def _markers(text: str) -> list[_Marker]:
    """All places that announce a statement, in order."""
    found: list[tuple[Kind, re.Match[str]]] = []
    for word in _ANSWER.finditer(text):
        match = _STATED.match(text, word.start())
        if match is None:
            continue
        before = text[max(0, word.start() - 80) : word.start()]
        if _CHECKING.search(before) is not None:
            continue
        if match["heading"] is None or _HEADING.search(before) is not None:
            found.append((Kind.SENTENCE if match["sentence"] is not None else Kind.LABEL, match))
    for hint, pattern, kind in (
        ("A", _SHORT_LABEL, Kind.LABEL),
        ("####", _HASHES, Kind.HASHES),
        ("<", _TAG, Kind.TAG),
        ("box", _BOX, Kind.BOX),
    ):
        if hint in text:
            found += [(kind, match) for match in pattern.finditer(text)]
    markers = [_Marker(match.start(), match.end(), kind) for kind, match in found]
    return sorted(markers, key=lambda marker: marker.start)


def _statement(text: str, markers: list[_Marker], index: int) -> Statement:
    marker = markers[index]
    end = marker.end
    if marker.kind is Kind.BOX:
        stated, end = _boxes(text, markers, index)
    elif marker.kind is Kind.TAG:
        inner = text[end : end + 2 * MAX_ANSWER]
        stated = _TAG_END.split(inner, maxsplit=1)[0].strip()
        end += len(stated)
    else:
        stated = _rest(text, end)
        end = max(end, text.find(stated, end) + len(stated))
    return Statement(kind=marker.kind, text=stated, start=marker.start, end=end)


def _boxes(text: str, markers: list[_Marker], index: int) -> tuple[str, int]:
    """Content of a box, joined as a list with the boxes that directly precede it; and its end.

    A minus that stands before a box as a sign (not as a subtraction) belongs to the answer.
    """
    marker = markers[index]
    box = _box(text, marker.end)
    if box is None:
        return "", marker.end
    parts, start = [_sign(text, marker.start) + box[0]], marker.start
    for earlier in reversed(markers[max(0, index - 12) : index]):
        if earlier.kind is not Kind.BOX:
            continue
        previous = _box(text, earlier.end)
        if previous is None or not 0 <= start - previous[1] <= 80:
            break
        if JOINED.fullmatch(text, previous[1], start) is None:
            break
        content = _sign(text, earlier.start) + previous[0]
        if content not in parts:
            parts.append(content)
        start = earlier.start
    return ", ".join(reversed(parts)), box[1]


def _rest(text: str, position: int) -> str:
    """What follows a marker: to the end of its formula or its line."""
    rest = text[position : position + 4 * MAX_ANSWER].lstrip("\t\n :：")
    if "hope" in rest:
        rest = HOPE.sub("", rest)
    rest = _EMPHASIZED.sub(r"\2", rest).lstrip(" *_\t\n:：=")
    opening = re.match(r"\$\$|\\\[|\\\(|\$", rest)
    span = SPAN.match(rest) if opening is not None else None
    line_end = rest.find("\n", span.end() if span is not None else 0)
    return (rest if line_end < 0 else rest[:line_end]).strip(" *_\t\n")


def _sign(text: str, start: int) -> str:
    """`-` where the box at `start` is negated, not subtracted."""
    before = text[max(0, start - 12) : start].rstrip()
    if not before.endswith(("-", "\N{MINUS SIGN}", "\N{EN DASH}")):
        return ""
    before = before[:-1].rstrip()
    return "-" if not before or before[-1] in "=$([:,\n" or before.endswith("\\approx") else ""


def _box(text: str, position: int) -> tuple[str, int] | None:
    r"""Content and end of a box whose command ends at `position`; `\boxed 12` holds 12."""
    opening = position
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if not text.startswith("{", opening):
        unbraced = _UNBRACED.match(text, opening)
        return None if unbraced is None else (unbraced.group(), unbraced.end())
    depth = 0
    for place in range(opening, min(len(text), opening + 2 * MAX_ANSWER)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : place].strip(), place + 1
    return None


def closing_bold(text: str) -> Statement | None:
    """The only bold words of the last line, where that line ends like a sentence."""
    text = text.rstrip()
    line = text.rfind("\n", max(0, len(text) - 1000)) + 1
    found = list(_BOLD.finditer(text, line))
    if len(found) != 1 or text[-1] not in ".!*。" or not any(c.isdigit() for c in found[0][1]):
        return None
    start, end = found[0].span()
    return Statement(kind=Kind.BOLD, text=found[0][1].strip(), start=start, end=end)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; one inside a number or formula does not.

    A question mark stays: a question states nothing.
    """
    for match in _SENTENCE_END.finditer(text):
        if text.count("$", 0, match.start()) % 2 == 0:
            end = match.start() + (match.group().startswith("?"))
            return text[:end].strip()
    return text.strip()


def closing_sentence(text: str) -> str | None:
    """The last sentence of a completion that ends like one; None where it breaks off."""
    text = text.rstrip()
    if not text or text[-1] not in ".!$)]*":
        return None
    tail = text[-1000:].rpartition("\n")[2]
    ends = [match.end() for match in _SENTENCE_END.finditer(tail)]
    if len(ends) > 1:
        tail = tail[ends[-2] :]
    return tail.strip()
