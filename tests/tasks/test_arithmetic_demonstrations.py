"""Flawed demonstrations: examples by hand, and shares against the numbers they are made from."""

import random
import re
from itertools import islice
from math import sqrt

import pytest

from topr.grading.numeric import grade_numeric
from topr.records import Outcome
from topr.tasks.arithmetic import demonstrations
from topr.tasks.arithmetic.demonstrations import FLAWS, STYLES, Flaw, Style, demonstration
from topr.tasks.arithmetic.problems import Kind, Operation, WordProblem, stream
from topr.tasks.base import Split

DRAWN = 8000


@pytest.fixture(scope="module")
def drawn() -> list[tuple[WordProblem, str]]:
    rng = random.Random(0)
    problems = stream(Split.TRAIN, seed=0, min_steps=2, max_steps=4)
    return [(problem, demonstration(problem, rng)) for problem in islice(problems, DRAWN)]


def assert_share(hits: int, of: int, expected: float) -> None:
    """Within 4 standard deviations of a binomial: a false alarm once in 16,000 seeds."""
    assert abs(hits / of - expected) < 4 * sqrt(expected * (1 - expected) / of)


def problem() -> WordProblem:
    return WordProblem(
        start=12,
        operations=(
            Operation(kind=Kind.GAIN, size=3),
            Operation(kind=Kind.PACKS, portions=3, size=4),
            Operation(kind=Kind.DOUBLE),
            Operation(kind=Kind.LOSE, size=5),
        ),
        name="Ann",
        things="pens",
        clauses=("buys 3 more", "buys 3 bags of 4", "doubles them", "loses 5"),
    )


def force(
    monkeypatch: pytest.MonkeyPatch,
    *,
    style: Style,
    flaw: Flaw,
    forgets: float = 0.0,
    flips: float = 0.0,
) -> set[str]:
    """All texts of 400 draws with one style, one flaw and set chances per operation."""
    monkeypatch.setattr(demonstrations, "STYLES", {style: 1.0})
    monkeypatch.setattr(demonstrations, "FLAWS", {flaw: 1.0})
    monkeypatch.setattr(demonstrations, "FORGETS", forgets)
    monkeypatch.setattr(demonstrations, "FLIPS", flips)
    rng = random.Random(0)
    return {demonstration(problem(), rng) for _ in range(400)}


CAREFUL = "12 + 3 = 15 . 3 * 4 = 12 . 15 + 12 = 27 . 27 * 2 = 54 . 54 - 5 = 49 . The answer is 49"
TERSE = "12 + 3 + 3 * 4 doubled - 5 = 49 . The answer is 49"


def test_without_flaws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert force(monkeypatch, style=Style.CAREFUL, flaw=Flaw.NONE) == {CAREFUL}
    assert force(monkeypatch, style=Style.TERSE, flaw=Flaw.NONE) == {TERSE}


def test_guesses_are_off_by_up_to_three(monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = {f"so The answer is {number}" for number in range(46, 53)}
    assert force(monkeypatch, style=Style.GUESS, flaw=Flaw.NONE) == guesses


def test_slips(monkeypatch: pytest.MonkeyPatch) -> None:
    terse = {TERSE.replace("49", answer) for answer in ("48", "50")}
    assert force(monkeypatch, style=Style.TERSE, flaw=Flaw.SLIP) == terse
    careful = force(monkeypatch, style=Style.CAREFUL, flaw=Flaw.SLIP)
    assert len(careful) == 2 * 5  # up or down, in each of five steps
    # What follows builds on the slip: one more before doubling is two more after it.
    assert (
        "12 + 3 = 15 . 3 * 4 = 13 . 15 + 13 = 28 . 28 * 2 = 56 . 56 - 5 = 51 . The answer is 51"
    ) in careful


def test_an_earlier_total_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = {f"{CAREFUL.removesuffix('49')}{total}" for total in (12, 15, 27, 54)}
    assert force(monkeypatch, style=Style.CAREFUL, flaw=Flaw.COPIED) == copies
    copies = {f"{TERSE.removesuffix('49')}{total}" for total in (12, 15, 27, 54)}
    assert force(monkeypatch, style=Style.TERSE, flaw=Flaw.COPIED) == copies


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    careful = CAREFUL.replace("The answer is 49", "I am not sure")
    assert force(monkeypatch, style=Style.CAREFUL, flaw=Flaw.UNREADABLE) == {careful}
    assert force(monkeypatch, style=Style.GUESS, flaw=Flaw.UNREADABLE) == {"I am not sure"}


def test_rambling_comes_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in force(monkeypatch, style=Style.TERSE, flaw=Flaw.RAMBLING):
        line, fillers, answer = text.split(" . ")
        assert (line, answer) == tuple(TERSE.split(" . "))
        assert 6 <= len(fillers.split()) <= 16
        assert set(fillers.split()) <= set(demonstrations.FILLERS)


def test_misread_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes one portion of four for all three, and adds 2 where it should double."""
    forgotten = "12 + 3 = 15 . 15 + 4 = 19 . 19 + 2 = 21 . 21 - 5 = 16 . The answer is 16"
    assert force(monkeypatch, style=Style.CAREFUL, flaw=Flaw.NONE, forgets=1.0) == {forgotten}
    flipped = "12 - 3 - 3 * 4 doubled + 5 = 5 . The answer is 5"  # 9 - 12 is cut to 0
    assert force(monkeypatch, style=Style.TERSE, flaw=Flaw.NONE, flips=1.0) == {flipped}
    both = "12 - 3 - 4 + 2 + 5 = 12 . The answer is 12"
    assert force(monkeypatch, style=Style.TERSE, flaw=Flaw.NONE, forgets=1, flips=1) == {both}


def test_shares_of_styles_and_of_flaws(drawn: list[tuple[WordProblem, str]]) -> None:
    texts = [text for _, text in drawn]
    unreadable = sum("The answer is" not in text for text in texts)
    assert_share(unreadable, DRAWN, FLAWS[Flaw.UNREADABLE])
    rambling = sum(not set(demonstrations.FILLERS).isdisjoint(text.split()) for text in texts)
    assert_share(rambling, DRAWN, FLAWS[Flaw.RAMBLING])
    careful = sum(re.match(r"\d+ [-+*] \d+ = ", text) is not None for text in texts)
    terse = sum(re.match(r"\d+ ([-+] \d+|doubled) [-+*d]", text) is not None for text in texts)
    assert_share(careful, DRAWN, STYLES[Style.CAREFUL])
    assert_share(terse, DRAWN, STYLES[Style.TERSE])
    assert careful + terse + sum(text[0] in "sIwhlmt" for text in texts) == DRAWN


def test_shares_of_misread_operations(drawn: list[tuple[WordProblem, str]]) -> None:
    """In careful texts a product that is not forgotten is written with a `*`, a doubling too."""
    written = of = 0
    for question, text in drawn:
        if re.match(r"\d+ [-+*] \d+ = ", text):
            written += text.count("*")
            of += sum(
                operation.kind not in (Kind.GAIN, Kind.LOSE) for operation in question.operations
            )
    assert_share(of - written, of, demonstrations.FORGETS)


def test_share_of_flipped_signs(drawn: list[tuple[WordProblem, str]]) -> None:
    """In terse texts the signs stand in the order of the clauses; forgetting adds none but for a
    doubling, so only questions without one count."""
    flipped = of = 0
    for question, text in drawn:
        doubles = any(operation.kind is Kind.DOUBLE for operation in question.operations)
        if doubles or not re.match(r"\d+ [-+] \d+ [-+*]", text):
            continue
        signs = re.findall("[-+]", text)
        for operation, sign in zip(question.operations, signs, strict=True):
            flipped += operation.sign != sign
            of += 1
    assert_share(flipped, of, demonstrations.FLIPS)


def test_the_grader_reads_what_demonstrations_say(drawn: list[tuple[WordProblem, str]]) -> None:
    """An answer is read if and only if one is stated, working or no working before it."""
    for question, text in drawn[:1000]:
        outcome = grade_numeric(text, str(question.answer)).outcome
        if "The answer is" not in text:
            assert outcome is Outcome.UNPARSEABLE
        else:
            right = text.endswith(f"The answer is {question.answer}")
            assert outcome is (Outcome.CORRECT if right else Outcome.WRONG)


def test_every_number_has_a_token(drawn: list[tuple[WordProblem, str]]) -> None:
    numbers = [int(word) for _, text in drawn for word in text.split() if word.isdigit()]
    assert min(numbers) == 0
    assert max(numbers) == demonstrations.MAX_NUMBER


def test_same_generator_same_text() -> None:
    assert demonstration(problem(), random.Random(3)) == demonstration(problem(), random.Random(3))
