r"""LaTeX answers brought to one spelling. Text in, text out: no sympy, nothing is evaluated.

`1\,234`, `\dfrac12`, `35.0\%`, `x = 5.` and `15\mbox{ cm}^2` are typography; what they mean is
decided in `topr.grading.mathematics`.
"""

import re

from topr.grading.answers import are_joined, first_sentence, formulas
from topr.grading.numeric import read_number

_COMMANDS = (
    "frac|dfrac|tfrac|cfrac|sqrt|pi|text|mathrm|mathbf|cdot|times|left|right|begin|end|infty|pm|mp"
    "|cup|cap|in|le|leq|ge|geq|neq|circ|sin|cos|tan|log|ln|theta|alpha|beta|binom|overline|boxed"
)
_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "√": r"\sqrt ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup ",
    "∈": r"\in ", "°": r"^\circ", "º": r"^\circ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "“": '"', "”": '"', "’": "'", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
_WRAPPER = r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf|cal)|mbox|operatorname|bold)\*?"
_UNIT = (
    r"mm|cm|dm|km|m|in|ft|yd|mi|mg|kg|gm|g|lbs?|oz|ml|mL|L|s|sec|min|hrs?|mph|kph|rpm|sq|cu"
    r"|[A-Za-z]{4,}|feet|foot|inch|days?|cent|dollars?|units?|ways?"
)
# Words that say more of a number than what it counts.
_NO_UNIT = (
    r"(?![^{}]*\b(?:or|not|more|less|fewer|least|most|than|over|under|except|hundred|thousand"
    r"|million|billion|dozen)s?\b)"
)
_FUNCTIONS = "sqrt|sinh?|cosh?|tanh?|sec|csc|cot|log|ln|exp|arcsin|arccos|arctan"


def _rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_SPELLING = _rules(
    (rf"(?<!\\)\\\\(?=(?:{_COMMANDS})(?![a-zA-Z]))", r"\\"),
    (r"(?<=\d)(?:\{,\}|,?\s*\\[!,;:]\s*)(?=\d{3}(?!\d))", ","),
    (r"(?<!\\)\\(?:[!,;: ]|q?quad|displaystyle|limits)|~", " "),
    (r"\\[mb]?(?:left|right|big[lr]?|Big[lr]?|bigg[lr]?)(?=[^a-zA-Z])\s*\.?", ""),
    (r"\\(?:lbrace|\{)", r"\\{"),
    (r"\\(?:rbrace|\})", r"\\}"),
    (r"\\\$|\$|\\f?box(?:ed)?\s*\{\s*\}", ""),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\[dt]binom", r"\\binom"),
    (r"\\(?:leqslant|leq|le)(?![a-z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq|ge)(?![a-z])|>=", r"\\ge "),
    (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\ne(?:q)?(?![a-z])|!=", r"\\neq "),
    (r"\\(?:colon|ratio)(?![a-z])", ":"),
    (r"\\%|(?<!\\)%|\b(?:percent(?:age)?|pct)\b", ""),
    (r"\*\*", "^"),
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?=\s*[({{\d])", r"\\\1"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
    (r"\\frac\s*(\\[a-z]+)\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\phantom\s*(?:\{[^{}]*\}|[^\s{])", ""),
    (r"^\s*(?:\\approx|\\sim|≈)", ""),
    (rf"{_WRAPPER}\s*\{{\s*,?\s*(?:and|or)\s*\}}", ","),
    (r",?\s+(?:and|or)\s+", ", "),
    (r"(?<=\))\s*or\s*(?=\()", ","),
)
_TAIL = _rules(
    (rf"(?<=[\d)}}a-z])\s*{_WRAPPER}\s*\{{{_NO_UNIT}[^{{}}]*\}}\s*(?:\^\s*\{{?\d\}}?)?$", ""),
    (r"(?<=\d)\s*\{[a-zA-Z ]+\}(?:\^\{?\d\}?)?$", ""),
    (
        rf"(?<=[\d}}])\s*(?:(?<![a-zA-Z])(?:{_UNIT})\b\.?\s*(?:/|per\b)?\s*)+(?:\^\s*\{{?\d\}}?)?$",
        "",
    ),
    (r"(?<=\d)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})$", ""),
    (r"(?<=[\d)}])\s*\\degree$", ""),
    (r"(?<=\S)[.,;]+$", ""),
)
_WRAPPED = re.compile(rf"{_WRAPPER}\s*\{{([^{{}}]*)\}}|\{{\\(?:rm|bf|it)\s+([^{{}}]*)\}}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_TIME = re.compile(r"(\d{1,2})\s*:\s*(\d\d)\s*([ap])\.?\s*m\b\.?", re.I)
_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]?[a-z]{2,}")
_FACTORIAL = re.compile(r"[\w)}]!\s*\**$")  # not the end of a sentence
_THEN = re.compile(r"\b(?:is|are|equals)\s*:?\s*([-\d.].*)", re.S)
_STATED = re.compile(r".*\b(?:is|are|equals|be|was|it's|approximately)\s*:?\s+(?=\S)", re.I | re.S)


def spelled(text: str) -> str:
    """An answer in the one spelling that the rest of grading reads."""
    for sign, command in _SIGNS.items():
        if sign in text:
            text = text.replace(sign, command)
    if re.search(r"\\\\(?:begin|end)\b", text):
        text = text.replace("\\\\", "\\")
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if _TIME.search(unwrapped(text)):
        return words(text)
    for _ in range(3):
        before = text
        for pattern, replacement in _TAIL:
            text = pattern.sub(replacement, text).strip()
        if text == before:
            break
    return text


def unwrapped(text: str) -> str:
    r"""`\text{..}`, `\mathrm{..}` and their like replaced by what they hold."""
    previous = None
    while previous != text:
        previous, text = text, _WRAPPED.sub(lambda m: f" {m.group(1) or m.group(2) or ''} ", text)
    return text


def in_radians(text: str) -> str:
    r"""`90^\circ` as `\frac{90 \pi}{180}`: for angles within an expression."""
    return _DEGREES.sub(r"\\frac{\1\\pi}{180}", text)


def words(text: str) -> str:
    """A text answer without its typography: case, quotes, brackets, full stops, extra spaces."""
    text = _TIME.sub(r"\1:\2\3m", unwrapped(text))
    text = re.sub(r"""["'`*{}$\\]|[.,;!]+$""", "", text).strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return " ".join(text.casefold().split())


def is_words(text: str) -> bool:
    r"""Whether an answer is words: within `\text`, or a bare word of four letters and more."""
    if _TIME.search(unwrapped(text)):
        return True
    if re.fullmatch(rf"\(?{_WRAPPER}\s*\{{[^{{}}]*[a-zA-Z][^{{}}]*\}}\)?", text):
        return not re.search(r"[\d=]", text)
    text = unwrapped(text)
    return (
        re.fullmatch(r"""["'({]*[A-Za-z][A-Za-z .,'"()}\-]*""", text) is not None
        and re.search(r"[A-Za-z]{4,}", text) is not None
    )


def formula_of(statement: str) -> str:
    """The formula in the words of a short statement: `The largest $n$ is $34$.` gives `34`.

    Formulas that are only listed (`$1$ and $2$`) are taken together, else the last one counts.
    Without a formula it is what follows "is", a leading number, or the whole statement.
    """
    spans = formulas(statement)
    if spans:
        last, start, end = spans[-1]
        rest = statement[end:].strip().rstrip(".")
        stated = _THEN.search(rest)
        if stated is not None:
            return formula_of(stated.group(1))
        parts = [last]
        for content, earlier, earlier_end in reversed(spans[:-1]):
            between = statement[earlier_end:start]
            if not between.strip() or not are_joined(between):
                break
            parts.append(content)
            start = earlier
        sign = "-" if re.search(r"(?:^|[\s=])[-−]\s*$", statement[:start]) else ""
        return sign + ", ".join(reversed(parts))
    if _FACTORIAL.search(statement) and not _has_prose(statement):
        return statement.strip(" *")
    statement = first_sentence(statement).strip(" *")
    if _TIME.search(statement) or not _has_prose(statement):
        return statement
    tail = _STATED.sub("", statement, count=1)
    number = read_number(tail)
    if number is not None and _has_prose(tail):
        return number[1]
    return tail


def _has_prose(text: str) -> bool:
    bare = unwrapped(re.sub(rf"{_WRAPPER}\s*\{{[^{{}}]*\}}", "", text))
    return len(_PLAIN_WORD.findall(bare)) >= 2
