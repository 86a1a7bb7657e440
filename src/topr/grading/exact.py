"""Text compared with text: for answers that are neither numbers nor formulas.

Runs of white space count as one space, and Unicode spellings of one character as one character.
Everything else counts: case, punctuation, accents.
"""

import unicodedata

from topr.grading.answers import MAX_COMPLETION, Marker, marked_answer, visible
from topr.grading.verdict import Verdict
from topr.records import Grade

_TIERS = ((Marker.STATEMENT,), (Marker.LABEL,), (Marker.BOX,))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def grade_exact(completion: str, gold: str, bare: bool = False) -> Grade:
    """Compare the answer of a completion with the gold answer, character by character.

    The answer of a solution is what its marker announces ("The answer is ...", without a final
    full stop), else all of it. With `bare` it is all of it.

    Args:
        completion: A solution, or with `bare` a final answer.
        gold: The gold answer.
        bare: Whether the completion is a final answer, not a solution.

    """
    truth = _plain(gold)
    if not truth:
        return Verdict.gold_unparseable()
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    text = visible(completion)
    statement = None if bare else marked_answer(text, _TIERS)
    answer = _plain(text if statement is None else statement)
    if not answer:
        return Verdict.unparseable()
    if statement is not None and not truth.endswith("."):
        answer = answer.removesuffix(".")
    return Verdict.of(answer == truth, answer)
