"""What the report of several runs concludes: whole, half-finished, on other problems, kept 0."""

import json
from functools import cache

import pytest
from make_run import make_run

from topr.evaluation import compare
from topr.report.read import read_run
from topr.report.several import merge
from topr.report.text import as_number
from topr.report.verdict import cards, verdict

RUNS = {
    "plain": {"iterations": 1},
    "other": {"iterations": 1, "split": "validation"},
    "begun": {"iterations": 1, "finished": 0},
    "first": {"iterations": 3, "finished": 1},
    "kept 0": {"iterations": 2, "kept": 0},
    "kept 2": {"iterations": 3, "kept": 2},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a run by its name, written when it is first asked for."""
    home = tmp_path_factory.mktemp("several")

    @cache
    def written(name):
        given = {"problems": 30, "steps": 1, "hostile": False, "seed": len(name), **RUNS[name]}
        return make_run(home / name, called=name, **given)

    return written


@pytest.fixture(scope="module")
def merged(directory):
    def of(*names):
        directories = [directory(name) for name in names]
        return merge([read_run(each) for each in directories], directories)

    return of


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("plain", "topr"),
        ("begun", None),
        ("first", "topr · iteration 1"),
        ("kept 0", "base"),
        ("kept 2", "topr · iteration 2"),
    ],
)
def test_the_result_is_what_was_kept_else_the_last_trained_model(directory, name, result):
    run = read_run(directory(name))
    assert (run.end.label if run.end else None) == result


def test_one_run_is_judged_by_what_it_kept(directory):
    kept_0, kept_2 = (read_run(directory(name)) for name in ("kept 0", "kept 2"))
    assert verdict(kept_0).word == "The starting model is kept."
    assert cards(kept_0) == []
    assert kept_0.pairs[0] == ("base", "topr · iteration 2")
    found = next(d for d in kept_2.differences if d.metric == "pass@1")
    assert (found.a, found.b) == ("topr · iteration 2", "base")
    # The comparisons are of iteration 1, which is not the one that was kept.
    low, high = (f"{100 * end:.1f}" for end in found.ci)
    assert verdict(kept_2).sentence == (
        f"TOPR: +{100 * found.difference:.1f} points pass@1 over the starting model "
        f"[{low}, {high}], on 30 problems."
    )


@pytest.mark.parametrize(
    ("one", "two", "a", "b"),
    [
        ("plain", "kept 2", "kept 2 · topr · iteration 2", "plain · topr"),
        ("plain", "kept 0", "kept 0 · base", "plain · topr"),
        ("kept 0", "plain", "plain · topr", "kept 0 · base"),
        ("kept 2", "first", "first · topr · iteration 1", "kept 2 · topr · iteration 2"),
    ],
)
def test_two_results_are_compared_in_a_sentence_and_on_cards(merged, directory, one, two, a, b):
    run = merged(one, two)
    before, after = (read_run(directory(name)).result for name in (one, two))
    found = {d.metric: d for d in compare(after, before)}
    main = found["pass@1"]
    low, high = (f"{100 * end:.1f}".replace("-", "−") for end in main.ci)
    against = "over" if main.difference > 0 else "against"
    value = f"{100 * main.difference:+.1f}".replace("-", "−")
    said = verdict(run)
    assert (
        said.sentence
        == f"{a}: {value} points pass@1 {against} {b} [{low}, {high}], on 30 problems."
    )
    clear = min(main.ci) > 0 or max(main.ci) < 0
    word = "Better." if main.difference > 0 else "Worse."
    assert said.word == (word if clear else "No difference beyond chance.")
    assert (run.start.label, run.end.label) == (b, a)
    shown = {card.metric: card for card in cards(run)}
    assert "pass@1" in shown
    for metric, difference in found.items():
        if metric in shown:
            clear = min(difference.ci) > 0 or max(difference.ci) < 0
            rose = as_number(after.metrics[metric]) > before.metrics[metric]
            word = ("better" if rose else "worse") if clear else "not beyond chance"
            assert shown[metric].verdict == word, metric


@pytest.mark.parametrize("names", [("plain", "begun"), ("begun", "plain"), ("plain", "other")])
def test_without_results_on_the_same_problems_nothing_is_concluded(merged, names):
    run = merged(*names)
    assert any(d.metric == "pass@1" for d in run.differences)  # of the whole run itself
    assert verdict(run) is None
    assert cards(run) == []


@pytest.mark.parametrize(
    ("change", "compared"),
    [({"problem_id": [1]}, True), ({"majority": "x"}, False)],
)
def test_a_problem_with_odd_values_is_not_compared(merged, directory, change, compared):
    path = directory("plain") / "iteration-01" / "evaluation.json"
    text = path.read_text(encoding="utf-8")
    values = json.loads(text)
    values["per_problem"][0] |= change
    path.write_text(json.dumps(values), encoding="utf-8")
    said = verdict(merged("plain", "first"))
    path.write_text(text, encoding="utf-8")
    assert (said is not None) == compared
    assert said is None or said.sentence.endswith(", on 29 problems.")


def test_of_three_runs_one_without_a_result_takes_the_cards_and_leaves_the_sentence(merged):
    run = merged("plain", "begun", "kept 2")
    assert verdict(run).sentence.startswith("kept 2 · topr · iteration 2: ")
    assert cards(run) == []
