"""Numbers as people write them: hand cases, each with its reading."""

from fractions import Fraction

import pytest

from topr.grading import GRADERS
from topr.grading.numbers import read_exactly, read_number
from topr.grading.numeric import grade_numeric, grade_numeric_marked
from topr.grading.statements import Unread
from topr.records import Outcome


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18), ("-3.5", "-7/2"), ("\N{MINUS SIGN}4", -4), (".5", "1/2"), ("37.50", "75/2"),
        ("5.", 5), ("$1,234.50", "2469/2"), ("-$5", -5), ("$-5", -5), (r"\$36", 36), ("70€", 70),
        ("35.0\\%", 35), ("10 percent", 10), ("1,000,000", 10**6), (r"1\,234", 1234),
        (r"10{,}000", 10000), (r"11,\! 111,\! 100", 11111100), ("9 500", 9500),
        ("1/2", "1/2"), (r"\frac{3}{4}", "3/4"), (r"\dfrac34", "3/4"), (r"-\frac{10}{9}", "-10/9"),
        ("2 1/2", "5/2"), (r"2\frac58", "21/8"), ("½", "1/2"), ("2½", "5/2"),
        ("1.5e3", 1500), (r"1.5 \times 10^3", 1500), ("2 million dollars", 2 * 10**6),
        ("18 hundred", 1800),
        ("48{grams}", 48), ("120.0{ml}", 120), (r"15\mbox{ cm}^2", 15), (r"74^\circ", 74),
        ("160 red roses by 5 pm", 160), ("$15.975$ inches", "639/40"), ("28 + 32 = 60%", 60),
        ("x = 12 apples", 12), ("**42**", 42), ("[-50]", -50),
    ],
)  # fmt: skip
def test_a_number_is_read_whatever_it_wears(text, value):
    number = read_number(text)
    assert not isinstance(number, Unread)
    assert number[0] == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "3:00 pm", "10 - 128*s", "5 or 6", "5, 6", "7 to 9", "(65, 0, 0)", "AZYUK2A",
        "1,23", "1,2345", "5^2", "5!", "1/0", "not 5", "9" * 5000, "5 hours and 30 minutes",
        "340 - 11*L/3", "2(3)", "less than 5", "at least 5", "never 5", "\N{SQUARE ROOT}324",
        r"\sqrt{324}", "5\N{SUPERSCRIPT TWO}", "18x", "3 y",
    ],
)  # fmt: skip
def test_what_is_no_single_number_is_no_answer(text):
    assert isinstance(read_number(text), Unread)


def test_exact_reading_takes_a_number_and_nothing_else():
    assert read_exactly("1,234") == 1234
    assert read_exactly("12 apples") is None
    assert read_exactly("x") is None


@pytest.mark.parametrize(
    ("completion", "outcome", "answer"),
    [
        ("2 + 16 = <<2+16=18>>18\n#### 18", "correct", "18"),
        ("#### 10\nMore reasoning.\n#### 18", "correct", "18"),
        ("She has 9 * 2 = 18. The answer is $18.", "correct", "18"),
        ("She answered 5 times. The final answer is: 18.00", "correct", "18.00"),
        ("So it takes 16+2=<<16+2=18>>18 bolts\nA: 18", "correct", "18"),
        ("```output\n18.0\n```\nThe total is $\\boxed{18.0}$.", "correct", "18.0"),
        ("The answer is 18 dollars by 5 pm.", "correct", "18"),
        ("The answer is 1,8.", "unparseable", "1,8."),
        ("The answer is 17.", "wrong", "17"),
        ("The answer is 180.", "wrong", "180"),
        ("The answer is 18 or 19.", "unparseable", None),
        ("The answer is 17.\n\nQ: What is 9 * 2?\nA: The answer is 18.", "wrong", "17"),
        ("The answer is 18.\n\nQuestion: What is 1 + 1?\nThe answer is 2.", "correct", "18"),
        ("<think>The answer is 18.</think> The answer is 17.", "wrong", "17"),
        ("<think>The answer is 18.", "unparseable", None),
        ("", "unparseable", None),
        ("18 18 18 and on and on", "unparseable", None),
    ],
)
def test_a_solution_is_judged_by_the_answer_it_announces(completion, outcome, answer):
    grade = grade_numeric(completion, "18")
    assert grade.outcome == outcome
    assert grade.reward == (1.0 if outcome == "correct" else -1.0)
    if answer is not None:
        assert grade.answer == answer


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("The price is 19.50 / 0.75 = 18.", Outcome.CORRECT),
        (
            "She ordered 4x = 4 * 4.5 = 18 roses. Fred must deliver 18 roses by 5 pm.",
            Outcome.CORRECT,
        ),
        ("So she pays 18 dollars.", Outcome.CORRECT),
        ("It was 20 then, and 18 was left of 40.", Outcome.UNPARSEABLE),
        ("She paid 4 + 14 = 18. The total cost of the", Outcome.UNPARSEABLE),
    ],
)
def test_an_unmarked_solution_is_read_in_its_last_sentence_unless_a_marker_is_asked_for(
    completion, outcome
):
    assert grade_numeric(completion, "18").outcome is outcome
    assert grade_numeric_marked(completion, "18").outcome is Outcome.UNPARSEABLE
    assert grade_numeric_marked(completion + "\nThe answer is 18.", "18").reward == 1.0


def test_gold_is_read_like_an_answer_and_never_guessed():
    assert grade_numeric("#### 2125", "2,125").outcome is Outcome.CORRECT
    assert grade_numeric("#### 18", "16 + 2 = 18 eggs\n#### 18").outcome is Outcome.CORRECT
    for gold in ("", "many", "5 or 6"):
        grade = grade_numeric(f"The answer is {gold}", gold)
        assert (grade.outcome, grade.reward) == (Outcome.GOLD_UNPARSEABLE, None)


def test_no_tolerance():
    assert grade_numeric("0.333333", "1/3", True).outcome is Outcome.WRONG
    assert grade_numeric("5.001", "5", True).outcome is Outcome.WRONG
    big = "100000000001000000000"
    assert grade_numeric("100000000000000000000", big, True).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("completion", "gold", "answer_only", "outcome"),
    [
        ("  Paris \n", "Paris", True, "correct"),
        ("New   York", "New York", True, "correct"),
        ("paris", "Paris", True, "wrong"),
        ("cafe\u0301", "caf\u00e9", True, "correct"),
        ("I think of rivers. The answer is Paris.", "Paris", False, "correct"),
        ("Paris", "Paris", False, "correct"),
        ("The answer is Paris.", "Paris", True, "wrong"),
        ("", "Paris", True, "unparseable"),
        ("Paris", " ", True, "gold_unparseable"),
    ],
)
def test_exact_compares_text_with_its_case(completion, gold, answer_only, outcome):
    assert GRADERS["exact"](completion, gold, answer_only).outcome == outcome
