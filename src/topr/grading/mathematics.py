r"""The grader of mathematics: which formula a completion states, and whether it is the gold one.

How a formula is found in words is `topr.grading.formulas`'s business, what it means that of
`topr.grading.equivalence`, where an answer is stated that of `topr.grading.statements`.
"""

import re
from functools import lru_cache

from topr.grading.equivalence import MISREAD, equivalent, is_readable
from topr.grading.forms import Choice, Leaf, Node, Words, read
from topr.grading.formulas import conclusion, formula_of, whole
from topr.grading.latex import normalize_latex, unwrapped
from topr.grading.markers import Kind
from topr.grading.markup import visible_text, without_markup
from topr.grading.numbers import read_exactly
from topr.grading.sentences import MAX_COMPLETION, is_absurd
from topr.grading.statements import Statement, Unread, closing_bold, extract_answer, is_changed
from topr.grading.verdict import Verdict, says_nothing
from topr.records import Grade

_ONE = r"[\s\"'`]{0,4}-?[\d.]{1,40}[\s\"'`]{0,4}"
_EITHER = re.compile(rf"{_ONE},?\s?or\b{_ONE}", re.I)
"""A gold answer of two numbers, one of which would do: which one is not said."""
_NO_VALUE = re.compile(
    r"\s*(?:none|undefined|unknown|infinit\w*|impossible|indeterminate|nothing|no\s+\w+|not\s+\w+"
    r"|cannot|can't|does\s+not|doesn't)\b",
    re.I,
)
"""Words that are an answer where a formula is expected: no number, whatever was said before."""


def read_answer(completion: str, answer_only: bool, words_count: bool) -> str | Unread | None:
    """The answer of a completion as it stands there; None where it gives none.

    Args:
        completion: A solution, or with `answer_only` a final answer.
        answer_only: Whether it is a final answer.
        words_count: Whether words alone may be the answer; else they are a remark.

    """

    def read_statement(statement: Statement) -> str | Unread:
        formula = formula_of(statement)
        if isinstance(formula, Unread) or words_count:
            return formula
        loose = statement.kind in (Kind.SENTENCE, Kind.LABEL)
        return Unread.REMARK if loose and _is_remark_of_words(formula) else formula

    text = visible_text(completion)
    stated = extract_answer(text, read_statement)
    if stated is not None:
        return stated[0]
    for statement in (closing_bold(text), whole(text) if answer_only else conclusion(text)):
        formula = Unread.REMARK if statement is None else formula_of(statement)
        if statement is not None and formula is not Unread.REMARK:
            return Unread.UNCLEAR if is_changed(text, statement) else formula
    return None


def _is_remark_of_words(formula: str) -> bool:
    """Whether words where a formula is expected say nothing; "undefined" and "none" do."""
    if re.search(r"[\d\\]", formula) is not None or _NO_VALUE.match(formula) is not None:
        return False
    return re.search(r"[a-z]{3}|^[\s.,;:!]*(?:[Yy]es|[Nn]o)?[\s.,;:!]*$", formula) is not None


def _is_in_words(node: Node) -> bool:
    letter = isinstance(node, Leaf) and re.fullmatch(r"[A-Za-z]", node.latex) is not None
    return letter or isinstance(node, Words | Choice)


@lru_cache(maxsize=1024)
def read_gold(gold: str) -> str | None:
    """A gold answer in one spelling; None where it says nothing or is unclear."""
    if says_nothing(gold) or _EITHER.fullmatch(gold) is not None:
        return None
    gold = without_markup(gold)
    stated = extract_answer(gold, formula_of)
    formula = formula_of(whole(" ".join(gold.split()))) if stated is None else stated[0]
    if isinstance(formula, Unread):
        return None
    truth = normalize_latex(formula)
    several = MISREAD.search(truth) is not None and read_exactly(truth) is None
    return None if not truth or several or is_absurd(truth) else truth


def grade_math(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """Compare the answer of a completion with the gold answer as mathematics.

    Args:
        completion: A solution, or with `answer_only` a final answer.
        gold: The gold answer as LaTeX, with or without `$`; or a text whose box holds it.
        answer_only: Whether the completion is a final answer, not a solution.

    """
    truth = read_gold(gold)
    if truth is None:
        return Verdict.gold_unparseable()
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    target = read(truth)
    answer = read_answer(completion, answer_only, words_count=_is_in_words(target))
    if answer is None or isinstance(answer, Unread) or is_absurd(answer):
        return Verdict.unparseable(None if isinstance(answer, Unread) else answer)
    given = normalize_latex(answer)
    if _compact(given) and _compact(given) == _compact(truth):
        return Verdict.of(True, answer)
    if not is_readable(target):
        return Verdict.gold_unparseable()
    try:
        return Verdict.of(equivalent(target, read(given)), answer)
    except MemoryError:
        raise
    except Exception:  # sympy raises nearly anything on nonsense; nonsense is not a readable answer
        return Verdict.unparseable(answer)


def _compact(text: str) -> str:
    return re.sub(r"[\s{}]", "", unwrapped(text)).rstrip(".")
