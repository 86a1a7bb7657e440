r"""The form of a mathematical answer: a small tree, read from LaTeX without evaluating anything.

Numbers, words, lists, tuples and intervals, matrices, named values and equations are told apart
here; what stays a formula is a leaf, and what leaves mean is `topr.grading.mathematics`'s business.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from topr.grading.latex import is_words, normalize_latex, split_choice, words
from topr.grading.numbers import read_exactly

_BUILT = re.compile(
    r"\\\{\s*[a-z](?:\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*(?:\\mid|\\vert|[|:])(.*)\\\}", re.S
)
"""The set of the numbers for which an inequality holds."""
RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\neq|<|>")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+|[A-Z]{2,4}|\|[A-Z]{1,3}\|)(?:_(?:\w|\{[^{}]*\}))?'?(?:\([^()]*\))?"
    r"(?::[A-Z](?:_\{?\w+\}?)?)?|\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\)"
)
_MATRIX = re.compile(r"\\begin\{([bpvV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.S)


@dataclass(frozen=True, slots=True)
class Words:
    """Words: `\text{even}`."""

    text: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """An expression, as LaTeX."""

    latex: str


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers: `{}` unordered (list or set), else a tuple or interval by its brackets.

    With `=` for brackets it is one answer, said several times: `\\sqrt{20} = 2\\sqrt{5}`.
    """

    brackets: str
    items: tuple["Node", ...]
    latex: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of a matrix."""

    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """`x = 5`, `f(x) = 2x`, `x \\in [0, 1]`."""

    name: str
    value: "Node"
    latex: str


@dataclass(frozen=True, slots=True)
class Equation:
    """`2x + 3y = 4`: both sides as LaTeX."""

    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """An inequality, a chain of relations or a set expression, as LaTeX."""

    latex: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter of a multiple choice with what it stands for: `(D) 119`."""

    letter: str
    value: "Node"


Node = Fraction | Choice | Words | Leaf | Items | Matrix | Named | Equation | Comparison


def split_top(text: str, separators: str) -> list[str]:
    """Split at separators outside all brackets; half-open intervals close what they open."""
    parts, depth, start, position = [], 0, 0, 0
    environments = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            if text.startswith(("\\begin", "\\end"), position):
                environments += 1 if text[position + 1] == "b" else -1
            step = 2 if text[position + 1 : position + 2] in "{}" else 1
            depth += {"\\{": 1, "\\}": -1}.get(text[position : position + 2], 0)
            position += step
            continue
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth == 0 and environments == 0:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def _enclosed(text: str) -> tuple[str, str] | None:
    """Brackets and content of a text that one pair of brackets encloses."""
    for opening, closing, brackets in (
        ("\\{", "\\}", "{}"), ("{", "}", "{}"), ("(", ")", "()"),
        ("[", "]", "[]"), ("(", "]", "(]"), ("[", ")", "[)"),
    ):  # fmt: skip
        if not (text.startswith(opening) and text.endswith(closing)):
            continue
        inner = text[len(opening) : len(text) - len(closing)]
        depth = 0
        for character in inner:
            depth += (character in "([{") - (character in ")]}")
            if depth < 0:
                break
        else:
            if depth == 0 and not inner.endswith("\\"):
                return brackets, inner
    return None


@lru_cache(maxsize=4096)
def read(text: str) -> Node:
    """The tree of an answer in the spelling of `topr.grading.latex.normalize_latex`."""
    number = read_exactly(text)
    if number is not None:
        return number
    choice = _read_choice(text)
    if choice is not None:
        return choice
    if is_words(text):
        return Words(words(text))
    built = _BUILT.fullmatch(text) if text.startswith("\\{") else None
    if built is not None and RELATION.search(built[1]):
        return Comparison(built[1].strip())
    for reader in (_read_union, _read_list, _read_enclosed, _read_matrix, _read_equation):
        node = reader(text)
        if node is not None:
            return node
    if RELATION.search(text):
        return Comparison(text)
    if "\\pm" in text or "\\mp" in text:
        return _read_plus_minus(text)
    return Leaf(text)


def _read_choice(text: str) -> Node | None:
    choice = split_choice(text)
    if choice is None:
        return None
    letter, value = choice
    if not value:
        return Words(letter.casefold())
    return Choice(letter, read(normalize_latex(value)))


def _read_union(text: str) -> Node | None:
    parts = split_top(text.replace("\\cup", "\x1f"), "\x1f") if "\\cup" in text else []
    if len(parts) < 2 or "=" in text or "\\in" in text.replace("\\infty", ""):
        return None
    return Items("\\cup", tuple(read(part) for part in parts), text)


def _read_list(text: str) -> Node | None:
    parts = [part for part in split_top(text, ",;") if part]
    if len(parts) < 2:
        return None
    return Items("{}", tuple(read(normalize_latex(part)) for part in parts), text)


def _read_enclosed(text: str) -> Node | None:
    found = _enclosed(text)
    if found is None or not found[1].strip():
        return None
    brackets, inner = found
    parts = split_top(inner, ",;")
    if len(parts) == 1:
        return read(inner.strip()) if brackets in ("{}", "()", "[]") else None
    return Items(brackets, tuple(read(normalize_latex(part)) for part in parts), text)


def _read_matrix(text: str) -> Node | None:
    match = _MATRIX.fullmatch(text)
    if match is None or match.group(1) in ("vmatrix", "Vmatrix"):
        return None
    rows = [row for row in re.split(r"\\\\", match.group(2)) if row.strip()]
    return Matrix(
        tuple(tuple(read(normalize_latex(cell)) for cell in row.split("&")) for row in rows)
    )


def _read_equation(text: str) -> Node | None:
    if RELATION.search(text):
        return None
    member = re.fullmatch(r"([A-Za-z]|\\[a-z]+)\s*\\in(?![a-z])\s*(.+)", text)
    if member is not None:
        return Named(member.group(1), read(member.group(2)), text)
    sides = split_top(text, "=")
    if len(sides) < 2 or not all(sides):
        return None
    if len(sides) > 2 and not re.search(r"\d", sides[0]) and read_exactly(sides[-1]) is not None:
        return read(sides[-1])  # `m + n = 256 + 37 = 293`
    values = sides[1:] if _NAME.fullmatch(sides[0]) else sides
    if len(values) > 1 and not any(re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", side) for side in values):
        return Items("=", tuple(read(normalize_latex(side)) for side in values), text)
    if _NAME.fullmatch(sides[0]):
        return Named(sides[0].replace(" ", ""), read(normalize_latex(sides[-1])), text)
    if len(sides) == 2 and _NAME.fullmatch(sides[1]) and read_exactly(sides[0]) is not None:
        return Named(sides[1].replace(" ", ""), read(sides[0]), text)
    return Equation(sides[0], sides[1]) if len(sides) == 2 else Comparison(text)


def _read_plus_minus(text: str) -> Node:
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return Items("{}", (read(upper.lstrip("+ ")), read(lower.lstrip("+ "))), text)
