"""Iterations that start from the base, train on a window of datasets, and keep the best model."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from topr.cli import app
from topr.cli.running import _verdict
from topr.config import load_recipe
from topr.errors import ConfigError, DataError, ToprError
from topr.models.files import fingerprint
from topr.runs.lineage import read_lineage
from topr.runs.loop import run
from topr.runs.recipe_checks import _check_adapter, check_recipe
from topr.store import read_manifest, read_table
from topr.training.mapped_rows import map_rows

pytestmark = pytest.mark.slow

OVERRIDES = [
    "task.train_problems=6", "task.validation_problems=4", "task.test_problems=4",
    "task.warmup.hidden_size=16", "task.warmup.num_layers=1", "task.warmup.num_heads=2",
    "task.warmup.intermediate_size=16", "task.warmup.steps=30", "generate.n=4",
    "generate.max_tokens=12", "train.max_steps=3", "train.global_batch_size=8",
    "train.learning_rate=1e-2", "evaluate.n=2", "evaluate.pass_at=[1,2]",
    "evaluate.bootstrap=100", "grade.workers=1", "grade.none_right=warn",
    "grade.truncated=grade", "compare={}",
    "iterations=3",
    "loop={start: base, window: 2, keep: best}", "train.behavior_logprobs=recompute",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(folder / "cache"))
        run(load_recipe("quickstart", OVERRIDES), folder / "run")
    return folder / "run"


def details(done: Path, iteration: int) -> dict:
    return read_manifest(done / f"iteration-{iteration:02d}/training").details


def test_each_iteration_trains_from_the_base_on_its_window(done):
    base = details(done, 1)["revision"]
    assert [details(done, i)["revision"] for i in (1, 2, 3)] == [base] * 3
    assert [details(done, i)["datasets"] for i in (1, 2, 3)] == [
        ["dataset"],
        ["../iteration-01/dataset", "dataset"],
        ["../iteration-02/dataset", "dataset"],
    ]
    made = [details(done, i)["made"] for i in (1, 2, 3)]
    assert details(done, 1)["written_by"] == {base: 24}
    assert details(done, 2)["written_by"] == {base: 24, made[0]: 24}
    assert details(done, 3)["written_by"] == {made[0]: 24, made[1]: 24}
    assert made[2] == fingerprint(done / "iteration-03/model")


def test_log_mu_is_recomputed_with_the_model_that_wrote_the_row(done):
    # Iteration 3 trains the base on what two later models wrote: none of its rows is its own.
    for iteration in (1, 2, 3):
        assert details(done, iteration)["behavior_gap"]["behavior_gap/sequence_max"] < 1e-3
    cached = sorted((done / "iteration-03/training").glob("behavior-logprobs-*.arrow"))
    assert len(cached) == 2  # one per model
    recomputed = [v for path in cached for v in map_rows(path)["behavior_logprobs"].to_pylist()]
    written = [value for i in (2, 3) for value in _logprobs(done / f"iteration-{i:02d}/dataset")]
    sums = sorted(float(np.sum(value)) for value in recomputed)
    assert sums == pytest.approx(sorted(float(np.sum(value)) for value in written), abs=1e-3)


def _logprobs(folder: Path) -> list[list[float]]:
    return read_table(folder, ["logprobs"])["logprobs"].to_pylist()


def test_the_best_iteration_is_kept_by_validation_problems_alone(done):
    summary = json.loads((done / "summary.json").read_text())
    kept = summary["kept"]
    found = [
        json.loads((done / f"iteration-{i:02d}/validation/evaluation.json").read_text())
        for i in range(4)
    ]
    assert {each["split"] for each in found} == {"validation"}
    scores = [each["metrics"]["pass@1"] for each in found]
    assert kept["validation"] == scores
    assert kept["iteration"] == scores.index(max(scores))
    assert {model["split"] for model in summary["models"] if "split" in model} <= {"test"}
    assert len(summary["models"]) == 4


def test_the_lineage_names_every_model(done):
    lineage = read_lineage(done)
    assert [lineage.name(r.revision) for r in lineage.rollouts] == [
        "base", "iteration-01", "iteration-02",
    ]  # fmt: skip
    assert [t.datasets for t in lineage.trainings][2] == (
        "iteration-02/dataset",
        "iteration-03/dataset",
    )
    printed = CliRunner().invoke(app, ["lineage", str(done)])
    assert printed.exit_code == 0
    assert "completions 24 by iteration-01, 24 by iteration-02" in printed.output
    assert "adamw_torch (fresh state), rate 0.01" in printed.output
    as_json = CliRunner().invoke(app, ["lineage", str(done), "--json"])
    assert (
        json.loads(as_json.output)["trainings"][0]["started_from"] == details(done, 1)["revision"]
    )


def test_a_directory_without_a_run_has_no_lineage(tmp_path):
    with pytest.raises(DataError, match="holds no run that has drawn rollouts"):
        read_lineage(tmp_path)


def test_what_the_window_makes_impossible_is_refused():
    recipe = load_recipe("quickstart", [*OVERRIDES, "train.objective=grpo", "train.baseline=null"])
    assert recipe.train.global_batch_size == 8
    check_recipe(recipe)  # 2 iterations of 4 completions of a problem fit
    wider = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"window": None})})
    with pytest.raises(ConfigError, match="with up to 12 completions of a problem"):
        check_recipe(wider)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lora={merge: false}", "loop={}"], "an adapter on an adapter"),
        (["train.lora={merge: false}", "generate.engine=ray"], None),
        (["train.lora={quantize: 4bit}"], "needs the package bitsandbytes and a CUDA device"),
    ],
)
def test_what_an_adapter_makes_impossible_is_refused_before_anything_is_drawn(overrides, message):
    recipe = load_recipe(
        "quickstart", [*OVERRIDES, "loop={start: base}", "model.device=cpu", *overrides]
    )
    if message is None:
        check_recipe(recipe)
        return
    with pytest.raises(ToprError, match=message):
        check_recipe(recipe)


def test_an_engine_that_is_given_a_whole_model_is_not_given_an_adapter():
    recipe = load_recipe("quickstart", ["train.lora={merge: false}"])
    _check_adapter(recipe, recipe.train)
    served = recipe.generate.model_copy(update={"engine": "server"})
    with pytest.raises(ConfigError, match="server is given a whole model"):
        _check_adapter(recipe.model_copy(update={"generate": served}), recipe.train)


def test_a_run_whose_base_is_kept_says_so_and_compares_nothing():
    models = [
        {"name": "base", "iteration": 0, "pass@1": 0.5, "pass@1_ci": (0.4, 0.6)},
        {"name": "topr", "iteration": 1, "pass@1": 0.3, "pass@1_ci": (0.2, 0.4)},
    ]
    lines = _verdict({"comparisons": [], "models": models, "alarms": []})
    assert lines == [
        "base (iteration 0): pass@1 50.0% [40.0%, 60.0%]",
        "topr (iteration 1): pass@1 30.0% [20.0%, 40.0%]",
    ]
