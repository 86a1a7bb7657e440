r"""Numbers as people write them, compared as exact rationals. No sympy, no floats, no tolerance.

What a number may wear: a sign, a currency, thousands marks, a unit, a percent sign, LaTeX around
it. None of that changes its value, except the words thousand to trillion.
"""

import re
from fractions import Fraction

from topr.grading.answers import (
    MAX_ANSWER,
    MAX_COMPLETION,
    Marker,
    closing_sentence,
    first_sentence,
    marked_answer,
    visible,
)
from topr.grading.verdict import Verdict
from topr.records import Grade

_TIERS = ((Marker.STATEMENT,), (Marker.LABEL,), (Marker.BOX,))
_MAX_DIGITS = 400
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2212\u2012\u2013\uFE63\uFF0D]", "-"),
        (r"[\u00A0\u2009\u202F]", " "),
        (r"\*\*|\\displaystyle|\\left|\\right|\\[()\[\]]", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (
            r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|textrm|operatorname)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"(?<=\d)(?:\{,\}|,?\\[!,;]\s*)(?=\d{3}(?!\d))", ","),
        (r"\\[!,;: ]|~", " "),
        (r"(?<![\d.,])(\d{1,3}) (?=\d{3}(?: \d{3})*(?![\d,/]|\.\d{4}))", r"\1,"),
        (r"(?<=,\d{3}) (?=\d{3}(?![\d,/]))", ","),
        (r"\\?[$€£¥₹]|\\?%|\\?°|\^\s*\{?\s*\\circ\s*\}?", ""),
        (r"\\times|\\cdot|×", "*"),
        (r"\\(?:approx|equiv)|≈", "="),
        (r"<<[^<>]*>>", ""),
    )
)
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)"
_FRACTION = rf"\\frac\s*\{{\s*(?P<fn>-?\s*{_DECIMAL})\s*\}}\s*\{{\s*(?P<fd>{_DECIMAL})\s*\}}"
_VALUE = re.compile(
    rf"(?<![\w.,/^\\#])(?P<sign>[-+]?)\s*"
    rf"(?:(?P<whole>{_DECIMAL})?\s*{_FRACTION}"
    rf"|(?:(?P<mixed>\d+)\s+)?(?P<n>{_DECIMAL})\s*/\s*(?P<d>{_DECIMAL})"
    rf"|(?P<number>{_DECIMAL})(?:[eE](?P<e>[-+]?\d{{1,3}})(?![\w.])"
    rf"|\s*\*\s*10\s*\^\s*\{{?\s*(?P<p>-?\d{{1,3}})\s*\}}?)?)"
)
_GOES_ON = re.compile(
    r"\s*(?:[:,.^!]\d|[-+*/^=]\s*[\w\\(.]|[x×]\s*\d|[²³]|[xyzn]\b|\(\s*[-\d]|!|\\(?!\s|$))|\w*\d"
)
_NEXT_VALUE = re.compile(
    r"\s*(?:[A-Za-z]+\s+){0,3}?(?:,|;|\band\b|\bor\b|\bto\b)\s*(?:[A-Za-z]+\s+)?[-+]?\.?\d"
)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)s?\b", re.I)
_BOUND_OR_ROOT = re.compile(
    r"\b(?:not|never|(?:less|fewer|more|greater)\s+than|at\s+(?:least|most))\b|√|\\sqrt", re.I
)


def plain(text: str) -> str:
    """LaTeX, currency, percent signs and typographic signs taken off."""
    for sign, fraction in _VULGAR.items():
        if sign in text:
            text = re.sub(rf"(?<=\d){sign}", f" {fraction}", text).replace(sign, fraction)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `_VALUE`; None for a zero denominator or too many digits."""
    if len(match.group()) > _MAX_DIGITS:
        return None
    part = match.groupdict()
    try:
        if part["fn"] is not None:
            value = _decimal(part["fn"]) / _decimal(part["fd"])
            value += _decimal(part["whole"]) if part["whole"] else 0
        elif part["n"] is not None:
            value = _decimal(part["n"]) / _decimal(part["d"])
            value += int(part["mixed"]) if part["mixed"] else 0
        else:
            value = _decimal(part["number"]) * Fraction(10) ** int(part["e"] or part["p"] or 0)
    except ZeroDivisionError:
        return None
    return -value if part["sign"] == "-" else value


def read_exactly(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None for any other."""
    if len(text) > _MAX_DIGITS:
        return None
    text = plain(text).rstrip(".")
    match = _VALUE.fullmatch(text)
    return None if match is None else _value(match)


def read_number(text: str) -> tuple[Fraction, str] | None:
    """The number that a short statement gives, and the text of it.

    It is the first number, after the last `=`. Words may stand around it. None where there is no
    number, or where it goes on as an expression (`10 - 128*s`), a time of day (`3:00`), a range
    or a list (`5 or 6`): more than one number is no answer.
    """
    text = plain(text[:MAX_ANSWER])
    text = text.rpartition("=")[2] if "=" in text else text
    text = text.replace("{", " ").replace("}", " ") if "\\frac" not in text else text
    match = _VALUE.search(text)
    if match is None or _BOUND_OR_ROOT.search(text[: match.start()]):
        return None
    rest = text[match.end() :]
    if _GOES_ON.match(rest) or _NEXT_VALUE.match(rest):
        return None
    value = _value(match)
    if value is None:
        return None
    scale = _SCALE.match(rest)
    if scale is not None:
        value *= _SCALES[scale.group(1).lower()]
    return value, match.group().strip()


def read_closing(text: str) -> tuple[Fraction, str] | None:
    """The number that an unmarked completion ends on.

    Read in its last sentence only: after an `=`, else the result of the last computation where
    the sentence repeats it (`... = 160 . Fred must deliver 160 roses by 5 pm.`), else the only
    number. None where the completion breaks off or the sentence leaves a choice.
    """
    sentence = closing_sentence(text)
    if sentence is None:
        return None
    if "=" in sentence:
        return read_number(sentence)
    found = [(value, m.group().strip()) for m in _VALUE.finditer(plain(sentence))
             if (value := _value(m)) is not None]  # fmt: skip
    if len(found) == 1:
        return read_number(sentence)
    before = plain(text[-1000:][: -len(sentence)])
    computed = list(re.finditer(rf"=\s*({_DECIMAL})(?![\d.]*\s*[-+*/=x])", before))
    if computed:
        result = _decimal(computed[-1].group(1))
        for value, shown in found:
            if value == result:
                return value, shown
    return None


def _read_gold(gold: str) -> Fraction | None:
    if "####" in gold:
        gold = gold.rpartition("####")[2]
    number = read_number(gold)
    return None if number is None else number[0]


def _grade(completion: str, gold: str, bare: bool, closing: bool) -> Grade:
    truth = _read_gold(gold)
    if truth is None:
        return Verdict.gold_unparseable()
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    text = visible(completion)
    statement = marked_answer(text, _TIERS)
    if statement is not None:
        number = read_number(first_sentence(statement))
    elif bare:
        number = read_number(text) or read_number(text.strip().rpartition("\n")[2])
    else:
        number = read_closing(text) if closing else None
    if number is None:
        return Verdict.unparseable(statement)
    return Verdict.of(number[0] == truth, number[1])


def grade_numeric(completion: str, gold: str, bare: bool = False) -> Grade:
    """Compare the number that a completion ends on with the gold number, exactly.

    Args:
        completion: A solution, or with `bare` a final answer.
        gold: A number, with or without a unit; or a solution that ends in `#### N`.
        bare: Whether the completion is a final answer, not a solution.

    """
    return _grade(completion, gold, bare, closing=True)


def grade_numeric_marked(completion: str, gold: str, bare: bool = False) -> Grade:
    """As `grade_numeric`, but a solution that never announces its answer is unparseable.

    The paper's rule: a completion without "The answer is" is invalid, whatever it computes.
    """
    return _grade(completion, gold, bare, closing=False)
