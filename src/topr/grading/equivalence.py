r"""Whether two mathematical answers are the same. The only module of grading that loads sympy.

An answer is read into a tree (`topr.grading.forms`); only its leaves go to the LaTeX parser of
math-verify. Leaves are compared by value at high precision (`topr.grading.values`), so that
nothing is simplified and nothing is rounded; inequalities and sets are compared by math-verify
itself. `docs/grading.md` has the rules in words.
"""

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify

from topr.grading.forms import (
    Choice,
    Comparison,
    Equation,
    Items,
    Leaf,
    Matrix,
    Named,
    Node,
    Words,
    split_top,
)
from topr.grading.latex import in_radians, unwrapped, words
from topr.grading.sentences import is_absurd
from topr.grading.values import same_value

# It warns that its own time limits are off; ours are those of the worker.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_CONVERSION = ConversionConfig(lowercase_symbols=False)

MISREAD = re.compile(r"(?<![\d_^])\d+\s+\d|\)\s+\d|\(\d+\)\d|\d'|\d\.\d+\.\d")
"""What the parser makes a sum, a number or a product of."""


class UnreadableError(Exception):
    """The parser cannot make sense of a formula."""


@lru_cache(maxsize=4096)
def parse(latex: str) -> Any:
    """A leaf as a sympy object; decimals are exact rationals.

    Raises:
        UnreadableError: the parser cannot make sense of it.

    """
    if is_absurd(latex) or MISREAD.search(latex) is not None:
        raise UnreadableError(latex[:80])
    text = in_radians(unwrapped(latex))
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    # The parser takes 2(3) for the mixed number two and three.
    text = re.sub(r"(?<![\^_{\d.\\a-zA-Z])(\d+)\s*\(", r"\1 \\cdot (", text)
    try:
        tree = latex2sympy(
            text, is_real=True, normalization_config=None, conversion_config=_CONVERSION
        )
    except MemoryError:
        raise
    except Exception:  # latex2sympy raises bare Exception for a syntax error
        raise UnreadableError(latex[:80]) from None
    if isinstance(tree, sympy.Expr):
        return _exact(tree)
    return tree


def _exact(tree: Any) -> Any:
    floats = {f: sympy.Rational(str(f)) for f in tree.atoms(sympy.Float)}
    letters = {s: sympy.I for s in tree.free_symbols if s.name == "i"}
    return tree.xreplace({**floats, **letters})


def equivalent(gold: Node, answer: Node) -> bool:
    """Whether two trees mean the same.

    Raises:
        UnreadableError: a leaf cannot be parsed.

    """
    if isinstance(gold, Items) and gold.brackets == "=":
        return equivalent(gold.items[-1], answer)
    if isinstance(answer, Items) and answer.brackets == "=":
        return _same_chain(gold, answer.items)
    if isinstance(gold, Choice) or isinstance(answer, Choice):
        return _same_choice(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _plain_words(gold) == _plain_words(answer)
    if isinstance(gold, Fraction) and isinstance(answer, Fraction):
        return gold == answer
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _same_named(gold, answer)
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        return _same_equation(gold, answer)
    if isinstance(gold, Items) and isinstance(answer, Items):
        return _same_items(gold, answer)
    if isinstance(answer, Items) and answer.brackets == "{}" and not isinstance(gold, Matrix):
        return all(equivalent(gold, item) for item in answer.items)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        return _same_rows(gold, answer)
    if isinstance(gold, Matrix | Items) and isinstance(answer, Matrix | Items):
        return _same_vector(gold, answer)
    if isinstance(gold, Comparison) or isinstance(answer, Comparison):
        return _same_relation(gold, answer)
    if isinstance(gold, Fraction | Leaf) and isinstance(answer, Fraction | Leaf):
        return _same_leaf(gold, answer)
    return False


def _same_chain(gold: Node, members: Sequence[Node]) -> bool:
    """Whether all members of a chain that can be read are the gold answer, and the last is."""
    *earlier, last = members
    return equivalent(gold, last) and all(
        equivalent(gold, member) for member in earlier if is_readable(member)
    )


def _same_choice(gold: Node, answer: Node) -> bool:
    """A letter with its value is its letter, or its value; where both have both, they agree."""
    if isinstance(gold, Choice) and isinstance(answer, Choice):
        return gold.letter == answer.letter and equivalent(gold.value, answer.value)
    choice, other = (gold, answer) if isinstance(gold, Choice) else (answer, gold)
    if not isinstance(choice, Choice):
        return False
    return _plain_words(other) == choice.letter.casefold() or equivalent(choice.value, other)


def _plain_words(node: Node) -> str | None:
    if isinstance(node, Words):
        return node.text
    return words(node.latex) if isinstance(node, Leaf) else None


def _is_ratio(node: Fraction | Leaf) -> bool:
    return isinstance(node, Leaf) and ":" in node.latex


def _base_of(node: Fraction | Leaf) -> tuple[str, str | None]:
    """Digits and base of a number in another base, `664_7`; base None where it is left out."""
    latex = str(node) if isinstance(node, Fraction) else node.latex
    match = re.fullmatch(r"([\dA-F]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\w+?)\s*\}*", latex)
    return (match.group(1), match.group(2)) if match is not None else (latex, None)


def _same_leaf(gold: Fraction | Leaf, answer: Fraction | Leaf) -> bool:
    if _is_ratio(gold) != _is_ratio(answer):
        return False
    (digits, base), (other, other_base) = _base_of(gold), _base_of(answer)
    if base is not None or other_base is not None:
        return digits == other and (base == other_base or other_base is None)
    a, b = (
        sympy.Rational(node.numerator, node.denominator)
        if isinstance(node, Fraction)
        else parse(node.latex)
        for node in (gold, answer)
    )
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return same_value(a, b)
    return type(a) is type(b) and bool(a == b)


def _same_named(gold: Node, answer: Node) -> bool:
    """`x = 2` is `2`; two names must agree, except that `f(x) = ...` may be called `y`."""
    if isinstance(gold, Named) and isinstance(answer, Named):
        names = {gold.name, answer.name}
        function = any("(" in name and "," not in name for name in names)
        if len(names) > 1 and not ("y" in names and function):
            return isinstance(gold.value, Leaf) and _same_equation(
                _as_equation(gold), _as_equation(answer)
            )
        return equivalent(gold.value, answer.value)
    if isinstance(answer, Equation) and isinstance(gold, Named):
        return _same_equation(_as_equation(gold), answer)
    if isinstance(gold, Equation) and isinstance(answer, Named):
        return _same_equation(gold, _as_equation(answer))
    if isinstance(gold, Comparison) or isinstance(answer, Comparison):
        return _same_relation(gold, answer)
    return equivalent(
        gold.value if isinstance(gold, Named) else gold,
        answer.value if isinstance(answer, Named) else answer,
    )


def _as_equation(node: Named) -> Equation:
    sides = split_top(node.latex, "=")
    return Equation(sides[0], sides[-1])


def _same_equation(gold: Equation, answer: Equation) -> bool:
    """The same up to terms moved across; a multiple is another form, and MATH fixes the form.

    With 0 on the right of both, even the sign is part of the form.
    """
    a = [parse(side) for side in (gold.left, gold.right, answer.left, answer.right)]
    if not all(isinstance(side, sympy.Expr) for side in a):
        return False
    one, other = a[0] - a[1], a[2] - a[3]
    if same_value(one, other):
        return True
    return not (a[1] == 0 and a[3] == 0) and same_value(one, -other)


def _same_items(gold: Items, answer: Items) -> bool:
    if gold.brackets != answer.brackets:
        return False
    if gold.brackets not in ("{}", "\\cup") or _is_ordered(gold, answer):
        return len(gold.items) == len(answer.items) and all(
            equivalent(g, a) for g, a in zip(gold.items, answer.items, strict=True)
        )
    return all(any(equivalent(g, a) for a in answer.items) for g in gold.items) and all(
        any(equivalent(g, a) for g in gold.items) for a in answer.items
    )


def _is_ordered(gold: Items, answer: Items) -> bool:
    """Values of different names, answered without the names: the order says which is which."""
    names = {item.name for item in gold.items if isinstance(item, Named)}
    return len(names) > 1 and not any(isinstance(item, Named) for item in answer.items)


def _same_rows(gold: Matrix, answer: Matrix) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    pairs = zip(gold.rows, answer.rows, strict=True)
    return all(equivalent(g, a) for gs, as_ in pairs for g, a in zip(gs, as_, strict=True))


def _same_vector(gold: Matrix | Items, answer: Matrix | Items) -> bool:
    """A matrix of one row or column is a tuple of the same entries."""
    entries: list[Sequence[Node]] = []
    for node in (gold, answer):
        if isinstance(node, Items):
            entries.append(node.items if node.brackets in ("()", "[]") else ())
        else:
            flat = [cell for row in node.rows for cell in row]
            entries.append(flat if len(flat) in (len(node.rows), len(node.rows[0])) else ())
    if not entries[0] or len(entries[0]) != len(entries[1]):
        return False
    return all(equivalent(g, a) for g, a in zip(*entries, strict=True))


def _same_relation(gold: Node, answer: Node) -> bool:
    """Inequalities and the sets they describe, by math-verify."""
    a, b = (parse(_latex_of(node)) for node in (gold, answer))
    return bool(verify(a, b, timeout_seconds=None, allow_set_relation_comp=True))


def _latex_of(node: Node) -> str:
    if isinstance(node, Comparison | Leaf | Items):
        return node.latex
    if isinstance(node, Named):
        return _latex_of(node.value) if "\\in" in node.latex else node.latex
    if isinstance(node, Equation):
        return f"{node.left} = {node.right}"
    raise UnreadableError(str(node)[:80])


@lru_cache(maxsize=1024)
def is_readable(node: Node) -> bool:
    """Whether the parser makes sense of a tree: it can be compared with itself."""
    try:
        equivalent(node, node)
        if isinstance(node, Leaf):
            parse(node.latex)
    except MemoryError:
        raise
    except Exception:  # sympy raises nearly anything on nonsense
        return False
    return True
