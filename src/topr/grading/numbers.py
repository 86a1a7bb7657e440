r"""Numbers as people write them, read as exact rationals. No sympy, no floats, no tolerance.

A number may have a sign, a currency, thousands marks, a unit, a percent sign, LaTeX around it, and
may be written in words. It counts only where nothing next to it changes it
(`topr.grading.modifiers`), except that scales (`2 million`) are multiplied.
"""

import re
from fractions import Fraction
from functools import lru_cache

from topr.grading.asides import numbers_again, without_asides
from topr.grading.markup import with_ascii_signs
from topr.grading.modifiers import BEFORE, changes_after, without_times
from topr.grading.sentences import MAX_ANSWER
from topr.grading.statements import Unread

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
DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)"


def rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return patterns and what each becomes, compiled."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_TYPOGRAPHY = rules(
    (r"\u2044", "/"),
    (r"([A-Za-z])[\u00b2\u00b3](?!\w)", r"\1"),
    (r"×", "*"),
    (r"≈|→", "="),
    (r"[€£¥₹°]", ""),
)
_LATEX = rules(
    (r"\\displaystyle|\\left|\\right|\\[()\[\]]|\\(?=[.;,]\s|$)", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (
        r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|textrm|operatorname|boldsymbol|bm)"
        r"\s*\{([^{}]*)\}",
        r" \1 ",
    ),
    (r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r" \1 "),
    (r"(?<=\d),?\\[!,;]\s*(?=\d{3}(?!\d))", ","),
    (r"\\[!,;: ]", " "),
    (r"\\[%$]|\^\s*\{?\s*\\circ\s*\}?", ""),
    (r"\\times|\\cdot", "*"),
    (r"\\(?:approx|equiv)", "="),
    (r"\\pm", "±"),
)
_REWRITES = rules(
    (r"\*\*(?=[.,]\d)", ""),
    (r"\*\*|__|~", " "),
    (r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ","),
    (r"(?<![\d.,])(\d{1,3}) (?=\d{3}(?: \d{3})*(?![\d,/]|\.\d{4}))", r"\1,"),
    (r"(?<=,\d{3}) (?=\d{3}(?![\d,/]))", ","),
    (r"[$%]|<<[^<>]*>>", ""),
    (r"\b(m|[a-zA-Z]{2,12})\s*\^\s*\{?[23]\}?(?!\w)", r"\1"),
    (r"=>|->", "="),
    (r"\+/-", "±"),
    (rf"(?<![\w*`'\"])([*_`\"'])(-?\s?{DECIMAL}[.,]?)\1(?![\w*`'\"])", r"\2"),
    (rf"(?<![\w)\]}}.])\s*[(\[{{]\s*([-+]?\s?{DECIMAL})\s*[)\]}}](?!\s*[\w(\[{{^])", r" \1"),
    (rf"(?<=-)[(\[{{]\s*({DECIMAL})\s*[)\]}}](?!\s*[\w(\[{{^])", r"\1"),
    (r"\b(?:[Mm]inus|[Nn]egative)\s+(?=\.?\d)", "-"),
)
_FRACTION = rf"\\frac\s*\{{\s*(?P<fn>-?\s*{DECIMAL})\s*\}}\s*\{{\s*(?P<fd>{DECIMAL})\s*\}}"
VALUE = re.compile(
    rf"(?<![\w.,/^\\#])(?P<sign>[-+]?)(?P<gap>\s*)"
    rf"(?:(?P<whole>{DECIMAL})?\s*{_FRACTION}"
    rf"|(?:(?P<mixed>\d+)\s+)?(?P<n>{DECIMAL})\s*/\s*(?P<d>{DECIMAL})"
    rf"|(?P<number>{DECIMAL})(?:[eE](?P<e>[-+]?\d{{1,3}})(?![\w.])"
    rf"|\s*\*\s*10\s*\^\s*\{{?\s*(?P<p>-?\d{{1,3}})\s*\}}?)?)"
)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)s?\b", re.I)
_BELOW_ZERO = re.compile(
    r"\s*(?:degrees?\s*)?(?:[CF]|celsius|fahrenheit)?\s*(?:below|under)\s+zero\b", re.I
)
_LOOSE_DIGITS = re.compile(r"[^\W\d_]\d|[\\^_/]\d")
"""Digits that are not a number by themselves: `5x7`, `H2O`."""
_FORMULA_BEFORE = re.compile(
    r"\\(?!q?quad)[a-zA-Z]|\w[(\[{]\Z|[\u2200-\u22ff\u0370-\u03ff\u00b1\u00d7\u00f7^]"
    r"|[(\[{][^()\[\]{}]*,\s*\Z|(?:\A|\s)[A-Za-z]\s*,\s*\Z"
)
"""Before a number that is a part of a formula: `\\sqrt{5}`, `f(5)`, `(a, 5)`."""
_IN_BRACKETS = re.compile(r"[^()\[\]{}]*[,;|]")
"""The rest of a tuple, an interval or a set."""
_NO_CHAIN = re.compile(r"[<>!≠]\s*\Z|\bor\b|(?:^|[^\w.])\d+[xyznkabtpq]\b[^=]*\Z")
"""Before an `=` that does not say what a number is: `2x = 5`."""
_ASSIGNED = re.compile(r"(?:^|[\s,;(])[A-Za-z]\w*\s*$")
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: value for value, word in enumerate(_UNITS)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
}
_WORD = "|".join((*_WORDS, *_SCALES))
# "One" is a number where a statement begins with it; elsewhere it is "the one".
IN_WORDS = re.compile(
    rf"(?:\A[\s\W]*(?=one\b)|\b(?!one\b))(?:{_WORD})(?:(?:\s+and\s+|[\s-]+)(?:{_WORD}))*\b", re.I
)
_WORD_BEFORE = re.compile(rf"\b(?!one\b)(?:{_WORD})[\s-]*\Z", re.I)


def number_words(text: str) -> str:
    """A text with its number words as digits: `twenty-five` becomes 25."""
    return IN_WORDS.sub(lambda match: str(_from_words(match.group())), text)


def _from_words(text: str) -> int:
    total = part = 0
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _WORDS:
            part += _WORDS[word]
        elif word == "hundred":
            part = max(1, part) * 100
        elif word in _SCALES:
            total, part = total + max(1, part) * _SCALES[word], 0
    return total + part


def plain(text: str) -> str:
    """LaTeX, currency, percent signs, quotes and typographic signs taken off."""
    if text.isascii():
        applied = _REWRITES
    else:
        text = with_ascii_signs(text)
        for sign, fraction in _VULGAR.items():
            if sign in text:
                text = re.sub(rf"(?<=\d){sign}", f" {fraction}", text).replace(sign, fraction)
        applied = _TYPOGRAPHY + _REWRITES
    for pattern, replacement in _LATEX + applied if "\\" in text else applied:
        text = pattern.sub(replacement, text)
    return text.strip()


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "").replace(" ", "")
    return Fraction(text) if "." in text else Fraction(int(text))


def value_of(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `VALUE`; None for a zero denominator or too many digits."""
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
            value = _decimal(part["number"])
            if (exponent := part["e"] or part["p"]) is not None:
                value *= Fraction(10) ** int(exponent)
    except ZeroDivisionError:
        return None
    return -value if part["sign"] == "-" else value


@lru_cache(maxsize=4096)
def read_exactly(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else; None for any other."""
    if len(text) > _MAX_DIGITS:
        return None
    text = plain(text).rstrip(".")
    match = VALUE.fullmatch(text)
    return None if match is None else value_of(match)


@lru_cache(maxsize=4096)
def read_number(text: str) -> tuple[Fraction, str] | Unread:
    """The number that a short statement gives, and the text of it.

    It is the first number, after the last `=`. Words may stand around it, and times (`by 5 pm`);
    any other number must be equal to it (`0.5, that is 1/2`), or denied (`33, not 36`). REMARK
    where there is no number at all.
    """
    text = without_asides(text[:MAX_ANSWER].strip(" *_\t\n"))
    parts = numbers_again(text)
    if len(parts) > 1 and any(character.isdigit() for character in text):
        said = [_read_once(part) for part in parts]
        values = {one if isinstance(one, Unread) else one[0] for one in said}
        if len(values) == 1:
            return said[0]
        if Unread.REMARK not in values:
            return Unread.UNCLEAR
    return _read_once(text)


def _read_once(text: str) -> tuple[Fraction, str] | Unread:
    """The number of a statement that says it once, or repeats it as it is."""
    text = without_times(plain(text))
    if not any(character.isdigit() for character in text):
        text = plain(number_words(text))
        if not any(character.isdigit() for character in text):
            return Unread.REMARK
    before, member = _last_member(text)
    if member is None:
        return Unread.UNCLEAR
    text = member
    numbers = list(VALUE.finditer(text))
    value = value_of(numbers[0]) if numbers else None
    members = [read_exactly(side) for side in before.split("=")]
    if any(member not in (None, value) for member in members):
        return Unread.UNCLEAR  # 5 = 7
    if value is None or _stands_after_change(
        text[: numbers[0].start()], before, numbers[0], text[numbers[0].end() :]
    ):
        return Unread.UNCLEAR
    shown, rest = numbers[0].group().strip(), text[numbers[0].end() :]
    scale = _SCALE.match(rest)
    if scale is not None:
        value, rest = value * _SCALES[scale.group(1).lower()], rest[scale.end() :]
    below = _BELOW_ZERO.match(rest)
    if below is not None:
        value, rest = -value, rest[below.end() :]
    if any(value_of(other) != value for other in numbers[1:]) or _LOOSE_DIGITS.search(rest):
        return Unread.UNCLEAR
    if len(numbers) > 1:
        rest = rest[: max(0, numbers[1].start() - numbers[0].end())]
    return Unread.UNCLEAR if changes_after(rest) else (value, shown)


def _last_member(text: str) -> tuple[str, str | None]:
    """What stands before the last `=`, and behind it; None for two equations (`x = 5, y = 7`)."""
    if "=" not in text:
        return "", text
    *earlier, last = text.split("=")
    names = {side.strip().split()[-1] for side in earlier if _ASSIGNED.search(side)}
    before = "=".join(earlier)
    conditional = _ASSIGNED.search(earlier[-1]) and re.search(r"\d", earlier[-1])  # 5 for n = 7
    if len(names) > 1 or conditional or _NO_CHAIN.search(before) is not None:
        return before, None
    return before, last


def _stands_after_change(before: str, equation: str, match: re.Match[str], rest: str) -> bool:
    """Whether what stands before a number changes it."""
    if (
        BEFORE.search(before) is not None
        or _WORD_BEFORE.search(before) is not None
        or re.search(r"\bnot\b", equation) is not None
    ):
        return True
    before = before.rstrip()
    if not before:
        return False
    if (match["sign"] and match["gap"]) or _FORMULA_BEFORE.search(before) is not None:
        return True  # a subtraction (`x - 5`), a command (`\\sqrt{5}`), a function (`f(5)`)
    if before[-1] in "([{" and _IN_BRACKETS.match(rest) is not None:
        return True
    last = before.rstrip(" ([{")[-1:] or "="
    return not (last.isalnum() or last in "=:：,.;!?([{)]}\"'`*_“‘«’”»")
