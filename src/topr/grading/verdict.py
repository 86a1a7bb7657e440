"""Grades as the built-in graders give them: which reward belongs to which outcome."""

import re
from collections.abc import Sequence

from topr.records import Grade, Outcome

_REWARDS: dict[Outcome, float | None] = {
    Outcome.CORRECT: 1.0,
    Outcome.WRONG: -1.0,
    Outcome.UNPARSEABLE: -1.0,
    Outcome.TRUNCATED: -1.0,
    Outcome.TIMEOUT: -1.0,
    Outcome.GOLD_UNPARSEABLE: None,
    Outcome.UNSCORED: None,
}
_ABSENT = (
    r"none|null|nil|nan|na|n/a|not|missing|omitted|absent|unavailable|unknown|undetermined|pending"
    r"|determined|un(?:answered|specified|proven)|error|invalid|tbd|tba|todo|varies|vary|see|ended"
    "|notfound"
)
_ANSWER = "answers?|solutions?|proof|gold|key|reference|response"
_AROUND = (
    "no|the|an?|is|are|was|may|will|can|could|be|been|to|in|for|of|at|yet|here|above|below|given"
    "|open|found|provided|available|applicable|specified|required|needed|final|correct|sample|text"
    "|left|reader"
)
_PLACEHOLDER = re.compile(rf"(?:(?:{_ABSENT}|{_ANSWER}|{_AROUND})(?:\s|\Z))+")
_SAYS_SO = re.compile(rf"(?<!\S)(?:{_ABSENT}|{_ANSWER})(?!\S)")
"""Of these words placeholders are made: `answer missing`, `see the proof above`, `not provided`."""
_SHOWN = 500
"""Characters of an answer that are kept with its grade."""


def says_nothing(gold: str) -> bool:
    """Whether a gold answer is a placeholder (`None`, `proof omitted`, `?`), not an answer.

    All its words say that something is absent, or what. `no solution` is an answer, as is `no`.
    """
    text = re.sub(r"\\(?:text|boxed|mathrm|mbox)\b|[${}()\[\]<>'\"`*.,:;!]", "", gold)
    text = " ".join(re.sub(r"[_-]+", " ", text).casefold().split())
    if not any(c.isalnum() or c in "∞∅" for c in text):
        return True
    if len(text) > 100 or _PLACEHOLDER.fullmatch(text) is None:
        return False
    real = re.fullmatch(r"no solutions?(?: found)?", text) is not None
    return not real and _SAYS_SO.search(text) is not None


class Verdict:
    """Makers of grades, one per outcome."""

    @staticmethod
    def make(outcome: Outcome, answer: str | None = None) -> Grade:
        """The grade of an outcome, with the reward that belongs to it."""
        shown = answer[:_SHOWN] if answer is not None else None
        return Grade(outcome=outcome, reward=_REWARDS[outcome], answer=shown)

    @staticmethod
    def of(correct: bool, answer: str) -> Grade:
        """A readable answer: correct or wrong."""
        return Verdict.make(Outcome.CORRECT if correct else Outcome.WRONG, answer)

    @staticmethod
    def unparseable(answer: str | None = None) -> Grade:
        """No readable answer."""
        return Verdict.make(Outcome.UNPARSEABLE, answer)

    @staticmethod
    def timeout() -> Grade:
        """Too much time or memory."""
        return Verdict.make(Outcome.TIMEOUT)

    @staticmethod
    def gold_unparseable() -> Grade:
        """The gold answer cannot be read: nobody is rewarded or punished."""
        return Verdict.make(Outcome.GOLD_UNPARSEABLE)


def any_of(grades: Sequence[Grade]) -> Grade:
    """Return the grade of a completion against several gold answers, any of which is right.

    One that cannot be read might have been met: then nobody is punished.
    """
    for wanted in (Outcome.CORRECT, Outcome.GOLD_UNPARSEABLE):
        for grade in grades:
            if grade.outcome is wanted:
                return grade
    return grades[0]
