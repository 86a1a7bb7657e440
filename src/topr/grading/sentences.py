"""Sentences and formulas of a text, and how long a text may be. Text in, text out.

A completion is hostile text: every search here is linear, and what is absurdly long is refused.
"""

import re

MAX_COMPLETION = 400_000
"""Characters. Beyond any token limit in use; nobody's reasoning is that long."""
MAX_ANSWER = 2_000
"""Characters. The longest answer of MATH has under 200."""
MAX_DEPTH = 40
"""Nested brackets. The deepest answer of MATH has 6."""
JOINED = re.compile(
    r"(?:[\s$,;.()/|~&\u2013\u2014-]|\\[()\[\],;:! ]|\\q?quad|\\text\{[^{}]*\}"
    r"|\b(?:and|or|to|vs|versus|maybe|perhaps|possibly)\b){0,40}",
    re.I,
)
"""What stands between the members of a list."""
HOPE = re.compile(r"\bI hope (?:it|this|that) (?:is|was) (?:correct|right)\b.*", re.I | re.S)
_SENTENCE_END = re.compile(r"(?<!\bvs)(?<!\bapprox)(?<!\.)[.!?](?:\*\*)?(?=\s+[A-Z\"'(]|\s*$)")
_ABOUT = re.compile(r"\banswers?\b", re.I)
_CALLED = re.compile(
    r"\b(?:is|are|as|be|gives|was)\s+(?:(?:the|my|our|your|an)\s+)?(?:\w{1,12}\s+)?answers?\b", re.I
)
"""The answer called so: `5 is the answer`."""
SPAN = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?![\d.,]+[ \t]*\n)(?P<b>(?:[^$\\]|\\.)+)\$"
    r"|\\\[(?P<c>(?:[^\\]|\\[^\]])+)\\\]|\\\((?P<d>(?:[^\\]|\\[^)])+)\\\)",
    re.S,
)
"""A formula set off by dollars or brackets."""


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
    """The last sentence of a completion that ends like one; None where it breaks off.

    Also where it speaks of the answer without stating it: `The answer has 2 digits.`
    """
    text = text.rstrip()
    if not text or text[-1] not in ".!$)]*":
        return None
    tail = text[-1000:].rpartition("\n")[2]
    ends = [match.end() for match in _SENTENCE_END.finditer(tail)]
    if len(ends) > 1:
        tail = tail[ends[-2] :]
    return None if is_about_the_answer(tail) else tail.strip()


def is_about_the_answer(sentence: str) -> bool:
    """Whether a sentence speaks of the answer, and not as `5 is the answer` does."""
    return _ABOUT.search(_CALLED.sub("", sentence)) is not None
