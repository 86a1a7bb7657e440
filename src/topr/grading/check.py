"""The verdict of a check: what a generative verifier ends in, read and compared.

... Verification: Is the answer correct (Yes/No)? Yes
"""

import re

from topr.grading.answers import MAX_COMPLETION
from topr.grading.verdict import Verdict
from topr.records import Grade

ASKED = r"Verification\s*:\s*Is\s+the\s+answer\s+correct\s*\(\s*Yes\s*/\s*No\s*\)\s*\?"
"""The question that a verdict answers. White space is free: word-level tokenizers add some."""
_VERDICT = re.compile(ASKED + r"\s*\**\s*(Yes|No)\b", re.IGNORECASE)


def read_verdict(text: str) -> str | None:
    """Return `Yes` or `No`, of the last verdict in a check; None where there is none.

    >>> read_verdict("6 * 7 = 42. Verification: Is the answer correct (Yes/No)? No")
    'No'
    >>> read_verdict("The answer is correct: yes.")
    """
    if len(text) > MAX_COMPLETION:
        return None
    found = _VERDICT.findall(text)
    return str(found[-1]).capitalize() if found else None


def count_verdicts(text: str) -> int:
    """Return how many verdicts a check has."""
    return len(_VERDICT.findall(text))


def grade_verdict(completion: str, gold: str, bare: bool = False) -> Grade:
    """Compare the verdict of a check with the truth.

    Args:
        completion: a check, or with `bare` the verdict alone.
        gold: `Yes` where the solution that is checked is right, else `No`.
        bare: whether the completion is a verdict, not a check.

    """
    truth = gold.strip().capitalize()
    if truth not in ("Yes", "No"):
        return Verdict.gold_unparseable()
    word = completion.strip().capitalize()
    verdict = (word if word in ("Yes", "No") else None) if bare else read_verdict(completion)
    return Verdict.unparseable() if verdict is None else Verdict.of(verdict == truth, verdict)
