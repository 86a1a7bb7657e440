r"""The formula in the words of a statement: `The largest $n$ is $34$.` gives `34`.

Text in, text out: what the formula means is decided in `topr.grading.equivalence`. It counts only
where nothing next to it changes it (`topr.grading.modifiers`), neither around it nor within it.
"""

import re
from fractions import Fraction

from topr.grading.asides import said_again, without_asides
from topr.grading.latex import WRAPPER, is_time, split_choice, unwrapped
from topr.grading.markers import Kind
from topr.grading.modifiers import BEFORE, LATEX, changes_after, without_times
from topr.grading.numbers import plain, read_exactly, read_number
from topr.grading.sentences import HOPE, JOINED, MAX_ANSWER, SPAN, closing_sentence
from topr.grading.statements import Statement, Unread, stated_sentence

_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]?[a-z]{2,}")
_IN_TEXT = re.compile(rf"{WRAPPER}\s*\{{[^{{}}]*\}}")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_FACTORIAL = re.compile(r"[\w)}]!\s*\**$")  # not the end of a sentence
_VERB = re.compile(r"\b(?:is|are|equals|be|was|were|it's|approximately)\b\s*:?", re.I)
_SIGN = re.compile(r"(?:(?:^|[\s=(])[-\u2212\u2013]|\b(?:minus|negative))\s*$", re.I)
_CONCLUSION = re.compile(r"(?:therefore|thus|hence|so)\b", re.I)
_NEGATED = re.compile(rf"^\s*(?:{WRAPPER}\s*\{{\s*)?(?:minus|negative)\b")
_UNCLEAR = re.compile(
    r"\?|\d\s*(?:\.\.|\u2026)|\d\s*\|\s*-?\d(?![^|]*\|)|@|\d['\u2019]\s*\d|\d\.\d+\.\d|#\s*\d|&"
    r"|\(\s*-?[\d.]+\s*\)\s+\(\s*-?[\d.]+\s*\)|\d\s+of\s+\d"
)


def formulas(text: str) -> list[tuple[str, int, int]]:
    """Formulas set off by dollars or brackets: content, start and end of each."""
    return [
        (next(g for g in m.groups() if g is not None).strip(), m.start(), m.end())
        for m in SPAN.finditer(text)
    ]


def formula_of(statement: Statement) -> str | Unread:
    """The formula, number or words of a statement."""
    text = statement.text
    if statement.kind is Kind.BOX:
        return clear_formula(text) if text else Unread.REMARK
    if statement.kind in (Kind.SENTENCE, Kind.LABEL):
        if not formulas(text) and not _has_prose(text) and _FACTORIAL.search(text):
            return text.strip(" *")
        sentence = stated_sentence(statement)
        if isinstance(sentence, Unread):
            return sentence
        text = sentence
    text = without_asides(text).strip(" *`_")
    parts = said_again(text)
    if len(parts) > 1:
        said = [formula_of(_whole(part)) for part in parts]
        unclear = any(isinstance(formula, Unread) for formula in said)
        return Unread.UNCLEAR if unclear else " = ".join(map(str, said))
    if not text:
        return Unread.REMARK
    spans = formulas(text)
    if spans:
        return _in_words(text, spans)
    if is_time(text) or not _has_prose(text):
        return clear_formula(text)
    return _number_in_words(text)


def _has_prose(text: str) -> bool:
    return len(_PLAIN_WORD.findall(unwrapped(_IN_TEXT.sub("", text)))) >= 2


def _number_in_words(text: str) -> str | Unread:
    """The number of a sentence without formulas; the words behind its verb where it has none."""
    *_, verb = [None, *_VERB.finditer(text)]
    if verb is not None and not re.search(r"\d", text[: verb.start()]):
        text = text[verb.end() :].strip()
    number = read_number(text)
    return (
        _written(number)
        if not isinstance(number, Unread)
        else text
        if number is Unread.REMARK
        else number
    )


def _written(number: tuple[Fraction, str]) -> str:
    value, shown = number
    return shown if read_exactly(shown) == value else str(value)


def _in_words(text: str, spans: list[tuple[str, int, int]]) -> str | Unread:
    """The formula of a sentence: its first where nothing stands before it, else its last.

    Formulas that are only listed (`$1$ and $2$`) are taken together.
    """
    first = 0 if not text[: spans[0][1]].strip(" -*(\u2212\u2013") else len(spans) - 1
    last = first
    if first == 0:
        while last + 1 < len(spans) and _are_joined(text[spans[last][2] : spans[last + 1][1]]):
            last += 1
    else:
        while first > 0 and _are_joined(text[spans[first - 1][2] : spans[first][1]]):
            first -= 1
    before, after = text[: spans[first][1]], text[spans[last][2] :]
    follows = re.search(r"\b(?:is|are|equals)\s*:?\s*(?=[-\d.])", after)
    if follows is not None and not any(re.search(r"\d", s[0]) for s in spans):
        return formula_of(_whole(after[follows.end() :]))
    *_, verb = [None, *_VERB.finditer(before)]
    before = before if verb is None else before[verb.end() :]
    sign = ""
    if (negated := _SIGN.search(before)) is not None:
        sign, before = "-", before[: negated.start()]
    if BEFORE.search(SPAN.sub(" ", before)) is not None:
        return Unread.UNCLEAR
    if last + 1 < len(spans) and any(re.search(r"\d", s[0]) for s in spans[last + 1 :]):
        return Unread.UNCLEAR
    rest = without_times(SPAN.sub(" ", after))
    if re.match(r"[A-Za-z]\b", rest) or changes_after(f" {plain(rest)}") or re.search(r"\d", rest):
        return Unread.UNCLEAR
    formula = clear_formula(", ".join(content for content, _, _ in spans[first : last + 1]))
    return formula if isinstance(formula, Unread) else sign + formula


def _are_joined(between: str) -> bool:
    return not between.strip() or JOINED.fullmatch(between) is not None


def clear_formula(text: str) -> str | Unread:
    """A formula as it stands; UNCLEAR where words or signs within it change what it says."""
    if "\\begin" in text:
        return text
    choice = split_choice(text)
    if choice is not None:
        value = clear_formula(choice[1])
        return value if isinstance(value, Unread) else text
    if "=" not in text or _WORD.search(text):
        number = read_number(text)
        if not isinstance(number, Unread):
            return _written(number)
        if number is Unread.REMARK:
            return text
    bare = _COMMAND.sub(" ", _NEGATED.sub("", text, count=1))
    if LATEX.search(bare) is not None or _UNCLEAR.search(bare) is not None:
        return Unread.UNCLEAR
    return text


def _whole(text: str) -> Statement:
    return Statement(kind=Kind.WHOLE, text=text, start=0, end=len(text))


def whole(text: str) -> Statement:
    """A completion that is an answer and nothing else, as a statement."""
    text = HOPE.sub("", text).strip()[-MAX_ANSWER:]
    lines = text.split("\n")
    if all(read_exactly(line) is not None for line in lines):
        text = ", ".join(lines)
    elif not formulas(text):
        text = lines[-1]
    closing = closing_sentence(text) if "\n" not in text else None
    return _whole(closing if closing and re.search(r"\d", closing) else text)


def conclusion(text: str) -> Statement | None:
    """The last sentence of an unmarked completion, if it draws a conclusion with a formula.

    `Therefore, the distance is $15.975$ inches.` announces an answer; a last line that merely
    computes does not.
    """
    sentence = closing_sentence(text)
    if sentence is None or _CONCLUSION.match(sentence) is None or not formulas(sentence):
        return None
    rest = sentence[formulas(sentence)[-1][2] :]
    return None if re.search(r"\d|(?:[A-Za-z]+\W+){3}", rest) else _whole(sentence)
