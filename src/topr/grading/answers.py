"""Where a completion states its answer. Text in, text out; what the text means is not decided here.

A completion is hostile text: every search here is linear, and what is absurdly long is refused.
"""

import re
from collections.abc import Iterator
from enum import Enum

MAX_COMPLETION = 400_000
"""Characters. Beyond any token limit in use; nobody's reasoning is that long."""
MAX_ANSWER = 2_000
"""Characters. The longest answer of MATH has under 200."""
MAX_DEPTH = 40
"""Nested brackets. The deepest answer of MATH has 6."""

_CONTROL = re.compile(r"<\|[a-z_]+\|>|</s>")
_NEXT_QUESTION = re.compile(
    r"\n[ \t]*(?:(?:next )?(?:question|problem|exercise)\b[^\n:.]{0,12}[:.]|Q:|USER:|Human:)", re.I
)
_STATEMENT = re.compile(
    r"^[ \t]*####(?!#)\s*:?|\banswer(?:\s+(?:to|for|of)\s+[^.\n]{1,80}?)?\s+is\b\s*:?",
    re.I | re.M,
)
_FINAL = re.compile(r"^[ \t]*####(?!#)\s*:?|\bfinal\s+answer\s+is\b\s*:?", re.I | re.M)
_LABEL = re.compile(r"\banswer\b\**\s*:\**|^[ \t]*\**A\s?:\**", re.I | re.M)
_BOX = re.compile(r"\\f?box(?:ed)?(?![a-zA-Z])")
_JOINED = re.compile(
    r"(?:[\s$,;.]|\\[()\[\],;:! ]|\\q?quad|\\text\{[^{}]*\}|\band\b|\bor\b){1,40}", re.I
)
_HOPE = re.compile(r"\bI hope (?:it|this) is correct\b.*", re.I | re.S)
_SENTENCE_END = re.compile(r"(?<!\bvs)(?<!\bapprox)[.!?](?:\*\*)?(?=\s+[A-Z\"'(]|\s*$)")
_SPAN = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>(?:[^$\\]|\\.)+)\$"
    r"|\\\[(?P<c>(?:[^\\]|\\[^\]])+)\\\]|\\\((?P<d>(?:[^\\]|\\[^)])+)\\\)",
    re.S,
)


class Marker(Enum):
    """How an answer is announced."""

    FINAL = _FINAL
    """`#### N`, "The final answer is N"."""
    STATEMENT = _STATEMENT
    """`#### N`, "The answer is N"."""
    LABEL = _LABEL
    """A line `A: N`, "Answer: N"."""
    BOX = _BOX
    r"""`\boxed{N}`, `\fbox{N}`."""


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


def visible(completion: str) -> str:
    """What a completion says after its thinking part, up to the first control token.

    A thinking part that never ends leaves nothing.
    """
    if "<think>" in completion or "</think>" in completion:
        _, closed, rest = completion.rpartition("</think>")
        completion = rest if closed else completion.partition("<think>")[0]
    control = _CONTROL.search(completion.lstrip())
    if control is not None and control.start() > 0:
        completion = completion.lstrip()[: control.start()]
    return completion


def marked_answer(text: str, tiers: tuple[tuple[Marker, ...], ...]) -> str | None:
    """The text behind the last marker of the first tier that has one; None: no marker.

    Once an answer has been given, a new question ends the completion: a model that runs on into
    the next example of its prompt is not judged by that example's answer.
    """
    first = min(
        (m.start() for marker in Marker if (m := marker.value.search(text)) is not None),
        default=None,
    )
    if first is None:
        return None
    following = _NEXT_QUESTION.search(text, first)
    if following is not None:
        text = text[: following.start()]
    for tier in tiers:
        found = [
            (match.start(), match.end(), marker)
            for marker in tier
            for match in marker.value.finditer(text)
        ]
        for start, end, marker in sorted(found, key=lambda item: item[0], reverse=True)[:3]:
            answer = _boxed(text, start) if marker is Marker.BOX else _stated(text[end:])
            if answer:
                return answer
    return None


def _stated(rest: str) -> str:
    """The statement that follows a marker: to the end of its formula, its sentence or its line."""
    rest = _HOPE.sub("", rest[: 4 * MAX_ANSWER]).lstrip(" *\t\n:")
    opening = re.match(r"\$\$|\\\[|\\\(|\$", rest)
    if opening is not None:
        span = _SPAN.match(rest)
        line_end = rest.find("\n", span.end() if span is not None else 0)
    else:
        line_end = rest.find("\n")
    if line_end >= 0:
        rest = rest[:line_end]
    return rest.strip(" *\t\n")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; one inside a number or formula does not."""
    for match in _SENTENCE_END.finditer(text):
        if text.count("$", 0, match.start()) % 2 == 0:
            return text[: match.start()].strip()
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


def _boxed(text: str, start: int) -> str | None:
    """Content of the box at `start`, joined with the boxes that directly precede it as a list.

    A minus that stands before the box as a sign (not as a subtraction) belongs to the answer.
    """
    content = box_content(text, start)
    if content is None:
        return None
    parts = [_sign(text, start) + content]
    for earlier in _boxes_before(text, start):
        inner = box_content(text, earlier)
        if inner is None or len(parts) >= 10:
            break
        between = text[text.index(inner, earlier) + len(inner) + 1 : start]
        if len(between) > 80 or _JOINED.fullmatch(between) is None:
            break
        inner = _sign(text, earlier) + inner
        if inner not in parts:
            parts.append(inner)
        start = earlier
    return ", ".join(reversed(parts))


def _boxes_before(text: str, start: int) -> Iterator[int]:
    """Positions of the boxes before `start`, last first."""
    while True:
        start = max(text.rfind("\\boxed", 0, start), text.rfind("\\fbox", 0, start))
        if start < 0:
            return
        yield start


def _sign(text: str, start: int) -> str:
    """`-` where the box at `start` is negated."""
    before = text[max(0, start - 12) : start].rstrip()
    if not before.endswith(("-", "\N{MINUS SIGN}")):
        return ""
    before = before[:-1].rstrip()
    return "-" if not before or before[-1] in "=$([:,\n" or before.endswith("\\approx") else ""


def box_content(text: str, start: int) -> str | None:
    """Content of the box whose command begins at `start`; None where it never closes."""
    match = _BOX.match(text, start)
    if match is None:
        return None
    opening = match.end()
    while opening < len(text) and text[opening] in " \n":
        opening += 1
    if opening >= len(text):
        return None
    if text[opening] != "{":
        return text[opening] if text[opening].isalnum() else None
    depth = 0
    for position in range(opening, min(len(text), opening + 2 * MAX_ANSWER)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : position].strip()
    return None


def formulas(text: str) -> list[tuple[str, int, int]]:
    """Formulas set off by dollars or brackets: content, start and end of each."""
    return [
        (next(g for g in m.groups() if g is not None).strip(), m.start(), m.end())
        for m in _SPAN.finditer(text)
    ]


def are_joined(between: str) -> bool:
    """Whether the text between two formulas only lists them: `, and`."""
    return not between.strip() or _JOINED.fullmatch(between) is not None
