"""What a statement says, kind by kind, for both graders: what must be rewarded, and what must not.

Every value is put into every way of announcing it; the numeric and the math grader read the same
text, so they are asked the same.
"""

import itertools

import pytest

from topr.grading import GRADERS
from topr.grading.numeric import grade_numeric

ANNOUNCED = (
    "The answer is {}.", "Answer: {}", r"Hence \boxed{{{}}}", "#### {}", "**Final Answer**\n\n{}",
    "<answer>{}</answer>", "**Answer:** {}",
)  # fmt: skip
BOTH = pytest.mark.parametrize("grader", ["numeric", "math"])

FIVE = {
    "as it is": ["5", "5.0", "+5", "05", "five", "**5**", "`5`", '"5"', "_5_", "5 (five)"],
    "currency": ["$5", r"\$5", "5 €", "$5.00", "5 dollars", "USD 5", "Rs. 5", "5 cents"],
    "percent": ["5%", r"5\%", "5 percent"],
    "units": [
        "5 apples", "5kg", "5 cm", "5 m^2", "5 cm³", "5°", "5 degrees Celsius", "5 km/h", "5/hour",
        "5 miles per hour", "$5 per pen", "5 hours a day", "5 sq ft", "5 US dollars", "5-year",
        "5 boxes of pens", "5 dogs and cats", "5 of them", "5 times", "5 more pens", "5 pairs",
    ],
    "words around": [
        "a total of 5 pens", "exactly 5", "only 5", "that Ann has 5 pens", "thus 5", "5 in total",
        "5 pens by 6 pm", "5 because 2 + 3 = 5",
    ],
    "chains": ["2 + 3 = 5", "10/2 = 5 pens", "x = 5"],
    "mathematics": ["$5$", r"\(5\)", r"\mathbf{5}", r"\bm{5}", r"5\text{ cm}", r"\text{5 pens}"],
}  # fmt: skip
NOT_FIVE = {
    "before it": [
        "minus 5", "negative five", "\N{MINUS SIGN}5", "- 5", "-$5", "$-5", "-(5)", "(-5)", "±5",
        "+/-5", "not 5", "half of 5", "twice 5", "a third of 5", "over 5", "more than 5", "up to 5",
        "at least 5", "between 5 and 6", "almost 5", "square root of 5", "√5", r"\sqrt{5}", "log 5",
        "≥5", "> 5", r"\geq 5", "x < 5", "≠5", "[0, 5)", "(1) 5",
        "anything but 5", "10% of 5", "f(5)", "(a, 5)",
    ],
    "behind it": [
        "5 dozen", "5k", "5M", "5 thousand", "5 and a half", "5 1/2", "5½",
        "5 1\N{FRACTION SLASH}2",
        "5 out of 7", "5 of 7", "5/7", "5 to 7", "5 feet 7 inches", "5'7\"", "5 hours 30 minutes",
        "5:30", "5 dollars and 7 cents", "5 below zero", "5 degrees below zero", "5 squared", "5^2",
        "5²", "5 plus 7", "5 - 7", "5 × 7", "5 times 7", "5 divided by 7", "5 mod 7", "5e3", "5x",
        "5π", r"5\pi", "5 R 2", "5+", "5 or so", "5 at least", "5 or more", "5...", "5th", "5.5",
        "5,000", "5±2", "5 thirds", "5 unless it rains", "(5, pi)",
        "[5, ∞)", "5 ppm", "5 if n is even", "5 for n = 7", "5?",
    ],
    "beside it": [
        '"5" or "7"', "`5` or `7`", "**5** or **7**", "5 (or 7)", "5 (maybe 7)", "5, or maybe 7",
        "5, possibly 7", "5 pens, or 7 pens", "5 | 7", "5 & 7", "5 and/or 7", "5 vs 7", "5? Or 7?",
        "5 ... no, 7", "5, no wait, 7", "5 7", "5, 7", "5; 7", "[5, 7]", "{5; 7}", "(5) (7)",
        "either 5 or 7", "5 and 7", "5 / 7 pens", "5 if n is even, 7 otherwise", "5或7", "5、7",
        "five or 7", "x = 5 or x = 7", "x = 5, y = 7", "5 = 7", "5. Or 7", "5. No, 7",
        "5, I mean 7",
        r"5 \text{ or } 7", r"$5$ or $7$", r"\text{5 or 7}",
    ],
}  # fmt: skip


def cases(table):
    texts = [(kind, text) for kind, texts in table.items() for text in texts]
    return [pytest.param(text, id=f"{kind}: {text}") for kind, text in texts]


def reward(grader, completion, gold):
    return GRADERS[grader](completion, gold, False).reward


@BOTH
@pytest.mark.parametrize("text", cases(FIVE))
def test_a_value_with_nothing_that_changes_it_is_read(grader, text):
    for announced in ANNOUNCED:
        completion = announced.format(text)
        assert reward(grader, completion, "5") == 1.0, completion
        assert reward(grader, completion, "7") == -1.0, completion


@BOTH
@pytest.mark.parametrize("text", cases(NOT_FIVE))
def test_a_value_that_something_changes_is_another_or_none(grader, text):
    for announced, gold in itertools.product(ANNOUNCED, ("5", "7")):
        completion = announced.format(text)
        if announced == "**Final Answer**\n\n{}" and "$" in text:
            continue  # a line that begins with a formula
        assert reward(grader, completion, gold) == -1.0, completion


@BOTH
def test_two_different_values_in_any_words_are_no_answer(grader):
    links = (
        "or", "and", ",", ", or", "or maybe", "/", "|", "&", ";", "vs", "to", "through", "then",
        "as well as", "followed by", "- no,", "... actually", ", sorry,", "but also",
        "alternatively",
        "oder", "ou", "或", "XOR", "with", "out of", "less than", "more than", "per", "mod",
    )  # fmt: skip
    forms = ("{}", "{} pens", "**{}**", "${}$", "'{}'", r"\boxed{{{}}}", "about {}")
    for link, form in itertools.product(links, forms):
        stated = f"{form.format(8)} {link} {form.format(13)}"
        for announced in ("The answer is {}.", "Answer: {}", "#### {}"):
            for gold in ("8", "13"):
                assert reward(grader, announced.format(stated), gold) == -1.0, stated


@BOTH
def test_words_that_change_a_value_never_make_it_the_gold_one(grader):
    """Whatever is read, it is not the number that the words were put around."""
    before = ("half of", "not", "minus", "twice", "at least", "nearly", "under", "either", "1/2 of")
    behind = ("dozen", "squared", "and a half", "or so", "plus 1", "out of 9", "million", "k", "!x")
    for number, announced in itertools.product(("4", "17", "2.5", "1,200"), ANNOUNCED):
        for stated in [f"{w} {number}" for w in before] + [f"{number} {w}" for w in behind]:
            assert reward(grader, announced.format(stated), number) == -1.0, stated


@BOTH
@pytest.mark.parametrize("text", ["-5", "\N{MINUS SIGN}5", "- 5", "minus 5", "negative five", "-$5",
                                  "$-5", "(-5)", "-(5)", "-5 degrees", "5 below zero", "-5.0",
                                  "5 degrees below zero", "2 - 7 = -5"])  # fmt: skip
def test_signs_are_read_in_all_their_spellings(grader, text):
    for announced in ANNOUNCED:
        assert reward(grader, announced.format(text), "-5") == 1.0
        assert reward(grader, announced.format(text), "5") == -1.0


STATEMENTS = (
    "#### {}", "The answer is {}.", r"\boxed{{{}}}", r"$\boxed{{{}}}$ pens", "Answer: {}",
    "**Answer: {}**", "<answer>{}</answer>", "The final answer is ${}$.", "### Final Answer\n{}",
    "## Answer\n\n{}", "Answer = {}", "Answer - {}", "答案：{}", "The answer would be `{}`.",
    r"\[\boxed{{{}}}\]", r"\fbox{{{}}}", r"\boxed {}", "A: {}", "*Answer*: {}",
    "<|begin_of_box|>{}<|end_of_box|>", "The answer (in pens) is {}.", "#### Answer: {}",
)  # fmt: skip


@BOTH
@pytest.mark.parametrize("last", STATEMENTS)
def test_the_last_statement_counts_whatever_its_kind(grader, last):
    for first in STATEMENTS:
        completion = f"{first.format(21)}\nThat forgets the tax.\n\n{last.format(34)}"
        assert reward(grader, completion, "34") == 1.0, completion
        assert reward(grader, completion, "21") == -1.0, completion


@BOTH
@pytest.mark.parametrize(
    "remark",
    [
        "The answer is correct.", "Answer: see above.", "So the answer is as stated.",
        "The final answer is boxed above.", "That is the final answer.",
        "I hope the answer is clear.",
        "Let me know if the answer is unclear!", "Note: the answer is in pens.",
        "The answer is positive, as it should be.", "Is it a coincidence that the answer is 34?",
        "We can check our answer: 17 * 2 = 34.", "The answer is a whole number.", "Thank you!",
    ],
)  # fmt: skip
def test_a_remark_after_the_answer_hides_nothing(grader, remark):
    for statement in STATEMENTS:
        assert reward(grader, f"{statement.format(34)}\n{remark}", "34") == 1.0, statement


@BOTH
@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 5.\nWait, I forgot the tax.", r"\boxed{5}" + "\n\nNo, that is wrong.",
        "#### 5\nLet me recalculate.", "The answer is 5.\nOr maybe 7.",
        "I don't think the answer is 5.",
        "At first sight the answer is 5.", "The wrong answer is 5.", r"It is half of \boxed{5}",
        r"It is not \boxed{5}", r"\boxed{5} or maybe 7", r"\boxed{5} dozen", r"-\boxed{5}",
        r"\boxed{5}^2", "<answer>5</answer> or <answer>7</answer>",
        r"The answer is 7 or \boxed{5}.",
    ],
)  # fmt: skip
def test_an_answer_that_is_taken_back_or_changed_from_outside_is_none(grader, completion):
    assert reward(grader, completion, "5") == -1.0


@BOTH
@pytest.mark.parametrize(
    "begins",
    [
        "Question: ", "**Question:** ", "### Problem\n", "Q: ", "Q2: ", "Problem 2. ", "Human: ",
        "User: ", "Example 2: ", "问题：", "Next question: ", "Word problem: ", "user\n",
        "[Question]: ", "### Instruction:\n", "Let's try another one: ",
    ],
)  # fmt: skip
def test_a_new_question_ends_the_completion(grader, begins):
    next_one = "A man has 3 boxes of 4 pens. How many pens?\nAnswer: 3*4 = 12\n#### 12"
    for statement in ("#### 72", "The answer is 72.", r"\boxed{72}"):
        completion = f"48 + 24 = 72\n{statement}\n\n{begins}{next_one}"
        assert reward(grader, completion, "72") == 1.0
        assert reward(grader, completion, "12") == -1.0


SAME = r"""
4 = √16 = \sqrt 16 = \sqrt{16} = sqrt(16) = √(16)
2\sqrt{3} = √12 = 2√3 = \sqrt{12}
\frac{\sqrt{15}}{2} = √15/2 = \frac{√15}{2}
2 = ∛8 = \sqrt[3]{8} = ∜16
3+4i = 3+4\mathrm{i} = 3+4\text{i}
2e^2 = 2\mathrm{e}^2
\pi = \boldsymbol{\pi} = π
\frac34 = {3 \over 4} = \dfrac{3}{4}\text{ cm} = ¾
x^4 = x⁴
3 = \begin{aligned} x &= 3 \end{aligned}
7 = \begin{aligned} x &= 3+4 \\ &= 7 \end{aligned}
60 = 60\text{ m/s} = 60 \frac{\text{miles}}{\text{hour}} = 60\ \mathrm{m\,s^{-1}} = 60 km/h
119 = (D) 119 = \textbf{(D)}\ 119 = D. 119
\textbf{(D) } 119 = (D) 119 = D = (D) = \mathrm{(D)} = 119
E = \textbf{(E)} = option E = E) none of these = E: none of these
-\frac12 = minus \frac12 = −½
""".strip().splitlines()
DIFFERENT = r"""
6 = √16 = \sqrt 16
44 = √144
3 = 3\mathrm{i} = 3\mathrm{x} = 3' = 3:1 = \{3,4\} = 3 \quad 4 = 2x=3
4 = \frac{\pi}{4} = \frac{\pi}{4} inches = \frac{3}{4}
256 = m+n = 256+37 = 293
118 = (D) 119
\textbf{(D) } 119 = (E) 119 = (D) 118 = E
(2,1) = (1,2)
""".strip().splitlines()


@pytest.mark.parametrize("line", SAME)
def test_spellings_of_one_value(line):
    gold, *answers = line.split(" = ") if "&=" not in line else line.split(" = ", 1)
    for answer in answers:
        assert reward("math", rf"\boxed{{{answer}}}", gold) == 1.0, answer
        assert reward("math", f"The answer is ${answer}$.", gold) == 1.0, answer


def test_a_chain_of_equations_says_its_last_member():
    assert reward("math", r"\boxed{m+n = 256+37 = 293}", "293") == 1.0
    assert reward("math", "The answer is $a + b = 2 + 3 = 5$.", "5") == 1.0


@pytest.mark.parametrize("line", DIFFERENT)
def test_spellings_of_other_values(line):
    gold, _, rest = line.partition(" = ")
    answers = [rest] if rest.startswith(("m+n",)) else rest.split(" = ")
    for answer in answers:
        assert reward("math", rf"\boxed{{{answer}}}", gold) == -1.0, answer


@BOTH
@pytest.mark.parametrize(
    "gold", ["", "-", "?", "None", "nan", "N/A", "notfound", "proof", "null", r"\text{None}"]
)
def test_a_gold_that_says_nothing_rewards_and_punishes_nobody(grader, gold):
    for completion in (r"\boxed{5}", "no idea", f"The answer is {gold}."):
        assert reward(grader, completion, gold) is None


@pytest.mark.parametrize("gold", ["5 or 7", "5, or maybe 7", "5 | 7", "5 7", "±5", "at least 5"])
def test_a_gold_that_is_unclear_rewards_nobody(gold):
    for completion in (r"\boxed{5}", r"\boxed{7}", f"The answer is {gold}."):
        assert grade_numeric(completion, gold).reward is None
    assert reward("math", r"\boxed{5}", gold) != 1.0


@BOTH
def test_two_lines_with_a_number_each_are_no_single_answer(grader):
    for gold in ("5", "7"):
        assert GRADERS[grader]("5\n7", gold, True).reward == -1.0
    assert GRADERS[grader]("First compute 6*7.\n42", "42", True).reward == 1.0
    assert reward(grader, r"\boxed{5}", "5 or 7") is None


@BOTH
def test_golds_are_read_as_answers_are(grader):
    for gold in ("-$5", "minus 5", "\N{MINUS SIGN}5", "-5 degrees", "#### -5", "The answer is -5."):
        assert reward(grader, r"\boxed{-5}", gold) == 1.0
        assert reward(grader, r"\boxed{5}", gold) == -1.0


@BOTH
@pytest.mark.parametrize("bold", ["**92**", "**92 pens**"])
def test_the_only_bold_number_of_the_last_line_is_its_answer(grader, bold):
    assert reward(grader, f"She has 3 boxes.\nWith 4 more it makes {bold} in 7 boxes.", "92") == 1.0
    assert reward(grader, f"She has 3 boxes.\nIt is not {bold} in 7 boxes.", "92") == -1.0


@BOTH
@pytest.mark.parametrize("alone", ["**92**", "`92`", "__92__", "$92$", "$$92$$", r"\[92\]", "= 92"])
def test_a_last_line_that_is_set_off_is_the_answer(grader, alone):
    assert reward(grader, f"We add 90 and 2.\n{alone}", "92") == 1.0
    assert reward(grader, f"We add 90 and 2.\n{alone}\nThis is not all.", "92") == -1.0
    assert GRADERS["numeric_marked"](f"We add 90 and 2.\n{alone}", "92", False).reward == -1.0


@BOTH
def test_a_label_that_begins_a_solution_states_nothing(grader):
    for label in ("A:", "Answer:", "Answer:\n", "## Answer\n\n"):
        solution = f"{label} Ann has 5 pens. She buys 7 more. So that makes a dozen."
        assert reward(grader, solution, "5") == -1.0
        assert reward(grader, solution.replace(". ", ".\n"), "5") == -1.0
        assert reward(grader, f"{solution}\nThe answer is 12.", "12") == 1.0
        assert reward(grader, f"{label} Ann has 12 pens.", "12") == 1.0


@BOTH
@pytest.mark.parametrize(
    "completion",
    [
        "<b>Answer:</b> 59", "The answer is <strong>59</strong>.", "<p>The answer is 59.</p>",
        "[b]Answer:[/b] 59", "'''Answer:''' 59", "==Answer==\n59", r"We get \underline{59}",
        "The answer is ~~61~~ 59.", "<del>Answer: 61</del> Answer: 59", "Answer: \uff15\uff19",
        "**Answer:**\n```text\n59\n```", '{"steps": 3, "final_answer": "59"}', r"\framebox{59}",
        "<REASONING>61</REASONING>\n<CONCLUSION>59</CONCLUSION>", "The answer is\u00a059.",
        "My first guess was that the answer is 61. #### 59", r"\boxed\frac{118}{2}",
        "The correct option is (B) 59.", "The answer is fifty-nine (59).", "Answer: 118/2, or 59",
        "The answer is 118/2, which simplifies to 59.", r"\boxed{\large 59}", "<output>59</output>",
    ],
)  # fmt: skip
def test_markup_and_repetition_hide_no_answer(grader, completion):
    assert reward(grader, completion, "59") == 1.0
    assert reward(grader, completion, "61") == -1.0


@BOTH
@pytest.mark.parametrize("minus", "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d")
def test_every_hyphen_is_a_minus(grader, minus):
    for announced in ANNOUNCED:
        assert reward(grader, announced.format(f"{minus}5"), "-5") == 1.0
        assert reward(grader, announced.format(f"{minus}5"), "5") == -1.0


@BOTH
def test_placeholders_reward_nobody_and_answers_in_words_are_no_placeholders(grader):
    for gold in ("proof omitted", "see above", "answer missing", "None given", "[invalid]",
                 "answers may vary", "no answer", "TBD", r"\text{see the solution}"):  # fmt: skip
        assert reward(grader, r"\boxed{5}", gold) is None
        assert reward(grader, f"The answer is {gold}.", gold) is None
    if grader == "math":
        for gold in (r"\text{no solution}", "undefined", "infinitely many", "no", "none of these"):
            assert reward(grader, rf"\boxed{{{gold}}}", gold) == 1.0
            assert reward(grader, r"\boxed{5}", gold) == -1.0


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"√20, which simplifies to 2√5", r"2\sqrt{5}", True),
        (r"√21, which simplifies to 2√5", r"2\sqrt{5}", False),
        (r"\sqrt{20} = 2\sqrt5", r"\sqrt{20}", True),
        (r"\textbf{(A)}\ \text{Tuesday}", r"\text{Tuesday}", True),
        (r"\{x \mid x>2\}", r"(2,\infty)", True),
        (r"\{x \mid x \ge 2\}", r"(2,\infty)", False),
        (r"\begin{array}{c} x=4 \end{array}", "4", True),
    ],
)  # fmt: skip
def test_chains_choices_and_sets(answer, gold, right):
    assert (reward("math", f"The answer is ${answer}$.", gold) == 1.0) == right
    assert (reward("math", f"Answer: {answer}", gold) == 1.0) == right


def test_unbraced_boxes_hold_one_token():
    assert reward("math", r"$\boxed \pi$", r"\pi") == 1.0
    for more in (
        r"\boxed \pi r",
        r"\boxed 2\pi",
        r"\boxed 2 \cdot 3",
        r"\boxed\frac2x",
        r"\boxed 2^3",
    ):
        for gold in (r"\pi", "2"):
            assert reward("math", rf"\boxed{more}", gold) == -1.0
