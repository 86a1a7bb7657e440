r"""A text without its inline markup: what a reader of the finished page sees. Text in, text out.

Signs, digits and spaces of Unicode become those of ASCII, struck-out text is gone, and emphasis in
HTML, BBCode or wiki text is written as in Markdown. What the text states is not this module's
business. Every search is linear: a completion is hostile text.
"""

import html
import json
import re

from topr.grading.reasoning import strip_reasoning

_SIGNS = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-"),
    **dict.fromkeys(
        map(ord, "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"), " "
    ),
    **dict.fromkeys(map(ord, "\u200a\u202f\u205f\u3000"), " "),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"), None),
    **{wide: chr(wide - 0xFEE0) for wide in range(0xFF02, 0xFF5E)},
    **{0x1D7CE + i: str(i % 10) for i in range(50)},  # bold and other digits of mathematics
}
_ATTRIBUTES = (
    r"(?:\s{1,4}[\w-]{1,30}\s?=\s?(?:\"[^\"<>]{0,200}\"|'[^'<>]{0,200}'|[^\s\"'<>]{1,100})){0,6}\s?"
)
_HTML = (
    (rf"<(?:br|hr){_ATTRIBUTES}/?>|</?(?:p|div|h[1-6]|li|ul|ol|tr|table|center|section|article)"
     rf"{_ATTRIBUTES}>", "\n"),
    (rf"</?(?:b|strong|u|ins|mark){_ATTRIBUTES}>", "**"),
    (rf"</?(?:i|em|span|font|big|small|td|code|tt|samp|a|label|body|html){_ATTRIBUTES}>", ""),
    (r"<(s|del|strike)>[^<>]*</\1>", ""),
)  # fmt: skip
_BBCODE = (
    (r"\[/?(?:b|u)\]", "**"),
    (r"\[/?(?:i|color|size|center|code|font)(?:=[^\[\]\n]{1,30})?\]", ""),
    (r"\[s\][^\[\]]*\[/s\]", ""),
)
_UNDERLINED = r"\\u(?:nder)?line\s?\{\s?(?:\\u(?:nder)?line\s?\{([^{}]*)\}|([^{}]*))\s?\}"
_RULES = tuple(
    (hint, tuple((re.compile(pattern, re.I), replacement) for pattern, replacement in rules))
    for hint, rules in (
        (("</", "<br", "<BR"), _HTML),
        (("[/",), _BBCODE),
        (("~~",), ((r"(?<![\w$\\}~])~~(?=[^\s~])[^~]+(?<=\S)~~(?![\w~])", ""),)),
        (("'''",), ((r"(?<![\w'])'''([^'\n]+)'''(?![\w'])", r"**\1**"),)),
        (("==",), ((r"(?<![=\w!<>])==+[ \t]?(?=[^\s=])([^=\n]+?)[ \t]?==+(?![=\w])", r"**\1**"),)),
        (
            ("\\underline", "\\uline", "\\sout"),
            (
                (r"\\sout\s?\{[^{}]*\}", ""),
                (rf"\$\s?{_UNDERLINED}\s?\$", r"**$\1\2$**"),
                (rf"(?<!\S){_UNDERLINED}(?![^\s.,!])", r"**\1\2**"),
                (_UNDERLINED, r"\1\2"),
            ),
        ),
        (("\\color", "\\textcolor"), ((r"\\(?:text)?color(?:box)?\s?\{[a-zA-Z]{1,20}\}", ""),)),
        (
            ("\\large", "\\Large", "\\LARGE", "\\huge", "\\Huge", "\\bf "),
            ((r"\\(?:[lL]arge|LARGE|[hH]uge|bf)(?![a-zA-Z])\s?", ""),),
        ),
        (("****",), ((r"\*{4,}", "**"),)),
    )
)  # fmt: skip
_JSON_ANSWER = re.compile(
    r'"(?:final[_ -]?)?answer"\s{0,9}:\s{0,9}("(?:[^"\\\n]|\\.){0,2000}"|-?[\d.]{1,100}(?![\w.]))'
    r"(?:\s{0,9}\}|[ \t]{0,9}(?=[,\n]|\Z))",
    re.I,
)


def with_ascii_signs(text: str) -> str:
    """Minus signs, digits and spaces in their plain spelling; superscripts stay what they are."""
    return text if text.isascii() else text.translate(_SIGNS)


def without_markup(text: str) -> str:
    """What a text says, in plain words and Markdown.

    >>> without_markup('<b>Answer:</b> ~~61~~ <span style="color: red">62</span>')
    '**Answer:**  62'
    """
    text = with_ascii_signs(text)
    if "&" in text and "&" in text.replace("\\&", ""):
        text = re.sub(r"&(?:nbsp|lt|gt|amp|minus|times|quot|thinsp);", _entity, text)
    for hints, rules in _RULES:
        if any(hint in text for hint in hints):
            for pattern, replacement in rules:
                text = pattern.sub(replacement, text)
    return _JSON_ANSWER.sub(_as_label, text) if 'nswer"' in text else text


def visible_text(completion: str) -> str:
    """What a completion says to its reader: no thinking, no control tokens, no markup."""
    return without_markup(strip_reasoning(completion))


def _entity(match: re.Match[str]) -> str:
    return with_ascii_signs(html.unescape(match.group()))


def _as_label(match: re.Match[str]) -> str:
    try:
        value = json.loads(match.group(1))
    except ValueError:  # a backslash of LaTeX that was not doubled
        value = match.group(1).strip('"')
    return f"\nAnswer: {value}\n"
