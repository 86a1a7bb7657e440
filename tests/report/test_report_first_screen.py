"""What the first screen says: whether it worked, what is beyond chance, what to know first."""

from dataclasses import replace

import pytest

from topr.report.contents import Dataset, Difference, Training
from topr.report.read import read_run
from topr.report.verdict import cards, verdict, warnings


@pytest.fixture(scope="module")
def run(whole_run):
    return read_run(whole_run)


def difference(value: float, low: float, high: float, b: str = "base", **given) -> Difference:
    values = {"a": "topr · iteration 2", "metric": "pass@1", "problems": 200} | given
    return Difference(b=b, difference=value, ci=(low, high), **values)


@pytest.mark.parametrize(
    ("found", "word", "tone"),
    [
        ([difference(0.12, 0.097, 0.144)], "It worked.", "better"),
        ([difference(-0.12, -0.144, -0.097)], "It got worse.", "worse"),
        ([difference(0.06, -0.02, 0.13)], "No difference beyond chance.", "unclear"),
    ],
)
def test_one_sentence_says_whether_it_worked(run, found, word, tone):
    said = verdict(replace(run, differences=tuple(found)))
    assert (said.word, said.tone) == (word, tone)


def test_the_sentence_has_difference_interval_and_number_of_problems(run):
    found = (difference(0.301, 0.28, 0.323), difference(0.12, 0.097, 0.144, b="sft"))
    assert verdict(replace(run, differences=found)).sentence == (
        "TOPR: +30.1 points pass@1 over the starting model [28.0, 32.3], "
        "+12.0 over positives only [9.7, 14.4], on 200 problems."
    )
    one = replace(found[0], problems=1)
    assert verdict(replace(run, differences=(one,))).sentence.endswith(", on 1 problem.")
    assert verdict(replace(run, differences=())) is None


def test_only_differences_of_one_model_share_a_sentence(run):
    found = (
        difference(0.3, 0.25, 0.35),
        difference(-0.05, -0.08, -0.02, b="sft", a="topr · iteration 1"),
    )
    assert verdict(replace(run, differences=found)).sentence == (
        "TOPR: +30.0 points pass@1 over the starting model [25.0, 35.0], on 200 problems."
    )


def test_paired_differences_name_their_iterations(run, page):
    assert {(d.a, d.b) for d in run.differences} == {
        ("topr · iteration 2", "base"),
        ("topr · iteration 1", "sft"),
        ("topr · iteration 1", "reinforce"),
    }
    assert "topr · iteration 1 − sft" in page.text


def test_a_run_that_keeps_the_starting_model_says_so(run):
    said = verdict(replace(run, kept={"iteration": 0, "by": "pass@1 on validation problems"}))
    assert (said.word, said.tone) == ("The starting model is kept.", "unclear")


def test_a_card_says_better_only_beyond_chance(run):
    unclear = difference(0.06, -0.02, 0.13)
    for found, said in (
        ((unclear,), "not beyond chance"),
        ((difference(0.06, 0.01, 0.1),), "better"),
    ):
        by = {card.metric: card for card in cards(replace(run, differences=found))}
        assert by["pass@1"].verdict == said
    # No paired interval was stored of the invalid ones: intervals that do not touch are clear.
    assert {card.metric: card.verdict for card in cards(run)}["invalid"] == "better"


def test_the_cards_show_the_model_that_was_kept(run):
    first = next(m for m in run.models if m.iteration == 1 and not m.comparison)
    shown = {card.metric: card.end.value for card in cards(replace(run, end=first))}
    assert shown["pass@1"] == f"{100 * first.metrics['pass@1']:.1f}\u202f%"
    assert {card.metric: card.end.value for card in cards(run)} != shown


def test_warnings_say_what_is_wrong(run):
    assert warnings(run) == [
        line for line in warnings(run) if line.startswith("reinforce")
    ]  # nothing is wrong with the others
    alarm = {"mode": "warn", "alarms": [{"message": "step 3: <b>bad</b>"}]}
    training = Training(label="topr", log=(), probes=(), details={"watch": alarm})
    data = Dataset(
        label="sft", drawn=8, outcomes={"wrong": 8}, kept=8, positives=0, positive_share=0.0,
        baseline=0.0, effective_share=None, curation={}, drawing={},
    )  # fmt: skip
    model = replace(run.models[0], metrics={"truncated": 0.9, "unscored": 1})
    said = warnings(replace(run, trainings=(training,), datasets=(data,), models=(model,)))
    assert said == [
        "topr looks ruined: step 3: <b>bad</b>. Training continued.",
        "sft: no completion that was sampled is correct.",
        "base, iteration 0: 90% of the completions reached the token limit.",
        "base, iteration 0: 1 problem could not be scored.",
    ]
