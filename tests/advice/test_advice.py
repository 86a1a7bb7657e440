"""What `topr advise` counts, and what it says of it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from topr.advice import Facts, advise
from topr.advice import rules as rules_module
from topr.advice.facts import count_facts
from topr.advice.rules import Kind
from topr.cli import app
from topr.config import ModelConfig, TrainConfig, load_section
from topr.errors import DataError
from topr.objectives import share_advice
from topr.stages.train_arguments import training_arguments
from topr.training.checks import check_arguments

DOCS = Path(__file__).parents[2] / "docs"


def row(problem, reward, text="x", **more):
    return {"problem_id": f"p{problem}", "reward": reward, "completion": text} | more


def facts(**changes) -> Facts:
    """An unremarkable dataset: a fifth right, all recorded, one writer, short."""
    values = {
        "rows": 1600, "problems": 100, "completions": 16.0, "unscored": 0.0, "right": 0.2,
        "lowest": -1.0, "highest": 1.0, "values": 2, "mixed": 0.8, "none_right": 0.1,
        "truncated": 0.0, "unreadable": 0.02, "repeated": 0.0, "greedy": 0.0, "recorded": 1.0,
        "writers": ("base",), "length": 100.0, "longest": 200.0,
    }  # fmt: skip
    return Facts(**values | changes)


def said(**changes) -> dict[str, str]:
    """What is advised, and why."""
    return {line.what: line.why for line in advise(facts(**changes))}


def test_facts_by_hand():
    rows = [
        row(1, 1.0, "a", completion_ids=np.array([1, 2]), logprobs=[-1.0, -1.0], model="m"),
        row(1, -1.0, "b", completion_ids=np.array([1, 2, 3]), finish_reason="length", model="m"),
        row(1, -1.0, "b", completion_ids=np.array([1, 2, 3]), grade="unparseable", model="n"),
        row(2, 1.0, "c", completion_ids=np.array([4]), sampling={"temperature": 0.0}),
        row(3, -1.0, "c", completion_ids=np.array([4])),
        row(3, None, "d", completion_ids=np.array([5] * 10)),
    ]
    found = count_facts(rows, where="here")
    assert (found.rows, found.problems, found.completions) == (6, 3, 2.0)
    assert (found.right, found.unscored) == (pytest.approx(2 / 5), pytest.approx(1 / 6))
    assert (found.mixed, found.none_right) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    shares = (found.truncated, found.unreadable, found.repeated, found.greedy, found.recorded)
    assert shares == pytest.approx((1 / 6,) * 5)
    assert found.writers == ("m", "n")
    assert (found.lowest, found.highest, found.values, found.length) == (-1.0, 1.0, 2, 2.5)


def test_right_is_above_the_middle_of_numbers_and_lengths_may_be_unknown():
    found = count_facts([row(n, reward) for n, reward in enumerate((0.0, 0.2, 0.7, 1.0))], where="")
    assert (found.right, found.values, found.length) == (0.5, 4, None)


def test_rows_without_rewards_and_rewards_that_are_words_are_refused():
    with pytest.raises(DataError, match=r"here has 1 rows and no reward .*topr grade"):
        count_facts([row(1, None)], where="here")
    with pytest.raises(DataError, match="here, row 1: reward 'good'"):
        count_facts([row(1, 1.0), row(1, "good")], where="here")


def test_an_unremarkable_dataset_gets_settings_and_nothing_to_mend():
    lines = list(advise(facts()))
    assert {line.kind for line in lines} == {Kind.SETTING}
    assert [line.what.split("=")[0] for line in lines[:2]] == ["train.objective", "train.baseline"]


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"unscored": 0.3}, "30% of the completions have no reward", "grader"),
        ({"truncated": 0.4}, "generate.max_tokens", "cut off"),
        ({"unreadable": 0.5}, "50% have no answer", "template"),
        ({"right": 0.0, "mixed": 0.0}, "all completions are wrong", "grader"),
        ({"lowest": 0.0}, "write -1 for 0", "no weight"),
        ({"values": 4}, "train.objective=opmd", "numbers"),
        ({"values": 4, "highest": 400.0}, "divide them by their spread", "near 1"),
        ({"recorded": 0.0, "writers": ("a", "b")}, "train.objective=asymre", "2 models"),
        ({"recorded": 0.0}, "train.behavior_logprobs=recompute", "no completions"),
        ({"right": 0.02}, "share=0.2 train.lr_scheduler_type=constant_with_warmup", "c = -0.85"),
        ({"right": 0.7}, "train.effective_positive_share=0.2", "above 50 %"),
        ({"mixed": 0.1}, "only 10% of 100 problems", "in rounds"),
        ({"repeated": 0.5}, "50% are there already", "drop_duplicates"),
        ({"greedy": 0.01}, "1.0% are of temperature 0", "log mu"),
        ({"longest": 2000.0}, "one in twenty over 2000", "sequence"),
    ],
)
def test_each_fact_brings_its_line(changes, what, why):
    assert not any(what in line for line in said())
    (line,) = [line for line in said(**changes) if what in line]
    assert why in said(**changes)[line]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"right": 0.02},
        {"right": 0.06},
        {"right": 0.8},
        {"values": 4, "lowest": 0.0},
        {"values": 3},
        {"recorded": 0.0, "writers": ("a", "b"), "right": 0.02},
        {"recorded": 0.0, "writers": ("a", "b"), "right": 0.02, "completions": 1.0},
        {"values": 4, "completions": 1.0},
    ],
)
def test_the_settings_fit_together(changes):
    asked = dict(part.split("=") for part in settings(changes))
    config = load_section(TrainConfig, "train", "quickstart", settings(changes))
    args = training_arguments(config, ModelConfig(path="unused"), Path("unused"), 0)
    check_arguments(args)
    if config.effective_positive_share is not None:
        assert (changes.get("lowest", -1.0), changes.get("values", 2)) == (-1.0, 2)
    if asked["train.objective"] in ("asymre", "opmd"):
        assert facts(**changes).completions >= 2


def settings(changes) -> list[str]:
    lines = [line.what for line in advise(facts(**changes)) if line.kind is Kind.SETTING]
    return [
        part for what in lines for part in what.split() if re.fullmatch(r"train\.\w+=\S+", part)
    ]


def test_a_share_that_training_warns_of_is_not_called_good():
    for right in (0.06, 0.09, 0.51, 0.7):
        assert "train.baseline=0" not in said(right=right)
        assert share_advice(right, 0.0, right) is not None


def test_short_completions_of_different_problems_are_no_repeats():
    rows = [row(n, 1.0, f"c{n}") for n in range(100)]
    assert count_facts(rows, where="").repeated == 0
    assert count_facts([*rows, rows[7]], where="").repeated == pytest.approx(1 / 101)


def test_what_is_to_be_mended_comes_first():
    kinds = [line.kind for line in advise(facts(truncated=0.5, greedy=0.1, lowest=0.0, mixed=0.1))]
    assert kinds == sorted(kinds, key=list(Kind).index)


def test_every_source_is_a_place_in_the_documents():
    sources = set(re.findall(r'source="([^"]+)"', Path(rules_module.__file__).read_text()))
    studies = {path.name for path in (DOCS / "results").iterdir()}
    for source in sources:
        page, _, anchor = source.partition("#")
        heads = re.findall(r"^#+ (.+)$", (DOCS / page).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in slugs | studies, source


def test_the_command_takes_any_graded_file(tmp_path):
    path = tmp_path / "graded.jsonl"
    path.write_text(
        "".join(json.dumps(row(n // 4, float(n % 2), f"t{n}")) + "\n" for n in range(8))
    )
    shown = CliRunner().invoke(app, ["advise", str(path)])
    assert shown.exit_code == 0
    assert "8 completions of 2 problems, 50.0% right" in shown.output
    assert "write -1 for 0" in shown.output
    found = json.loads(CliRunner().invoke(app, ["advise", str(path), "--json"]).output)
    assert found["facts"]["problems"] == 2
    assert {"kind", "what", "why", "source"} == found["advice"][0].keys()
