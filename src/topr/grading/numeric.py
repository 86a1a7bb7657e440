"""The grader of numbers: which number a completion states, and whether it is the gold one.

How a number is read is `topr.grading.numbers`'s business, where an answer is stated that of
`topr.grading.statements`.
"""

import re
from fractions import Fraction
from functools import lru_cache

from topr.grading.markers import Kind
from topr.grading.markup import visible_text, without_markup
from topr.grading.modifiers import changes_after
from topr.grading.numbers import DECIMAL, VALUE, plain, read_exactly, read_number, value_of
from topr.grading.sentences import MAX_COMPLETION, closing_sentence
from topr.grading.statements import (
    Statement,
    Unread,
    closing_bold,
    extract_answer,
    is_changed,
    stated_sentence,
)
from topr.grading.verdict import Verdict, says_nothing
from topr.records import Grade


def read_closing(text: str) -> tuple[Fraction, str] | None:
    """The number that an unmarked completion ends on.

    Read in its last sentence only: after an `=`, else the result of the last computation where
    the sentence repeats it (`... = 160 . Fred must deliver 160 roses by 5 pm.`), else the only
    number. None where the completion breaks off or the sentence leaves a choice.
    """
    sentence = closing_sentence(text)
    if sentence is None:
        return None
    only = read_number(sentence)
    if not isinstance(only, Unread):
        return only
    if only is Unread.REMARK or "=" in sentence:
        return None
    said = plain(sentence)
    before = plain(text[-1000:][: -len(sentence)])
    computed = list(re.finditer(rf"=\s*({DECIMAL})(?![\d.]*\s*[-+*/=x])", before))
    if computed:
        result = read_exactly(computed[-1].group(1))
        for match in VALUE.finditer(said):
            value = value_of(match)
            if value is not None and value == result and not changes_after(said[match.end() :]):
                return value, match.group().strip()
    return None


def _read(statement: Statement) -> tuple[Fraction, str] | Unread:
    """The number of a statement."""
    if statement.kind in (Kind.BOX, Kind.TAG, Kind.HASHES):
        number = read_number(statement.text)
        if number is Unread.REMARK and statement.text:
            return Unread.UNCLEAR  # "no solution" is an answer, and no number
        return number
    sentence = stated_sentence(statement)
    return sentence if isinstance(sentence, Unread) else read_number(sentence)


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Fraction | None:
    if says_nothing(gold):
        return None
    gold = without_markup(gold)
    stated = extract_answer(gold, _read)
    number = read_number(gold) if stated is None else stated[0]
    return None if isinstance(number, Unread) else number[0]


def _read_unmarked(text: str) -> tuple[Fraction, str] | Unread | None:
    """The number of a completion that announces none: its last sentence's, or the bold one."""
    number = read_closing(text)
    bold = closing_bold(text) if number is None else None
    if bold is None:
        return number
    return Unread.UNCLEAR if is_changed(text, bold) else read_number(bold.text)


def _read_whole(text: str) -> tuple[Fraction, str] | Unread:
    """The number of a completion that is an answer and nothing else."""
    number = read_number(text)
    if not isinstance(number, Unread) or "\n" not in text.strip():
        return number
    before, _, last = text.strip().rpartition("\n")
    several = all(read_exactly(line) is not None for line in before.split())
    return Unread.UNCLEAR if several else read_number(last)


def _grade(completion: str, gold: str, answer_only: bool, closing: bool) -> Grade:
    truth = _read_gold(gold)
    if truth is None:
        return Verdict.gold_unparseable()
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    text = visible_text(completion)
    stated = extract_answer(text, _read)
    shown = None
    number: tuple[Fraction, str] | Unread | None
    if stated is not None:
        number, shown = stated[0], stated[1].text
    elif answer_only:
        number = _read_whole(text)
    else:
        number = _read_unmarked(text) if closing else None
    if number is None or isinstance(number, Unread):
        return Verdict.unparseable(shown)
    return Verdict.of(number[0] == truth, number[1])


def grade_numeric(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """Compare the number that a completion ends on with the gold number, exactly.

    Args:
        completion: A solution, or with `answer_only` a final answer.
        gold: A number, with or without a unit; or a solution that ends in `#### N`.
        answer_only: Whether the completion is a final answer, not a solution.

    """
    return _grade(completion, gold, answer_only, closing=True)


def grade_numeric_marked(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """As `grade_numeric`, but a solution that never announces its answer is unparseable.

    The paper's rule: a completion without "The answer is" is invalid, whatever it computes.
    """
    return _grade(completion, gold, answer_only, closing=False)
