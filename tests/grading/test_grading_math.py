"""Mathematical answers: the stance of docs/grading.md on each disputable kind, both ways."""

import pytest

from topr.grading.mathematics import grade_math
from topr.grading.values import same_value
from topr.records import Outcome


def column(*entries):
    return r"\begin{pmatrix} " + r" \\ ".join(entries) + r" \end{pmatrix}"


SAME = {
    "percent": [(r"10\%", "10"), ("35", r"35.0\%"), (r"$28\%$", "28 percent")],
    "units": [
        (r"15\mbox{ cm}^2", "15"), (r"12 \text{ gm}", "12.0"), ("10weeks", "10"), ("4", "4{cm}"),
        (r"10\text{ units}", "10"), (r"\$36", "36.00"), ("120", r"120^\circ"), ("74", "74°"),
    ],
    "thousands": [
        ("10{,}000", "10000"), ("10455", "10,455"), ("1234", r"1\,234"), ("32349", r"32,\! 349"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ],
    "zeros": [("37.50", "37.5"), (".185", "0.185"), ("918\\frac{1}{2}", "918.5")],
    "value": [
        (r"\frac12", r"\frac24"), ("26000", "1000(26)"), (r"\sqrt{2}+\sqrt{5}", r"\sqrt 5+\sqrt 2"),
        (r"(r+5)(r+5)", "(r+5)^2"), ("-13x+3", "3 - 13x"), ("2**(1/4)", r"\sqrt{\sqrt{2}}"),
        (r"\tan^2(y)+1", r"\sec^2(y)"), (r"\sin(90^{\circ}-x)", r"\cos(x)"), ("1500", "1.5e3"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\frac{3}{4}i", r"\frac34i"),
        (r"-\sqrt3", r"-\tan(4\pi/9) + 4\cos(\pi/18)"),
    ],
    "factorial": [("5!", "120"), ("360", r"3\cdot 5!"), (r"(3+2)!", "120"), ("10!", "10!")],
    "order": [
        ("1, 2, 3", "1, 3, 2"), (r"\{3, 2, 1\}", r"1,2,3"), ("(11,7)or(7,11)", "(7,11), (11,7)"),
    ],
    "equation": [("x - (y+2) = 0", "x = y + 2"), ("y=2x", "2x=y"), ("5 \\ge x", "x \\leq 5")],
    "name": [
        ("x = 2", "2"), ("2", "x=2"), ("f(x)=2x+3", "y=2x+3"), ("2 = y", "2"),
        ("(p,q)=(3,2)", "(3,2)"), ("|AB|=1", "1"), ("AB=4,CD=5", "4, 5"),
        ("x = 2, x = -3", "x=-3, x=2"),
    ],
    "interval": [
        (r"x \in [-2,7]", r"[-2,7]"), (r"-2 \le x \le 7", r"x \in [-2,7]"),
        (r"[-1, -\frac12) \cup (0,1)", r"(0,1) \cup [-1,-\tfrac12)"), ("[0,1)", "[0, 1)"),
    ],
    "vector": [
        (column("-1/3", "2/3"), column(r"-\frac{1}{3}", r"\frac{2}{3}")),
        (column("16/49", "1"), column(r"\\frac{16}{49}", "1")), (column("1", "2"), "(1, 2)"),
        (r"\begin{matrix} \frac12 \\ 1 \end{matrix}", "[0.5, 1]"),
    ],
    "plus or minus": [(r"3 \pm 2\sqrt{2}", r"3+2\sqrt2, 3-2\sqrt2")],
    "words": [
        (r"\text{east}", "east"), (r"\text{even}", '"even"'), (r"\text{Evelyn}", "evelyn."),
        (r"\text{(C)}", "C"), (r"4\!:\!30 \text{ p.m.}", "4:30 p.m."), ("12:00", "12:00"),
    ],
    "base": [("4210_{5}", "4210_5"), ("664_7", "664")],
    "typing": [
        (r"\frac{4}{9}", r"\\frac{4}{9}"), ("-2 + 7i", "-2 + 7i."), ("-5", "\N{MINUS SIGN}5"),
        ("0.5", "the result is ½"), ("9", "Answer $ 9 $"), ("160", "160 red roses by 5 pm"),
    ],
}  # fmt: skip
DIFFERENT = {
    "percent": [(r"10\%", "0.1"), ("7500", "75")],
    "units": [("245", "24500 cents")],
    "factorial": [("5!", "5"), ("10", "10!"), ("n", "n!")],
    "words beside": [
        ("5", r"5\text{ or more}"), ("5", r"5 \text{ not}"), ("5", r"5\text{ hundred}"),
    ],
    "thousands": [("32349", "32, 349"), ("12", "(1, 2)")],
    "decimal comma": [("1.22", "1,22")],
    "rounding": [
        (r"\sqrt{65}", "8.062258"), (r"\frac{10}{11}", "0.9091"),
        (r"\frac{1}{108}", r"\frac{1}{432}"), ("5", "5.001"),
        (r"\sqrt{2}", "1.4142135623730951"), (r"40\pi", "125.663"),
        (r"[1,\infty)", r"[2^{\frac{1}{2^{1000}}}, \infty)"),
    ],
    "value": [
        (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}"), ("a + c", "a + d"),
        ("5", "2(3)"), ("x^2 + 2x - 1", "(x+1)^2"), ("3^{2025}", "2^{2025}"),
        ("x", "|x|"), ("C", r"\mathrm{C}*2"),
        ("1", r"2^{2^{2^{49}}}"), ("1/2004!", "1/2005!"),
    ],
    "order": [("(3,1)", r"\{1,3\}"), ("(2, 1)", "(1, 2)")],
    "equation": [
        ("5x - 7y + 11z + 4 = 0", "-20x + 28y - 44z - 16 = 0"), ("a + 3z = 0", "0"),
        ("2x+4y-3=0", r"y=-\frac12x+\frac34"), (r"x \geq 5", r"x \leq 5"),
    ],
    "name": [("x = 2", "y = 2"), ("x=1, y=2", "2, 1"), ("AB=4,CD=5", "5, 4")],
    "interval": [(r"(-\infty,0]", r"(-\infty,0)"), ("[0,1)", "[0,9)"), ("(1,2)", "[1,2]")],
    "words": [(r"\text{odd}", "oddd"), (r"\text{east}", "west"), ("12:00", "1:00")],
    "base": [("664_7", "664_8")],
}  # fmt: skip


def flat(table):
    return [pytest.param(*pair, id=f"{kind}: {pair}") for kind, ps in table.items() for pair in ps]


@pytest.mark.parametrize(("gold", "answer"), flat(SAME))
def test_accepted(gold, answer):
    assert grade_math(answer, gold, answer_only=True).outcome is Outcome.CORRECT


@pytest.mark.parametrize(("gold", "answer"), flat(DIFFERENT))
def test_not_accepted(gold, answer):
    assert grade_math(answer, gold, answer_only=True).reward == -1.0


@pytest.mark.parametrize(
    ("completion", "gold", "answer"),
    [
        (r"so $x = \boxed{\frac{1}{2}}$.", "1/2", r"\frac{1}{2}"),
        ("Final Answer: The final answer is $-2 + 7i.$", "-2+7i", "-2 + 7i."),
        ("The final answer is east. I hope it is correct.", r"\text{east}", "east"),
        (r"\boxed{255}. The final answer is $10,455$. I hope it is correct.", "10455", "10,455"),
        (r"we get $-\boxed{256}$", "-256", "-256"),
        (r"we get $300-\boxed{256}$", "256", "256"),
        (r"the answers are $\boxed{-2}$ and $\boxed{1}$.", "1, -2", "-2, 1"),
        (r"\boxed{10} and then \boxed{42}", "42", "42"),
        (r"This yields \boxed{x+11} or \boxed{11+x}.", "11+x", "x+11, 11+x"),
        (r"\boxed{5} fits, so our answer is correct.", "5", "5"),
        ("Final Answer: The largest $n$ is 34.", "34", "34"),
        ("Therefore, the distance on the map is $15.975$ inches.", r"\frac{639}{40}", "15.975"),
    ],
)  # fmt: skip
def test_which_answer_of_a_solution_counts(completion, gold, answer):
    grade = grade_math(completion, gold)
    assert (grade.outcome, grade.answer) == (Outcome.CORRECT, answer)


@pytest.mark.parametrize(
    "completion",
    [
        r"and so on: 1, 2, 3, $\frac{1}{2}$, $\frac{1}{2}$, and so on without an end",
        r"We have that $1 - \frac12 = \frac12$.",
        r"\boxed{\frac{1}{2}",
        r"<think>It is \boxed{\frac12}.</think> I do not know.",
        r"<think>It is \boxed{\frac12}.",
    ],
)
def test_text_that_happens_to_hold_the_answer_does_not_announce_it(completion):
    assert grade_math(completion, r"\frac{1}{2}").outcome is Outcome.UNPARSEABLE


def test_a_gold_that_the_parser_cannot_read_rewards_only_its_own_text():
    gold = r"\frac{1}{2}{\sqrt}^^"
    assert grade_math(f"\\boxed{{{gold}}}", gold).reward == 1.0
    assert grade_math(r"\boxed{\frac{1}{2}}", gold).reward is None
    for empty in ("", " ", "$$", r"\boxed{}"):
        grade = grade_math(r"\boxed{}", empty)
        assert (grade.outcome, grade.reward) == (Outcome.GOLD_UNPARSEABLE, None)


def test_values_are_equal_at_every_point_and_digit():
    import sympy

    x = sympy.Symbol("x", real=True)
    assert same_value((x + 1) ** 2, x**2 + 2 * x + 1)
    assert not same_value((x + 1) ** 2, x**2 + 2 * x + 1 + sympy.Rational(1, 10**20))
    # Denesting: sqrt(5 + 2 sqrt 6) = sqrt 2 + sqrt 3: square both sides.
    assert same_value(sympy.sqrt(5 + 2 * sympy.sqrt(6)), sympy.sqrt(2) + sympy.sqrt(3))
    # Ramanujan: exp(pi sqrt 163) misses a whole number by less than 1e-12.
    almost = 640320**3 + 744
    assert not same_value(sympy.exp(sympy.pi * sympy.sqrt(163)), sympy.Integer(almost))
