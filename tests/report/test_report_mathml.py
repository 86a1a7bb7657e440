"""Formulas: which are found, what they become, and that nothing else comes through."""

import json
import random
import time

import pytest

from topr.report.mathml import formulas, tree


def tags(node) -> set[str]:
    name, _, inside = node
    return {name} | {t for child in inside if isinstance(child, list) for t in tags(child)}


def attributes(node) -> set[str]:
    _, given, inside = node
    return {*given} | {a for child in inside if isinstance(child, list) for a in attributes(child)}


def words(node) -> str:
    inside = node[2]
    return inside if isinstance(inside, str) else "".join(words(child) for child in inside)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so $x^2$ and \(y\) and \[z\] and $$w$$", [r"$x^2$", r"\(y\)", r"\[z\]", "$$w$$"]),
        (r"the answer is \boxed{\frac{\sqrt{2}}{2}}.", [r"\boxed{\frac{\sqrt{2}}{2}}"]),
        ("It costs $5 and then $6, or $7.", []),
        ("US$3 and US$4", []),
        ("$5 is $a + b$ more", ["$a + b$"]),
        ("a $ b $ c", []),
        ("\\[\n  x\n  = 1\n\\]", [r"\[ x = 1 \]"]),
        ("no end $x", []),
    ],
)
def test_formulas_are_found_and_money_is_not(text, found):
    assert list(formulas([text])) == found


def test_a_formula_is_a_tree_of_mathml():
    made = tree(r"$\frac{1}{2} \le x$")
    assert {"math", "mfrac", "mn", "mi", "mo"} <= tags(made)
    assert words(made) == "12≤x"
    assert tree(r"\[x\]")[1] == {"display": "block"}


@pytest.mark.parametrize(
    "formula",
    [
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{background:url(http://example.org)}{x}$",
        r"$\text{<script>alert(1)</script><img src=x onerror=alert(1)>}$",
        r"$\class{evil}{x} \id{evil} \onclick{x}$",
        r"$\color{red}{x}$",
        r"$\hspace{99999em} \rule{9999em}{9999em} x$",
        r"$\text{&lt;script&gt;}$",
    ],
)
def test_only_known_elements_and_attributes_pass(formula):
    made = tree(formula)
    if made is not None:
        assert not {"script", "img", "a", "maction", "semantics"} & tags(made)
        assert not {"href", "style", "class", "id", "src", "onclick"} & attributes(made)
        assert "99" not in json.dumps([*map(str, attributes(made))])


@pytest.mark.parametrize(
    "formula", [r"$\frac$", r"$\left(x$", "$x^{$", "$" + "{" * 300 + "$", r"$\begin{x}$"]
)
def test_what_cannot_be_read_stays_text(formula):
    assert tree(formula) is None or tags(tree(formula)) >= {"math"}


def test_odd_texts_take_little_time_and_break_nothing():
    chance = random.Random(0)
    pieces = [
        "$",
        "\\",
        "{",
        "}",
        r"\frac",
        r"\boxed{",
        r"\[",
        r"\]",
        "^",
        "_",
        "&",
        "x",
        "1",
        " ",
        "\n",
        "<",
    ]
    texts = ["".join(chance.choices(pieces, k=400)) for _ in range(60)]
    texts += [
        r"\boxed{" * 600,
        "$" * 4000,
        r"\[" * 2000,
        "$x" * 2000,
        "{" * 4000 + "$" + "}" * 4000,
    ]
    start = time.perf_counter()
    for made in formulas(texts).values():
        assert made[0] == "math"
    assert time.perf_counter() - start < 20
