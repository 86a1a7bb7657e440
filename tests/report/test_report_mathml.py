"""Formulas: which are found, what they become, and that nothing else comes through."""

import random
import time

import pytest

from topr.report.mathml import formulas, tree


def tags(node) -> set[str]:
    name, _, inside = node
    return {name} | {t for child in inside if isinstance(child, list) for t in tags(child)}


def attributes(node) -> dict[str, set[str]]:
    """The values of each attribute in the tree."""
    _, given, inside = node
    found = {name: {value} for name, value in given.items()}
    for child in inside if isinstance(inside, list) else ():
        for name, values in attributes(child).items():
            found.setdefault(name, set()).update(values)
    return found


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
        ("结果是$x$，é$y$ and A$z$", ["$x$", "$y$"]),  # of letters only those of ASCII are money's
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
    ("formula", "shown"),
    [
        (r"$\href{javascript:alert(1)}{x}$", "x"),
        (r"$\style{background:url(http://example.org)}{x}$", "x"),
        (r"$\text{<script>alert(1)</script><img src=x>}$", "<script>alert(1)</script><img src=x>"),
        (r"$\text{&lt;script&gt;}$", "<script>"),
        (r"$\color{red}{x}$", "x"),
        (r"$\hspace{99em} \hspace{10cm} \hspace{100px} \rule{9999em}{9999em} x$", "x"),
    ],
)
def test_no_link_style_or_length_beyond_the_page_comes_through(formula, shown):
    made = tree(formula)
    assert words(made).replace("\xa0", " ") == shown
    assert tags(made) <= {"math", "mrow", "mstyle", "mi", "mtext", "mspace"}
    assert attributes(made) == {}


@pytest.mark.parametrize(
    "formula",
    [
        r"$\frac$", r"$\left(x$", "$x^{$", "$" + "{" * 300 + "$", r"$\begin{x}$", r"$\unknown x$",
        r"$\class{evil}{x} \id{evil} \onclick{x}$", "$a & b$",
        r"$\phantom{x} y$",  # what cannot be seen
        r"$a \\ b$",  # a line's end that MathML cannot show
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_shown_stays_text(formula):
    assert tree(formula) is None
    assert formulas([formula]) == {}


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        (r"$a~b$", "a\xa0b"),
        (r"$x \text{ and } y$", "x\xa0and\xa0y"),
        (r"$R\&D$", "R&D"),
        (r"$a \backslash b$", "a\\b"),
        (r"\[\begin{aligned} a &= b \\ &= c \end{aligned}\]", "a=b=c"),
        (r"\[\begin{gathered} a \\ b \end{gathered}\]", "ab"),
    ],
)
def test_what_a_formula_says_is_shown(formula, shown):
    assert words(tree(formula)) == shown
    assert ("mtr" in tags(tree(formula))) == ("begin" in formula)


def test_spaces_keep_their_width():
    made = tree(r"$a \quad b \hspace{1.5cm} c \hspace{12pt} d \hspace{3mm} e$")
    assert attributes(made) == {"width": {"1em", "1.5cm", "12pt", "3mm"}}


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
