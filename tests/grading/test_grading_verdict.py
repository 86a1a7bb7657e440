"""The verdict of a check."""

import pytest

from topr.grading.check import grade_verdict, read_verdict
from topr.records import Outcome
from topr.verifier.verdicts import verdict_logprob

ASKED = "Verification: Is the answer correct (Yes/No)?"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (f"6 * 7 = 42. {ASKED} Yes", "Yes"),
        (f"{ASKED} no.", "No"),
        (f"{ASKED} **No**", "No"),
        ("Verification : Is the answer correct ( Yes / No ) ? Yes", "Yes"),
        (f"{ASKED} Yes. Wait. {ASKED} No", "No"),  # the last one counts
        (f'{ASKED} "No"', "No"),
        (f"{ASKED}: [Yes]", "Yes"),
        (f"{ASKED} \\boxed{{No}}", "No"),
        (f"{ASKED} Yes/No", None),
        (f"{ASKED} Yes or No", None),
        (f"{ASKED} Yes b {ASKED} None", "Yes"),
        (f"{ASKED} Yesterday", None),
        (f"{ASKED} X", None),
        (f"{ASKED}", None),
        ("The answer is correct: yes", None),
        ("", None),
    ],
)
def test_reading(text: str, verdict: str | None) -> None:
    assert read_verdict(text) == verdict


def test_grades() -> None:
    assert grade_verdict(f"{ASKED} Yes", "Yes").outcome is Outcome.CORRECT
    wrong = grade_verdict(f"{ASKED} Yes", "No")
    assert (wrong.outcome, wrong.reward, wrong.answer) == (Outcome.WRONG, -1.0, "Yes")
    unread = grade_verdict("I am not sure", "No")
    assert (unread.outcome, unread.reward) == (Outcome.UNPARSEABLE, -1.0)
    assert grade_verdict(f"{ASKED} Yes", "").reward is None
    assert grade_verdict("yes", "Yes", answer_only=True).outcome is Outcome.CORRECT


PIECES = ["It is 4.", f" {ASKED}", " No", "!", f" {ASKED}", " Y", "es", "", " and so on"]


def decode(ids) -> str:
    return "".join(PIECES[i] for i in ids)


def test_the_log_probability_is_that_of_the_last_verdicts_tokens() -> None:
    logprobs = [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.9]
    assert verdict_logprob(range(9), logprobs, decode) == ("Yes", pytest.approx(-0.6 - 0.7))
    assert verdict_logprob(range(4), logprobs, decode) == ("No", pytest.approx(-0.3))
    assert verdict_logprob(range(2), logprobs, decode) is None
    # What looks like a verdict in a part of the text may be none in the whole.
    pieces = [f"{ASKED}", " Yes", f" {ASKED}", " No", "ne"]
    found = verdict_logprob(
        range(5), [-1.0, -0.5, -1.0, -7.0, -1.0], lambda ids: "".join(pieces[i] for i in ids)
    )
    assert found == ("Yes", pytest.approx(-0.5))
