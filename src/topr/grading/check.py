"""The verdict of a check: what a generative verifier ends in, read and compared.

... Verification: Is the answer correct (Yes/No)? Yes
"""

import re

from topr.grading.sentences import MAX_COMPLETION
from topr.grading.verdict import Verdict
from topr.records import Grade

ASKED = r"Verification\s*:\s*Is\s+the\s+answer\s+correct\s*\(\s*Yes\s*/\s*No\s*\)\s*\?"
"""The question that a verdict answers. White space is free: word-level tokenizers add some."""
_VERDICT = re.compile(
    # Quotes, brackets and stars around the word are free; "Yes/No" and "Yes or No" are none.
    ASKED + r"[\s*:\"'\[({]*(?:\\boxed\{)?(Yes|No)\b(?!\s*(?:/|or\b))",
    re.IGNORECASE,
)


def read_verdict(text: str) -> str | None:
    """Return `Yes` or `No`, of the last verdict in a check; None where there is none.

    >>> read_verdict("6 * 7 = 42. Verification: Is the answer correct (Yes/No)? No")
    'No'
    >>> read_verdict("The answer is correct: yes.")
    """
    place = verdict_place(text)
    return None if place is None else text[slice(*place)].capitalize()


def verdict_place(text: str) -> tuple[int, int] | None:
    """Return where the last verdict's word begins and ends; None where there is none."""
    if len(text) > MAX_COMPLETION:
        return None
    places = [match.span(1) for match in _VERDICT.finditer(text)]
    return places[-1] if places else None


def grade_verdict(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """Compare the verdict of a check with the truth.

    Args:
        completion: a check, or with `answer_only` the verdict alone.
        gold: `Yes` where the solution that is checked is right, else `No`.
        answer_only: whether the completion is a verdict, not a check.

    """
    truth = gold.strip().capitalize()
    if truth not in ("Yes", "No"):
        return Verdict.gold_unparseable()
    word = completion.strip().capitalize()
    verdict = (word if word in ("Yes", "No") else None) if answer_only else read_verdict(completion)
    return Verdict.unparseable() if verdict is None else Verdict.of(verdict == truth, verdict)
