"""Text compared with text: for answers that are neither numbers nor formulas.

Runs of white space count as one space, and Unicode spellings of one character as one character.
Everything else counts: case, punctuation, accents.
"""

import unicodedata

from topr.grading.reasoning import strip_reasoning
from topr.grading.remarks import is_remark
from topr.grading.sentences import MAX_COMPLETION
from topr.grading.statements import Statement, Unread, extract_answer
from topr.grading.verdict import Verdict, says_nothing
from topr.records import Grade


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _read(statement: Statement) -> str | Unread:
    """The text of a statement, all of it."""
    text = _plain(statement.text)
    return Unread.REMARK if not text or is_remark(text) else text


def grade_exact(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """Compare the answer of a completion with the gold answer, character by character.

    The answer of a solution is what its marker announces ("The answer is ...", without a final
    full stop), else all of it. With `answer_only` it is all of it.

    Args:
        completion: A solution, or with `answer_only` a final answer.
        gold: The gold answer.
        answer_only: Whether the completion is a final answer, not a solution.

    """
    truth = _plain(gold)
    if says_nothing(truth):
        return Verdict.gold_unparseable()
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    text = strip_reasoning(completion)
    stated = None if answer_only else extract_answer(text, _read)
    answer = _plain(text) if stated is None else stated[0]
    if isinstance(answer, Unread) or not answer:
        return Verdict.unparseable()
    if stated is not None and not truth.endswith("."):
        answer = answer.removesuffix(".")
    return Verdict.of(answer == truth, answer)
