r"""LaTeX answers brought to one spelling. Text in, text out: no sympy, nothing is evaluated.

`1\,234`, `\dfrac12`, `35.0\%`, `x = 5.` and `15\mbox{ cm}^2` are typography; what they mean is
decided in `topr.grading.mathematics`.
"""

import re

from topr.grading.markup import with_ascii_signs
from topr.grading.numbers import IN_WORDS, number_words, rules

_COMMANDS = (
    "frac|dfrac|tfrac|cfrac|sqrt|pi|text|mathrm|mathbf|cdot|times|left|right|begin|end|infty|pm|mp"
    "|cup|cap|in|le|leq|ge|geq|neq|circ|sin|cos|tan|log|ln|theta|alpha|beta|binom|overline|boxed"
)
_SIGNS = {
    "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "√": r"\sqrt ",
    "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "⁄": "/", "⋅": r"\cdot ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "±": r"\pm ", "∪": r"\cup ",
    "∈": r"\in ", "°": r"^\circ", "º": r"^\circ", "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "“": '"', "”": '"', "’": "'", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
}  # fmt: skip
WRAPPER = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|cal|normal)|mbox|hbox|operatorname"
    r"|bold|boldsymbol|bm|pmb|symbf|symbfit|emph|textup|textsc)\*?"
)
_BOLD = "mathbf|boldsymbol|bm|pmb|symbf|symbfit|bold|mathit|mathnormal|mathsf|mathtt"
_UNIT = (
    r"mm|cm|dm|km|m|in|ft|yd|mi|mg|kg|gm|g|lbs?|oz|ml|mL|L|s|sec|min|hrs?|mph|kph|rpm|sq|cu"
    r"|[A-Za-z]{4,}|feet|foot|inch|days?|cent|dollars?|units?|ways?"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ROWS = re.compile(
    r"\\begin\{(aligned|align\*?|gathered|gather\*?|split|equation\*?|array)\}(?:\{[clr|]*\})?"
    r"(.*)\\end\{\1\}",
    re.S,
)
_FUNCTIONS = "sqrt|sinh?|cosh?|tanh?|sec|csc|cot|log|ln|exp|arcsin|arccos|arctan"


_SPELLING = rules(
    (rf"(?<!\\)\\\\(?=(?:{_COMMANDS})(?![a-zA-Z]))", r"\\"),
    (r"(?<=\d)(?:\{,\}|,?\s*\\[!,;:]\s*)(?=\d{3}(?!\d))", ","),
    (r"(?<!\\)\\(?:[!,;: ]|q?quad|displaystyle|limits)|~", " "),
    (r"\\[mb]?(?:left|right|big[lr]?|Big[lr]?|bigg[lr]?)(?=[^a-zA-Z])\s*\.?", ""),
    (r"\\langle(?![a-z])", "("),
    (r"\\rangle(?![a-z])", ")"),
    (r"\\(?:lbrace|\{)", r"\\{"),
    (r"\\(?:rbrace|\})", r"\\}"),
    (r"\\\$|\$|\\f?box(?:ed)?\s*\{\s*\}", ""),
    (rf"\\(?:{_BOLD})\s*\{{([^{{}}]*)\}}|\{{\\(?:bf|rm|it)\s+([^{{}}]*)\}}", r" \1\2 "),
    (r"\\(?:mathrm|text|textrm|operatorname)\s*\{([a-zA-Z])\}(?<![mgshLlNJWVKCFA]\})", r" \1 "),
    (
        rf"^\s*(?:{WRAPPER}\s*\{{\s*)?(?:minus|negative)\b\s*\}}?\s*(?=[\d\\(.]|[a-z]\b"
        rf"|infinity|{IN_WORDS.pattern})",
        "-",
    ),
    (r"(?<![\\a-zA-Z])infinity\b", r"\\infty "),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\[dt]binom", r"\\binom"),
    (r"\\(?:leqslant|leq|le)(?![a-z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq|ge)(?![a-z])|>=", r"\\ge "),
    (r"\+/-", r"\\pm "),
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
    (r"\\sqrt(\[\d\])?\s*(\d+(?:\.\d+)?|[a-zA-Z])", r"\\sqrt\1{\2}"),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\\[a-z]+)\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\phantom\s*(?:\{[^{}]*\}|[^\s{])", ""),
    (r"^\s*(?:\\approx|\\sim|≈)", ""),
    (rf"{WRAPPER}\s*\{{\s*,?\s*(?:and|or)\s*\}}", ","),
    (r",?\s+(?:and|or)\s+", ", "),
    (r"(?<=\))\s*or\s*(?=\()", ","),
)
_SYMBOLS = "[kcdm]?m|k?g|m?s|m?L|[kM]?[NJWVAK]|k?Pa|[kM]?Hz|mol|rad|h|min|lbs?|ft|in|yd|mi"
_TAIL = rules(
    (rf"(?<=[\d)}}])\s*\\frac\s*(?:\{{\s*{WRAPPER}\s*\{{[a-zA-Z ]+\}}\s*\}}\s*){{2}}$", ""),
    (
        rf"(?<=[\d)}}])\s*\\(?:mathrm|text)\s*\{{\s*(?:(?:{_SYMBOLS})(?:\s*\^\s*\{{?-?\d\}}?)?"
        r"(?:\s|/|\\cdot|\.)*)+\}$",
        "",
    ),
    (
        rf"(?<=[\d)}}a-z])\s*{WRAPPER}\s*\{{(?![^{{}}]*\b(?:and|or)\b)[^{{}}\d]*\}}\s*(?:\^\s*\{{?\d\}}?)?$",
        "",
    ),
    (r"(?<=\d)\s*\{(?:[mgshLl]|[a-zA-Z]{2}[a-zA-Z ]*)\}(?:\^\{?\d\}?)?$", ""),
    (
        rf"(?<=[\d}}])\s*(?:(?<![a-zA-Z])(?:{_UNIT})\b\.?\s*(?:/|per\b)?\s*)+(?:\^\s*\{{?\d\}}?)?$",
        "",
    ),
    (r"(?<=\d)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})$", ""),
    (r"(?<=[\d)}])\s*\\degree$", ""),
    (r"(?<=\S)[.,;]+$", ""),
)
_WRAPPED = re.compile(rf"{WRAPPER}\s*\{{([^{{}}]*)\}}|\{{\\(?:rm|bf|it)\s+([^{{}}]*)\}}")
_CHOICE = re.compile(
    r"\s*(?:(?:[Oo]ption|[Cc]hoice)\s+(?:\(?\s*([A-J])\s*\)?(?![A-Za-z]))"
    r"|\(\s*([A-J])\s*\)|([A-J])\s*[:.)](?!\d))[\s:.)~]*(.*)",
    re.S,
)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_TIME = re.compile(r"(\d{1,2})\s*:\s*(\d\d)\s*([ap])\.?\s*m\b\.?", re.I)


def normalize_latex(text: str) -> str:
    """An answer in the one spelling that the rest of grading reads."""
    if _PLAIN_NUMBER.fullmatch(text) is not None:
        return text
    if not text.isascii():
        text = with_ascii_signs(text)
        text = _RAISED.sub(lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text)
        for sign, command in _SIGNS.items():
            text = text.replace(sign, command)
    if re.search(r"\\\\(?:begin|end)\b", text):
        text = text.replace("\\\\", "\\")
    rows = _ROWS.fullmatch(text.strip())
    if rows is not None:
        text = _in_one_row(rows)
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if "A" <= text.lstrip("\\({ btexfmarhlup\n")[:1] <= "J" and split_choice(text) is not None:
        return text
    if _TIME.search(unwrapped(text)):
        return words(text)
    for _ in range(3):
        before = text
        for pattern, replacement in _TAIL:
            text = pattern.sub(replacement, text).strip()
        if text == before:
            break
    bare = unwrapped(text).strip()
    return number_words(bare) if IN_WORDS.fullmatch(bare.lstrip("- ")) else text


def _in_one_row(rows: re.Match[str]) -> str:
    """The content of an environment of one row, or of a chain of equals written in several."""
    parts = [
        row.replace("&", "").strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", rows.group(2))
    ]
    parts = [part for part in parts if part]
    if rows.group(1) == "array" and ("&" in rows.group(2) or len(parts) > 1):
        return rows.group()
    chained = all(part.startswith(("=", r"\approx", r"\equiv")) for part in parts[1:])
    return " ".join(parts) if chained else rows.group()


def is_time(text: str) -> bool:
    """Whether a text is a time of day: `4:30 p.m.`."""
    return _TIME.search(text) is not None


def unwrapped(text: str) -> str:
    r"""`\text{..}`, `\mathrm{..}` and their like replaced by what they hold."""
    previous = None
    while previous != text:
        previous, text = text, _WRAPPED.sub(lambda m: f" {m.group(1) or m.group(2) or ''} ", text)
    return text


def split_choice(text: str) -> tuple[str, str] | None:
    """The letter of a multiple choice, and what stands behind it: `(D) 119`, `option D`."""
    match = _CHOICE.fullmatch(unwrapped(text).replace("\\ ", " "))
    if match is None:
        return None
    *letters, value = match.groups()
    value = "" if not value.strip(" .{}") else value.strip(" .")
    if value.startswith((",", "=", "+", "-", "*", "/", "^", "\\cup", "\\cap", "(", "[")):
        return None
    return next(letter for letter in letters if letter), value


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
    if re.fullmatch(rf"\(?{WRAPPER}\s*\{{[^{{}}\\]*[a-zA-Z][^{{}}\\]*\}}\)?", text):
        return not re.search(r"[\d=]", text)
    text = unwrapped(text)
    return (
        re.fullmatch(r"""["'({]*[A-Za-z][A-Za-z .,'"()}\-]*""", text) is not None
        and re.search(r"[A-Za-z]{4,}", text) is not None
    )
