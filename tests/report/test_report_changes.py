"""What changed by problem, the weight of examples, and several runs in one report."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from make_run import make_run
from report_page import parse

from topr.config.recipe import Recipe
from topr.evaluation import compare
from topr.records import EvalResult
from topr.report import write_report
from topr.report.changes import changes, chosen, solved
from topr.report.datasets import baseline_of, train_section
from topr.report.folders import Stage
from topr.report.read import read_run
from topr.report.weights import weigher


def result(*rows: tuple[str, int, int | None]) -> EvalResult:
    return EvalResult(
        name="m", iteration=0, model="", split="test", metrics={},
        per_problem=tuple(
            {"problem_id": name, "samples": 4, "correct": correct, "greedy": greedy}
            for name, correct, greedy in rows
        ),
    )  # fmt: skip


BEFORE = result(("a", 0, 0), ("b", 4, 1), ("c", 2, 1), ("d", 1, 0), ("e", 1, 0))
AFTER = result(("a", 4, 1), ("b", 1, 0), ("c", 2, 1), ("d", 2, 0), ("e", 2, 1))


def test_problems_are_counted_by_what_became_of_them(whole_run):
    run = replace(read_run(whole_run), evaluations={"x": BEFORE, "y": AFTER}, pairs=(("x", "y"),))
    (found,) = changes(run)
    assert (found.gained, found.lost, found.right, found.wrong) == (2, 1, 1, 1)
    assert found.moved == pytest.approx((1 - 0.75 + 0 + 0.25 + 0.25) / 5)
    assert found.address("gained") == "#show=y&next=x&change=gained"
    (other,) = changes(replace(run, pairs=(("y", "x"),)))
    assert (other.gained, other.lost) == (1, 2)


def test_solved_goes_by_the_greedy_answer_else_by_most_samples():
    found = solved(result(("a", 4, 0), ("b", 2, None), ("c", 3, None), ("d", None, 1)))
    assert found == {"a": (False, 1.0), "b": (False, 0.5), "c": (True, 0.75)}


def test_the_page_holds_the_first_problems_and_those_that_changed():
    assert chosen([BEFORE, AFTER], 1) == ["a", "b"]  # a is first and gained most, b was lost
    assert chosen([BEFORE, AFTER], 2) == ["a", "b", "e"]
    assert chosen([AFTER], 2) == ["a", "b"]
    assert chosen([], 2) == []


def test_the_page_counts_changes_of_every_iteration(page, whole_run):
    run = read_run(whole_run)
    assert run.pairs == (
        ("base", "topr · iteration 2"), ("base", "topr · iteration 1"),
        ("topr · iteration 1", "topr · iteration 2"), ("sft", "topr · iteration 2"),
        ("reinforce", "topr · iteration 2"),
    )  # fmt: skip
    for found in changes(run):
        total = found.gained + found.lost + found.right + found.wrong
        assert total == 48
    assert "topr · iteration 1 → topr · iteration 2" in page.text


def example(reward: float, *ratios: float) -> dict:
    behavior = [-1.0] * len(ratios)
    policy = [mu + ratio for mu, ratio in zip(behavior, ratios, strict=True)]
    return {"reward": reward, "behavior_logprobs": behavior, "policy_logprobs": policy}


def test_a_positive_weighs_one_and_a_negative_its_tapered_ratio():
    weigh = weigher({"objective": "topr"}, -0.3)
    assert weigh(example(1.0, -2.0)) == (1.0, "positive: always 1")
    weight, why = weigh(example(-1.0, -1.0, -0.5))
    assert weight == pytest.approx(math.exp(-1.5))
    assert why == "negative: ρ = e^−1.50, tapered to [0, 1]"
    assert weigh(example(-1.0, 3.0))[0] == 1.0
    assert weigh({**example(-1.0, 1.0), "reward": None}) is None


def test_other_objectives_weigh_as_they_do_or_say_nothing():
    assert weigher({"objective": "sft"}, 0.0)(example(-1.0, -1.0)) == (0.0, "negative: always 0")
    assert weigher({"objective": "reinforce"}, 0.0)(example(-1.0, -5.0))[0] == 1.0
    steep = weigher({"objective": "steep_topr"}, 0.0)(example(-1.0, -1.0))
    assert steep[0] == pytest.approx(math.exp(-2.0))
    limits = {"objective": "taper", "taper": {"positive": [0.5, 2.0], "negative": [0.0, 1.0]}}
    assert weigher(limits, 0.0)(example(1.0, 9.0))[0] == 2.0
    for name in ("grpo", "dpo", "roll_topr", "of_another_version", ""):
        assert weigher({"objective": name}, 0.0) is None


@pytest.mark.parametrize(
    ("main", "other", "weight"),
    [
        ({"objective_args": {"level": "geometric"}}, {"objective": "tis"}, math.exp(-2)),
        ({"objective_args": {"level": "geometric"}}, {"learning_rate": 1e-4}, math.exp(-1)),
        (
            {"objective": "taper", "taper": {"positive": [1, 1], "negative": [0.5, 0.5]}},
            {"objective": "topr"},
            math.exp(-2),
        ),
    ],
)
def test_a_comparison_weighs_as_it_was_trained(main, other, weight):
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "task": {"name": "arithmetic"},
            "train": main,
            "compare": {"b": {"train": other}},
        }
    ).model_dump(mode="json")
    stage = Stage("b", "b", 1, Path(), comparison=True)
    weigh = weigher(train_section(stage, recipe), baseline_of(stage, recipe, None))
    assert weigh(example(-1.0, -1.0, -1.0))[0] == pytest.approx(weight)


def test_a_comparison_that_cannot_be_derived_has_no_weight():
    stage = Stage("b", "b", 1, Path(), comparison=True)
    for recipe in ({"train": {"objective": "topr"}}, {"compare": {"b": 3}, "unknown": 1}):
        assert weigher(train_section(stage, recipe), baseline_of(stage, recipe, None)) is None
    assert weigher({"objective": "topr", "objective_args": [1]}, 0.0) is None


def test_the_examples_of_a_run_have_weights(page):
    source = next(
        s for s in page.data["sources"] if s["label"] == "topr · iteration 1, training examples"
    )
    found = [c for p in source["problems"] for c in p["completions"]]
    assert {c["weight"] for c in found if c["reward"] > 0} == {1.0}
    assert all(0 <= c["weight"] <= 1 and "negative" in c["why"] for c in found if c["reward"] < 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    given = {"problems": 60, "steps": 2, "iterations": 1, "hostile": False}
    return [
        make_run(folder / "one", seed=1, **given),
        make_run(folder / "two", seed=2, **given),
        make_run(folder / "few", seed=3, **given | {"problems": 30}),
    ]


def test_several_runs_stand_side_by_side_and_are_paired(runs, tmp_path):
    path = write_report(runs[:2], tmp_path / "two.html")
    page = parse(path.read_text(encoding="utf-8"))
    one, two = (read_run(directory).evaluations["topr"] for directory in runs[:2])
    found = next(d for d in compare(two, one) if d.metric == "pass@1")
    assert "two · topr − one · topr" in page.text
    assert f"{100 * found.difference:+.1f} points".replace("-", "−") in page.text
    for label in ("one · base", "two · base", "one · sft", "two · topr, training examples"):
        assert label in page.text
    assert page.data["pairs"][0] == ["one · topr", "two · topr"]
    assert ", on 60 problems." in page.text


def test_problems_that_changed_from_run_to_run_are_on_the_page(runs, tmp_path):
    page = parse(write_report(runs[:2], tmp_path / "two.html").read_text(encoding="utf-8"))
    one, two = (solved(read_run(directory).result) for directory in runs[:2])
    changed = {problem for problem in one if one[problem][0] != two[problem][0]}
    before, after = page.data["pairs"][0]
    assert f"{before} → {after}" in page.text
    for label in (before, after):
        (source,) = (s for s in page.data["sources"] if s["label"] == label)
        assert {p["problem_id"] for p in source["problems"]} >= changed


def test_runs_on_other_problems_are_paired_where_problems_are_the_same(runs, tmp_path):
    path = write_report([runs[0], runs[2]], tmp_path / "few.html")
    page = parse(path.read_text(encoding="utf-8"))
    assert ", on 30 problems." in page.text
    assert 'class="card"' not in path.read_text(encoding="utf-8")  # of other problems: no change


def test_the_settings_that_differ_are_listed(runs, tmp_path):
    recipe = runs[1] / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("baseline: -0.3", "baseline: -0.1", 1), encoding="utf-8")
    page = parse(write_report(runs[:2], tmp_path / "two.html").read_text(encoding="utf-8"))
    recipe.write_text(text, encoding="utf-8")
    listed = page.text.split("Settings that differ")[1].split("Resolved recipe")[0]
    assert listed.strip() == "settingonetwotrain.baseline−0.3−0.1"
