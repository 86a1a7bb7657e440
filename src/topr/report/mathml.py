"""Formulas of models' texts as MathML that cannot do anything: a tree of known elements.

TeX is read by latex2mathml. Of what it makes, only elements and attributes that are listed here
pass, so neither a link nor a style nor a script comes through, whatever a model wrote; a formula
with anything else stays text.
"""

import html
import re
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,99}\}){0,99}\}){0,199}\}"
PATTERN = (
    r"\$\$[^$]{1,400}\$\$|\\\[[\s\S]{1,400}?\\\]|\\\([\s\S]{1,400}?\\\)"
    r"|(?<![\\$A-Za-z0-9_])\$(?=[^\s$])[^$\n]{0,199}[^\s$\\]\$(?![0-9$])"
    rf"|\\boxed{_BRACED}"
)
"""A formula with its marks. The page's script uses the same expression (with the flag `u`), so it
holds only what both languages read alike in visible text; of letters and digits JavaScript's short
forms know ASCII alone. Dollars as pandoc takes them: no space inside, no digit after."""
MOST = 3000
"""Formulas of one page; those after them stay text."""
DEEPEST = 40

_FORMULA = re.compile(PATTERN)
_SAME_AS = {"aligned": "split", "gathered": "matrix"}
"""Environments that latex2mathml does not read, by one that looks the same."""
_TAGS = frozenset(
    {
        "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msup", "msub",
        "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "menclose",
        "mpadded",
    }
)  # fmt: skip
_WORD = re.compile("[A-Za-z -]{1,40}")
_LENGTH = re.compile(r"-?([0-9]?(\.[0-9]{1,4})?(em|ex|cm)?|[0-9]{1,2}(\.[0-9]{1,4})?(px|pt|mm))")
"""At most a few centimetres."""
_ATTRIBUTES = {
    **dict.fromkeys(
        ("displaystyle", "stretchy", "fence", "form", "accent", "mathvariant", "movablelimits",
         "notation", "columnalign", "separator", "largeop"), _WORD,
    ),
    **dict.fromkeys(
        ("width", "lspace", "rspace", "minsize", "maxsize", "linethickness", "scriptlevel"),
        _LENGTH,
    ),
}  # fmt: skip

Tree = list[Any]
"""[element, attributes, text or children]"""


def formulas(texts: Iterable[str]) -> dict[str, Tree]:
    """Return the formulas in some texts, by what stands in the text with its white space made one.

    >>> formulas(["Half is $\\\\frac12$, not $5 or $6."])["$\\\\frac12$"][0]
    'math'
    """
    found: dict[str, Tree | None] = {}
    for text in texts:
        if "$" in text or "\\" in text:
            for match in _FORMULA.finditer(text):
                key = " ".join(match.group().split())
                if key not in found and len(found) < MOST:
                    found[key] = tree(key)
    return {key: made for key, made in found.items() if made is not None}


def tree(formula: str) -> Tree | None:
    """Return one formula with its marks as a tree; None where it cannot be shown safely."""
    block = formula.startswith(("$$", "\\["))
    inner = formula.strip("$") if formula.startswith("$") else formula[2:-2]
    inner = formula if formula.startswith("\\boxed") else inner
    if inner.count("{") > DEEPEST:
        return None
    for name, same in _SAME_AS.items():
        inner = inner.replace(f"{{{name}}}", f"{{{same}}}")
    try:
        found = convert_to_element(inner, display="block" if block else "inline")
    except Exception:  # a model's text in a foreign parser: anything may come of it
        return None
    children = [_known(child, 0) for child in found]
    if not children or None in children:
        return None
    return ["math", {"display": "block"} if block else {}, children]


def _known(element: Element, depth: int) -> Tree | None:
    """An element and what it holds, if all of it is known."""
    children = [_known(child, depth + 1) for child in element] if depth < DEEPEST else [None]
    text = element.text or ""
    unread = text == "&" or text.startswith("\\") or "linebreak" in element.attrib
    if element.tag not in _TAGS or None in children or unread:
        return None
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    }
    return [element.tag, attributes, children or html.unescape(text)]
