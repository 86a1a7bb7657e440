"""Grades as the built-in graders give them: which reward belongs to which outcome."""

import re
from collections.abc import Sequence

from topr.records import Grade, Outcome

_REWARDS: dict[Outcome, float | None] = {
    Outcome.CORRECT: 1.0,
    Outcome.WRONG: -1.0,
    Outcome.UNPARSEABLE: -1.0,
    Outcome.TIMEOUT: -1.0,
    Outcome.GOLD_UNPARSEABLE: None,
    Outcome.UNSCORED: None,
}
_NOTHING = re.compile(
    r"none|null|nil|nan|n/a|na|not ?(?:found|available|provided|applicable|given)"
    r"|no (?:answer|gold)|unanswered|unknown|missing|tbd|todo|error|invalid|proof|omitted|answer"
    r"|solution|see (?:solution|proof)"
)
"""What data sets write where they have no answer; without white space and quotes."""
_SHOWN = 500
"""Characters of an answer that are kept with its grade."""


def says_nothing(gold: str) -> bool:
    """Whether a gold answer is a placeholder (`None`, `proof`, `N/A`, `?`), not an answer."""
    text = re.sub(r"\\(?:text|boxed|mathrm|mbox)\b|[${}'\"`*.]", "", gold).strip().casefold()
    text = re.sub(r"[\s_-]+", " ", text)
    return not any(c.isalnum() or c in "∞∅" for c in text) or _NOTHING.fullmatch(text) is not None


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
