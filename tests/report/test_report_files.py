"""Whole, partial and broken run directories; what is written, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from make_run import make_run
from report_page import parse

from topr.errors import RunDirectoryError
from topr.report import write_report
from topr.report.read import read_run
from topr.verifier.votes import METHODS

PROBLEMS, STEPS = 3, 5
PAIR = {
    "a": "topr", "a_iteration": 1, "b": "base", "b_iteration": 0, "metric": "pass@1",
    "difference": 0.1, "ci": [0.0, 0.2],
}  # fmt: skip
ROW = {"problem_id": "a", "samples": 4}
BINS = {"positive": [1, 0], "negative": [1, 0]}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", problems=PROBLEMS, steps=STEPS)


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_a_whole_run_misses_nothing_and_only_the_report_is_added(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert read_run(run).missing == ()
    path = write_report(run)
    assert path == run / "report.html"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {path}


@pytest.mark.parametrize(
    "part",
    [
        "recipe.yaml",
        "environment.json",
        "summary.json",
        "iteration-00/evaluation.json",
        "iteration-00/evaluation",
        "iteration-02/training/log.jsonl",
        "iteration-02/training/examples.parquet",
        "iteration-02/dataset",
        "compare/sft/evaluation.json",
    ],
)
def test_a_part_that_is_not_there_is_left_out_and_named(run, part):
    remove(run / part)
    assert read_run(run).missing == (part,)
    assert part in parse(write_report(run).read_text(encoding="utf-8")).text


def test_a_run_that_has_only_begun(run):
    for path in run.iterdir():
        if path.name != "recipe.yaml":
            remove(path)
    page = parse(write_report(run).read_text(encoding="utf-8"))
    assert "No model has been evaluated yet." in page.text
    assert "iteration-01/training/log.jsonl" in page.text
    assert page.data["sources"] == []


def test_without_a_summary_the_table_is_that_of_the_evaluations(run):
    whole = {(m.name, m.iteration): m.metrics["pass@1"] for m in read_run(run).models}
    remove(run / "summary.json")
    partial = {(m.name, m.iteration): m.metrics["pass@1"] for m in read_run(run).models}
    assert partial == whole


@pytest.mark.parametrize("part", ["summary.json", "recipe.yaml"])
def test_a_model_has_the_label_of_its_evaluation(run, part):
    remove(run / part)
    found = read_run(run)
    assert {model.label for model in found.models} == set(found.evaluations)
    assert found.result is found.evaluations[found.end.label]
    assert {d.a for d in found.differences} <= set(found.evaluations)


def test_a_log_line_that_is_being_written_is_no_row_yet(run):
    log = run / "iteration-01/training/log.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    (first, *_) = read_run(run).trainings
    assert len(first.log) == STEPS - 1
    write_report(run)


@pytest.mark.parametrize(
    "part",
    [
        "summary.json",
        "environment.json",
        "compare/sft/evaluation.json",
        "iteration-01/training/examples.parquet",
        "iteration-01/evaluation/part-00000.parquet",
    ],
)
@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\xff\xfe\x00", b"[1, 2]"])
def test_a_broken_file_is_named_and_the_rest_shown(run, part, content):
    (run / part).write_bytes(content)
    (missing,) = read_run(run).missing
    assert missing.startswith(part.removesuffix("/part-00000.parquet"))
    assert "cannot be read" in missing


def test_a_run_of_which_nothing_can_be_read_has_a_report(run):
    for path in run.rglob("*"):
        if path.is_file():
            path.write_bytes(b"[1, 2")
    page = parse(write_report(run).read_text(encoding="utf-8"))
    assert "No model has been evaluated yet." in page.text
    assert "recipe.yaml cannot be read" in page.text


@pytest.mark.parametrize(
    "summary",
    [
        {"models": [{"name": "<i>", "iteration": 1, "pass@1": "<b>x</b>", "pass@1_ci": 3}]},
        {"models": [None, 3, {}], "comparisons": [{"a": 1}]},
        {"models": {"name": "base"}, "comparisons": "none"},
        {"models": [{"name": "base", "iteration": 0, "pass@1": float("nan")}]},
        {"models": [{"name": "topr", "iteration": "x"}, {"name": "topr", "iteration": 10**400}]},
        {"models": [], "comparisons": None},
        {"models": [{"name": "base", "pass@²": 0.5, "pass@" + 5000 * "9": 0.5}]},
        {"models": [{"name": "base", "pass@1": 0.5}], "comparisons": [PAIR | {"a_iteration": []}]},
        {"models": [{"name": "base"}], "comparisons": [PAIR | {"difference": float("nan")}]},
    ],
)
def test_odd_values_in_the_summary_break_nothing(run, summary):
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = parse(write_report(run).read_text(encoding="utf-8"))
    assert not {"i", "b"} & {tag for tag, a in page.elements if "class" not in a}
    assert "nan" not in page.text


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("iteration-01/training/log.jsonl", {"loss": 1e308}),
        ("iteration-01/training/log.jsonl", {"loss": -1e308, "step": 2}),
        ("iteration-01/training/log.jsonl", {"loss": 10**400}),
        ("iteration-01/training/log.jsonl", {"step": 10**400}),
        ("iteration-01/training/log.jsonl", {"weight_histogram": BINS | {"positive": [1]}}),
        ("iteration-01/training/log.jsonl", {"weight_histogram": BINS | {"negative": [1, 0, 2]}}),
        ("iteration-01/training/log.jsonl", {"weight_histogram": BINS | {"positive": ["x", 0]}}),
        ("iteration-01/training/manifest.json", {"details": {"watch": "warn"}}),
        ("iteration-01/training/manifest.json", {"details": {"watch": {"alarms": [1]}}}),
        ("iteration-01/dataset/manifest.json", {"details": {"steps": [1, {"dropped": "x"}]}}),
        ("iteration-01/evaluation.json", {"per_problem": [{"correct": 1, "samples": 4}]}),
        ("iteration-01/evaluation.json", {"per_problem": [ROW | {"correct": "x"}]}),
        ("iteration-01/evaluation.json", {"per_problem": [ROW | {"correct": 10**400}]}),
        ("iteration-01/evaluation.json", {"per_problem": [ROW | {"correct": 1e308}]}),
        ("iteration-01/evaluation.json", {"per_problem": [ROW | {"correct": float("nan")}]}),
        ("iteration-01/evaluation.json", {"per_problem": [3]}),
    ],
)
def test_one_odd_value_leaves_the_rest_of_the_report(run, part, change):
    path = run / part
    text = path.read_text(encoding="utf-8")
    first, *rest = text.splitlines() if part.endswith("l") else [text]
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]), encoding="utf-8")
    page = parse(write_report(run).read_text(encoding="utf-8"))
    assert "It worked." in page.text
    assert ("iteration-01/evaluation.json cannot be read" in page.text) == ("per_problem" in change)


@pytest.mark.parametrize("change", [{"iterations": 10**12}, {"compare": {"/etc": {}, "a\0": {}}}])
def test_a_recipe_that_asks_for_odd_folders_has_a_report(run, change):
    path = run / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) | change
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert "It worked." in parse(write_report(run).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True), ({"oracle@4": None}, True), ({"majority@4": 10**400}, True),
        ({"at": [8]}, False), ({"at": 3}, False), ({"problems": "x"}, False),
        ({"best@4_ci": [0.1]}, False), ({"weighted@4 - majority": "x"}, False),
    ],
)  # fmt: skip
def test_odd_votes_are_named_and_the_rest_shown(run, change, shown):
    shutil.copytree(run, run / "verifier")
    votes = {"at": [4], "problems": 7}
    for key in (*METHODS, "weighted@4 - majority", "best@4 - majority"):
        key = key if "@" in key else f"{key}@4"
        votes |= {key: 0.5, f"{key}_ci": [0.4, 0.6]}
    text = json.dumps(votes | change)
    (run / "verifier" / "votes.json").write_text(text, encoding="utf-8")
    page = parse(write_report(run).read_text(encoding="utf-8"))
    assert ("Of 7 test problems" in page.text) == shown
    assert ("verifier/votes.json cannot be read" in page.text) != shown


def test_only_folders_with_plain_numbers_are_iterations(run):
    (run / "iteration-²").mkdir()
    (run / "iteration-x").mkdir()
    assert read_run(run).missing == ()


def test_what_is_no_run_directory_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_report_of_ours_is_replaced_and_any_other_file_refused(run, tmp_path):
    path = write_report(run)
    remove(run / "summary.json")
    assert write_report(run) == path
    assert "summary.json" in parse(path.read_text(encoding="utf-8")).text

    other = tmp_path / "thesis.html"
    other.write_text("<html>mine</html>", encoding="utf-8")
    for taken in (other, tmp_path):
        with pytest.raises(RunDirectoryError, match="is not a report of topr"):
            write_report(run, taken)
    assert other.read_text(encoding="utf-8") == "<html>mine</html>"


def test_what_was_used_in_training_goes_before_what_the_recipe_asks(run):
    first, *_ = read_run(run).datasets
    assert (first.baseline, first.effective_share) == (-0.3, 0.383)
    assert first.kept == sum(first.outcomes.values()) == first.drawn == PROBLEMS * 16
    assert first.positives == first.outcomes["correct"]
    assert first.positive_share == 0.2345
    for manifest in run.glob("**/training/manifest.json"):
        remove(manifest)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(recipe.replace("baseline: -0.3", "baseline: 0.25"))
    planned = read_run(run).datasets[0]
    assert planned.baseline == 0.25
    assert planned.positive_share == planned.positives / planned.kept


def test_one_iteration_needs_no_number_in_names(tmp_path):
    run = make_run(tmp_path / "short", iterations=1, problems=3, steps=1)
    assert [t.label for t in read_run(run).trainings] == ["topr", "sft", "reinforce"]
    write_report(run)
