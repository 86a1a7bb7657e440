"""What surrounds a stated value, both ways: a statement that is changed must lose its reward.

Each statement is put through a table of changes and a table of harmless surroundings, in several
kinds of markup. No expected reading is written down: the value that was honest is rewarded exactly
where nothing changes it.
"""

import itertools

import pytest

from topr.grading import GRADERS

STATEMENTS = (
    "The answer is {}.", "Answer: {}", "**Answer:** {}", r"\boxed{{{}}}", "#### {}",
    "<answer>{}</answer>", "## Final Answer\n\n{}", "So the final answer would be {}",
    "<b>Answer:</b> {}", "[b]The answer is[/b] {}", "'''Answer:''' {}", "Answer:\n```\n{}\n```",
    "<conclusion>{}</conclusion>", "The correct option is {}.", '{{"answer": "{}"}}',
    "<final_answer>{}</final_answer>", "Thus, the answer to the question is {}.",
)  # fmt: skip
MARKUPS = (
    "{}", "**{}**", "<b>{}</b>", "<span class='x'>{}</span>", "<u>{}</u>", "`{}`", "[b]{}[/b]",
)  # fmt: skip
VALUES = ("59", "2.5", "1,200")

BEFORE = (
    "minus", "negative", "half of", "twice", "a third of", "10% of", "the square root of", "not",
    "never", "no more than", "at least", "at most", "less than", "more than", "fewer than", "over",
    "under", "almost", "nearly", "up to", "maybe", "perhaps", "possibly", "either", "anything but",
    "1/", "7 or", "7, or", "7 and", "7 to", "x - ", "-", "\u2212", "\u2010", "\u2011", "\uff0d",
    "\u00b1", "≥", "≤", "<", ">", "≠", "√", "3 + ", "3 * ", "3(", "f(", "(a, ", "[0, ",
    "smaller than", "between 3 and", "double", "triple", "the opposite of", "1 less than",
    "7 times", "~~not~~ not", "the reciprocal of", "7 |", "7 /", "negative of", "7 out of",
    "one of", "a number below", "a multiple of", "divisible by", "the cube of", "a dozen times",
    "7 more than", "roughly half of", "everything except", "five or", "seventy",
)  # fmt: skip
BEHIND = (
    " dozen", " hundred", "k", "M", " million", " thousand", " lakh", "%o", " and a half", " 1/2",
    "½", "²", "^2", "!x", "e3", "x", "π", r"\pi", " squared", " cubed", " times 7", " plus 7",
    " minus 7", " - 7", " + 7", " * 7", " / 7", "/7", ":7", " or 7", ", or maybe 7", " (or 7)",
    " and 7", ", 7", "; 7", " | 7", " & 7", " vs 7", " to 7", "-7", "–7", " out of 7", " of 7",
    "? Or 7?", ", no wait, 7", " ... no, 7", ". No, 7", ", I mean 7", ", actually 7", "?",
    " or so", " or more", " at least", " at most", " below zero", " degrees below zero", "+", "...",
    " feet 7 inches", " hours 30 minutes", " thirds", " if n is even", " unless it rains", ".7",
    ",000", " (seven)", " (maybe)", " (7)", " or seven", ", that is 7", ", which equals 7",
    " = 7", ", not really", " (wrong)", " is wrong", ", but it may be 7", " mod 7", " choose 2",
    " more or less", " give or take 7", ", give or take", " apples, or 7 apples", " <b>or</b> 7",
    "~~ or 7~~ or 7", " ppm", " per mille", "<sup>2</sup>", " ×7", " ÷ 7", " · 7",
    " alternatively 7", "\nor 7", "\nOr maybe 7", ", otherwise 7", " divided by 7", "th",
    " as well as 7", " then 7", " pens and 7 books", ", since 7 or so", " because maybe",
    " with 7 left over", " remainder 2", " R2", " halves", " versus 7",
    " rather than not", " factorial", " to the power of 2", " ∨ 7", " ∧ 7", "′", " ± 1", " +/- 1",
    " tenths", " with error 2", " point 5",
)  # fmt: skip
AFTERWARDS = (
    "\nWait, that is wrong.", "\nNo, that is not right.", "\nLet me recalculate.",
    "\nThat answer is incorrect.", "\nOops, I made a mistake.", "\nHold on.", "\nOr maybe 7.",
    "\nOn second thought, no.", "\nThe answer is 7.", "\nCorrection: 7.", "\n\n#### 7",
    "\nActually, \\boxed{7}", "\nHmm, that is incorrect.", "\nThis is not correct.",
    "\n<b>Answer:</b> 7", "\nThis is a mistake.",
)  # fmt: skip
DENIED = (
    "I don't think that {}",
    "It is wrong that {}",
    "At first I thought that {}",
    "It is not true that {}",
    "I doubt that {}",
    "Nobody would say that {}",
    "Question: someone claims {}",
)


HARMLESS_BEFORE = (
    "exactly", "a total of", "only", "about", "$", "that she has", "therefore", "equal to", "Ann's",
    "USD", "just", "simply", "~~61~~", "<del>61</del>", "now", "indeed",
)  # fmt: skip
HARMLESS_BEHIND = (
    " pens", " dollars", "%", " cm", " apples in total", " km/h", " pens by 6 pm", " US dollars",
    ", not 61", " pens, not 61 pens", " (not 61)", " rather than 61",
    ", since 61 would be too many",
    " because 61 pens would be over the budget", "&nbsp;pens", " <i>pens</i>", " of them", "\u200b",
    " pens.", ", as required", ", which is what we wanted", " for each of the children",
    " ~~61~~", "\u00a0pens", " left", " days after the first",
)  # fmt: skip
HARMLESS_AFTERWARDS = (
    "\nConfidence in this answer: 95%", "\nAnswer checked 3 times.", "\nAnswer length: 2 digits",
    "\nThe answer is correct.", "\nThe answer is accurate to 2 decimal places.",
    "\nThe answer is less than 68.", "\nThe answer is between 1 and 9000.", "\nThank you!",
    "\nThe answer is 95% certain.", "\nSteps to the answer: 4", "\nNumber of answers: 3",
    "\n\n## Question\nA man has 3 pens.\n#### 61", "\n\nStudent: 3 pens, how many?\n#### 61",
    "\n\nTeacher:\nAnd 60 + 1?\nThe answer is 61.", "\n\n### Problem 2\n60 + 1.\nAnswer: 61",
    "\n\n**Question**\nAnd 60 + 1?\n**Answer:** 61", "\n\nPerson A: 60 + 1?\nPerson B: \\boxed{61}",
    "\n\nA man has 3 pens and buys 58. How many pens has he?\n\nThe answer is 61.",
    "\n\nNow solve this: 60 + 1\n#### 61", "<|im_end|>\nThe answer is 61.",
)  # fmt: skip
UNMARKED = (
    "Ann buys pens.\nSo she has {}.", "We add.\n**{}**", "So it is **{}**.", "We add.\n${}$",
    "Therefore, it is ${}$.",
)  # fmt: skip
ABOUT_IT = (
    "Confidence in this answer: {}%", "Answer checked {} times.", "Answer length: {} digits",
    "Answer confidence is {}%.", "The answer is accurate to {} decimal places.",
    "The answer is {}% certain.", "The answer has {} digits.", "Answer (number of digits): {}",
    "Number of answers: {}", "Time to answer: {} minutes", "I am {}% sure of this answer.",
    "The answer is smaller than {}.", "The answer is between {} and 9000.", "The answer is not {}.",
    "The answer is a multiple of {}.", "The answer is divisible by {}.", "Answer in {} steps.",
    "The answer is bounded by {}.", "The answer is a {}-digit number.",
    "If the answer is {}, fine.",
    "The answer is given to {} significant figures.", "Suppose that the answer is {}.",
    "The probability that the answer is right is {}%.", "~~The answer is {}.~~",
    "<del>The answer is {}.</del>", "Difficulty of this answer: {}", "Score for the answer: {}",
    '{{"answer_length": {}}}', '{{"answer": [{}, 7]}}', '{{"answer": {}}} or {{"answer": 7}}',
)  # fmt: skip
BOTH = pytest.mark.parametrize("grader", ["numeric", "math"])
EACH = pytest.mark.parametrize("statement", STATEMENTS)


def reward(grader, completion, value="59"):
    return GRADERS[grader](completion, value.replace(",", ""), False).reward


def around(statement, befores, behinds, value, markups=("{}", "**{}**", "<b>{}</b>")):
    """The statement with each surrounding, inside of the markup and outside."""
    for markup in markups if not statement.startswith("{{") else ("{}",):
        for before in befores:
            yield statement.format(markup.format(f"{before} {value}"))
            yield statement.format(f"{before} {markup.format(value)}")
        for behind in behinds:
            yield statement.format(markup.format(f"{value}{behind}"))
            yield statement.format(f"{markup.format(value)}{behind}")


@BOTH
@EACH
def test_the_honest_statement_is_rewarded_in_any_markup(grader, statement):
    for markup, value in itertools.product(MARKUPS, VALUES):
        if markup == "{}" or not statement.startswith("{{"):
            completion = statement.format(markup.format(value))
            assert reward(grader, completion, value) == 1.0, completion
            assert reward(grader, completion, "7") == -1.0, completion


@BOTH
@EACH
def test_a_changed_statement_is_never_rewarded_with_the_plain_value(grader, statement):
    for value in VALUES:
        for completion in around(statement, BEFORE, BEHIND, value):
            assert reward(grader, completion, value) == -1.0, completion
        for afterwards in AFTERWARDS:
            completion = statement.format(value) + afterwards
            assert reward(grader, completion, value) == -1.0, completion


@BOTH
@EACH
def test_harmless_surroundings_change_nothing(grader, statement):
    for completion in around(statement, HARMLESS_BEFORE, HARMLESS_BEHIND, "59", ("{}", "**{}**")):
        assert reward(grader, completion) == 1.0, completion
    for afterwards in HARMLESS_AFTERWARDS:
        completion = statement.format("59") + afterwards
        assert reward(grader, completion) == 1.0, completion
        assert reward(grader, completion, "61") == -1.0, completion


@BOTH
@pytest.mark.parametrize("unmarked", UNMARKED)
def test_a_changed_value_at_the_end_of_an_unmarked_text_is_never_rewarded(grader, unmarked):
    for value in VALUES:
        for completion in around(unmarked, BEFORE, BEHIND, value, ("{}",)):
            assert reward(grader, completion, value) == -1.0, completion


@BOTH
@pytest.mark.parametrize("form", ["{}", "It is {}.", "${}$", "She has {} now"])
def test_a_changed_final_answer_alone_is_never_rewarded(grader, form):
    for value in VALUES:
        for completion in around(form, BEFORE, BEHIND, value, ("{}",)):
            grade = GRADERS[grader](completion, value.replace(",", ""), True)
            assert grade.reward == -1.0, completion


@BOTH
def test_a_number_in_words_about_the_answer_is_none(grader):
    for about in ABOUT_IT:
        assert reward(grader, about.format(59)) == -1.0, about


@BOTH
@EACH
def test_words_about_the_answer_hide_no_answer(grader, statement):
    hiding = ("not {}", "~~", "<del>", "[{}", "or {")
    for about in ABOUT_IT:
        if any(words in about for words in hiding):
            continue
        completion = f"{statement.format(61)}\n{about.format(59)}"
        assert reward(grader, completion, "61") == 1.0, completion
        assert reward(grader, completion, "59") == -1.0, completion


@BOTH
def test_a_denied_statement_is_none(grader):
    announced = (
        "the answer is {}.",
        "the final answer would be {}",
        "the <b>answer</b> is **{}**.",
    )
    for denial, statement in itertools.product(DENIED, announced):
        assert reward(grader, denial.format(statement.format(59))) == -1.0, denial
