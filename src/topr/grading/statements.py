"""Where a completion states its answer, and which of its statements counts. Text in, text out.

What a statement's text means is decided by a grader, which `extract_answer` asks. A completion is
hostile text: every search here is linear, and what is absurdly long is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from topr.grading.markers import Kind, Marker, find_markers
from topr.grading.modifiers import (
    BEFORE,
    changes_after_box,
    changes_before,
    has_alternative,
    is_denied,
    is_retracted,
)
from topr.grading.remarks import is_remark, next_question
from topr.grading.sentences import (
    HOPE,
    JOINED,
    MAX_ANSWER,
    SPAN,
    first_sentence,
    is_about_the_answer,
)

T = TypeVar("T")

_MAX_STATEMENTS = 12
"""So many remarks may follow an answer."""

_TAG_END = re.compile(r"</?(?:final[_ -]?)?[a-z]{5,10}>|<\|end_of_box\|>", re.I)
_TAG_BEFORE = re.compile(
    r"</[\w -]{5,12}>\W{0,4}(?:or|and|vs|maybe|perhaps|possibly)\b\W{0,4}\Z", re.I
)
_UNBRACED = re.compile(
    r"(?:-?[$]?[\d.,]*\d|[A-Za-z]|-?\\[dtc]?frac\s?(?:\d\d|(?:\{[^{}]{1,60}\}){2})"
    r"|-?\\sqrt\s?(?:\d|\{[^{}]{1,60}\})|-?\\(?!frac|sqrt|text|math)[a-z]{2,8})"
    r"(?![\w^/*+{]|[ \t]*[*/^+=]|[ \t]*-\s*[\d\\]"
    r"|[ \t][b-z]\b|[ \t]*\\(?!text|mbox|mathrm|q?quad)[a-zA-Z])"
)

_EMPHASIZED = re.compile(r"\A([*_`]{1,3})(?=\S)([^*_`\n]+)\1(?!\w)")
_FENCE = re.compile(r"\A[\s*_]{0,9}```\w*[ \t]*\n\s*")
_ALONE = re.compile(
    r"[ \t]{0,9}(\*{1,3}|_{1,2}|`|\$\$?|\\[(\[]|=(?=[^=]*$))([^*_`$\n]{1,160}?)(?:\1|\\[)\]])?\.?"
)
_PROSE = re.compile(r"\W{0,9}[A-Za-z]{2,}\s+[A-Za-z]")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")


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
    UNCLEAR = "it gives several values, or something next to the value changes it"


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
    markers = find_markers(text)
    if not markers:
        return None
    shortened = _until_next_question(text, markers, read)
    if len(shortened) < len(text):
        text = shortened
        markers = [marker for marker in markers if marker.start < len(text)]
    for index in reversed(range(len(markers))[-_MAX_STATEMENTS:]):
        statement = _statement(text, markers, index)
        value = read(statement)
        if value is Unread.REMARK:
            continue
        if (
            is_changed(text, statement)
            or is_retracted(text[statement.end :])
            or _states_several(text, markers, index, statement)
        ):
            value = Unread.UNCLEAR
        return value, statement
    return None


def _until_next_question(
    text: str, markers: list[Marker], read: Callable[[Statement], object]
) -> str:
    """The text up to the first question that follows a statement with a value."""
    for index, marker in enumerate(markers[:_MAX_STATEMENTS]):
        following = next_question(text, marker.end)
        if following is None:
            break
        if read(_statement(text[:following], markers, index)) is not Unread.REMARK:
            return text[:following]
    return text


def is_changed(text: str, statement: Statement) -> bool:
    """Whether words around a statement deny it, or change the value in a box."""
    before = text[max(0, statement.start - 120) : statement.start]
    if statement.kind is Kind.SENTENCE:
        return is_denied(before)
    if statement.kind is Kind.LABEL:
        paragraph = text[statement.end : statement.end + 1000].split("\n\n", 1)[0]
        return _is_reasoning(statement.text, paragraph)
    if statement.kind is Kind.TAG:
        return _TAG_BEFORE.search(before) is not None
    if statement.kind is Kind.BOLD and BEFORE.search(before[-25:].rpartition("\n")[2]) is not None:
        return True
    if statement.kind in (Kind.BOX, Kind.BOLD):
        after = text[statement.end : statement.end + 120]
        return changes_before(before) or changes_after_box(after)
    return False


def stated_sentence(statement: Statement) -> str | Unread:
    """The first sentence of a statement; UNCLEAR where the next ones give another answer."""
    if is_remark(statement.text):
        return Unread.REMARK
    sentence = first_sentence(statement.text)
    rest = statement.text[len(sentence) :]
    reasons = statement.kind is Kind.LABEL and _is_reasoning(sentence, rest)
    return Unread.UNCLEAR if reasons or has_alternative(rest) else sentence


def _is_reasoning(sentence: str, following: str) -> bool:
    """Whether a label begins a solution: `A: Ann has 5 pens. She buys 7 more.`"""
    return _PROSE.match(sentence) is not None and any(c.isdigit() for c in following)


def _states_several(text: str, markers: list[Marker], index: int, statement: Statement) -> bool:
    """Whether a sentence that announces its answer has several boxes: `8 through 13`, boxed."""
    several = False
    for earlier in reversed(markers[:index] if statement.kind is Kind.BOX else []):
        if "\n" in text[earlier.end : statement.start]:
            return False
        if earlier.kind is not Kind.BOX:
            return several
        box = content_of_box(text, earlier.end)
        several = several or (box is not None and box[0] not in statement.text)
    return False


def _statement(text: str, markers: list[Marker], index: int) -> Statement:
    marker = markers[index]
    end = marker.end
    if marker.kind is Kind.BOX:
        stated, end = _boxes(text, markers, index)
    elif marker.kind is Kind.TAG:
        closing = _TAG_END.search(text, end, end + 2 * MAX_ANSWER)
        stated = text[end : closing.start() if closing is not None else end + 2 * MAX_ANSWER]
        end = closing.end() if closing is not None else min(len(text), end + 2 * MAX_ANSWER)
        stated = stated.strip()
    else:
        stated, end = _rest(text, end)
    return Statement(kind=marker.kind, text=stated, start=marker.start, end=end)


def _boxes(text: str, markers: list[Marker], index: int) -> tuple[str, int]:
    """Content of a box, joined as a list with the boxes that directly precede it; and its end.

    A minus that stands before a box as a sign (not as a subtraction) belongs to the answer.
    """
    marker = markers[index]
    box = content_of_box(text, marker.end)
    if box is None:
        return "", marker.end
    parts, start = [_sign(text, marker.start) + box[0]], marker.start
    for earlier in reversed(markers[max(0, index - 12) : index]):
        if earlier.kind is not Kind.BOX:
            continue
        previous = content_of_box(text, earlier.end)
        if previous is None or not 0 <= start - previous[1] <= 80:
            break
        if JOINED.fullmatch(text, previous[1], start) is None:
            break
        content = _sign(text, earlier.start) + previous[0]
        if content not in parts:
            parts.append(content)
        start = earlier.start
    return ", ".join(reversed(parts)), box[1]


def _rest(text: str, position: int) -> tuple[str, int]:
    """What follows a marker, to the end of its formula or its line; and where that is."""
    rest = text[position : position + 4 * MAX_ANSWER]
    if "hope" in rest:
        rest = HOPE.sub("", rest)
    end = position + len(rest)
    rest = _FENCE.sub("", rest.lstrip("\t\n :：")) if "```" in rest else rest.lstrip("\t\n :：")
    rest = _EMPHASIZED.sub(r"\2", rest).lstrip(" *_\t\n:：=")
    opening = re.match(r"\$\$|\\\[|\\\(|\$", rest)
    span = SPAN.match(rest) if opening is not None else None
    inner = span.end() if span is not None and "\n\n" not in span.group() else 0
    line_end = rest.find("\n", inner)
    if line_end >= 0:
        rest, end = rest[:line_end], end - len(rest) + line_end
    return rest.strip(" *_\t\n"), end


def _sign(text: str, start: int) -> str:
    """`-` where the box at `start` is negated, not subtracted."""
    before = text[max(0, start - 12) : start].rstrip()
    if not before.endswith(("-", "\N{MINUS SIGN}", "\N{EN DASH}")):
        return ""
    before = before[:-1].rstrip()
    return "-" if not before or before[-1] in "=$([:,\n" or before.endswith("\\approx") else ""


def content_of_box(text: str, position: int) -> tuple[str, int] | None:
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
    """The only bold words of the last line, or all of it where it is bold, code or a formula."""
    text = text.rstrip()
    line = text.rfind("\n", max(0, len(text) - 1000)) + 1
    if is_about_the_answer(text[line:][-1000:]):
        return None
    alone = _ALONE.fullmatch(text, line)
    if alone is not None and any(c.isdigit() for c in alone[2]):
        return Statement(kind=Kind.BOLD, text=alone[2].strip(), start=line, end=len(text))
    found = list(_BOLD.finditer(text, line))
    if len(found) != 1 or text[-1] not in ".!*。" or not any(c.isdigit() for c in found[0][1]):
        return None
    start, end = found[0].span()
    return Statement(kind=Kind.BOLD, text=found[0][1].strip(), start=start, end=end)
