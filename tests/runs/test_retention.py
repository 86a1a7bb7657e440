"""Whose weights stay on disk: what is deleted when, and that a run resumes without it."""

import json
import shutil
from pathlib import Path

import pytest

import topr.engines.lazy
import topr.runs.loop
from tiny import save_tiny
from topr.config import ModelConfig, load_recipe
from topr.errors import ConfigError, DataError, ModelError
from topr.models.files import fingerprint
from topr.models.loading import load
from topr.models.places import identity
from topr.publish.upload import pack
from topr.runs.lineage import read_lineage
from topr.runs.loop import run
from topr.runs.recipe_checks import check_recipe
from topr.runs.retention import needed_iterations, remove_weights
from topr.store import read_manifest

COMMON = [
    "task.train_problems=4", "task.validation_problems=3", "task.test_problems=3",
    "task.warmup.hidden_size=16", "task.warmup.num_layers=1", "task.warmup.num_heads=2",
    "task.warmup.intermediate_size=16", "task.warmup.steps=30", "generate.n=4",
    "generate.max_tokens=8", "train.max_steps=2", "train.global_batch_size=8",
    "train.learning_rate=1e-2", "evaluate.n=2", "evaluate.pass_at=[1]", "evaluate.bootstrap=100",
    "evaluate.greedy=false", "grade.workers=1", "grade.truncated=grade",
    "grade.none_right=warn", "iterations=3",
]  # fmt: skip
LAST = [*COMMON, "iterations=2", "train.snapshots=[1]", "compare={sft: {train: {objective: sft}}}"]
BEST = [
    *COMMON, "compare={}", "train.behavior_logprobs=recompute", "loop.start=base", "loop.window=2",
    "loop.keep=best",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def weights(directory: Path) -> list[str]:
    """The places in a run that still have weights."""
    found = directory.rglob("*.safetensors")
    return sorted(str(path.parent.relative_to(directory)) for path in found)


def interrupted(stage: str, place: str):
    """A stage of the loop that is interrupted where it would work at a place."""
    original = getattr(topr.runs.loop, stage)

    def stopped(*given, **named):
        if any(isinstance(each, Path) and place in each.parts for each in given):
            raise KeyboardInterrupt
        return original(*given, **named)

    return stopped


def results(directory: Path) -> list:
    """What a run measured and chose, without its paths."""
    summary = json.loads((directory / "summary.json").read_text())
    for each in (*summary["models"], summary["kept"]):
        each.pop("path")
    return [summary["models"], summary["kept"], summary["comparisons"]]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        # the newest draws and is trained on; its predecessor is over when it has been evaluated
        (["loop.keep_models=last"], [{1}, {2}, {3}]),
        (["loop.keep_models=last", "train.behavior_logprobs=recompute"], [{1}, {2}, {3}]),
        # iteration 3 trains on rollouts of iterations 2 and 3, written by models 1 and 2
        (["loop.keep_models=last", "train.behavior_logprobs=recompute", "loop.window=2"],
         [{0, 1}, {1, 2}, {3}]),
        (["loop.keep_models=last", "train.behavior_logprobs=recompute", "loop.window=null"],
         [{0, 1}, {0, 1, 2}, {3}]),
        (["loop.keep_models=last", "loop.window=2"], [{1}, {2}, {3}]),  # mu is recorded
        # the best (here the first) stays beside what goes on
        (["loop.keep_models=best", "loop.keep=best"], [{1}, {1, 2}, {1}]),
    ],
)  # fmt: skip
def test_what_a_later_stage_needs_stays_until_then(changes, kept):
    recipe = load_recipe("quickstart", [*COMMON, "train.behavior_logprobs=sampler", *changes])
    assert [needed_iterations(recipe, i, best=1) for i in (1, 2, 3)] == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loop.keep_models=best"], "keep_models=best with loop.keep=last"),
        (["loop.keep_models=last", "loop.keep=best"], "keep_models=last with loop.keep=best"),
    ],
)
def test_a_run_that_would_delete_its_result_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_recipe(load_recipe("quickstart", [*COMMON, *changes]))


def test_what_stays_on_disk_changes_no_hash():
    plain, last = (
        load_recipe("quickstart", [*COMMON, *c]) for c in ([], ["loop.keep_models=last"])
    )
    assert plain.fingerprint() == last.fingerprint()
    assert plain.loop.fixed() == last.loop.fixed()


def test_only_weights_of_a_training_are_deleted_and_the_directory_says_so(tmp_path):
    model = save_tiny(tmp_path / "run/model")
    before = fingerprint(model)
    for name in ("README.md", "mine.safetensors"):
        (model / name).write_text("by hand")
    there = {path.name for path in model.iterdir()}
    before = fingerprint(model)
    size = (model / "model.safetensors").stat().st_size
    assert remove_weights(tmp_path / "run", "loop.keep_models=last") == size
    assert there - {path.name for path in model.iterdir()} == {"model.safetensors"}
    assert remove_weights(tmp_path / "run", "loop.keep_models=last") == 0
    assert identity(ModelConfig(path=str(model))) == before
    with pytest.raises(ModelError, match=r"were deleted \(loop\.keep_models=last\)"):
        load(ModelConfig(path=str(model)))


def test_killed_between_the_note_and_the_weights_the_fingerprint_is_the_old_one(
    tmp_path, monkeypatch
):
    model = save_tiny(tmp_path / "model")
    before = fingerprint(model)
    unlink = Path.unlink

    def killed(path, missing_ok=False):
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_weights(tmp_path, "loop.keep_models=last")
    assert weights(tmp_path) == ["model"]
    assert fingerprint(model) == before
    (model / "model.safetensors").write_bytes(b"half of it is gone")
    assert remove_weights(tmp_path, "loop.keep_models=last") > 0
    assert fingerprint(model) == before
    assert not weights(tmp_path)


@pytest.mark.slow
def test_the_last_model_alone_stays_and_a_finished_run_is_finished(tmp_path, monkeypatch):
    recipe = load_recipe("quickstart", LAST)
    run(recipe, tmp_path / "all")
    assert weights(tmp_path / "all") == sorted(
        f"{place}/{model}"
        for place in ("compare/sft", "iteration-01", "iteration-02")
        for model in ("model", "snapshots/step-000001")
    )
    short = load_recipe("quickstart", [*LAST, "loop.keep_models=last"])
    shutil.copytree(tmp_path / "all", tmp_path / "later")
    run(short, tmp_path / "run")
    run(short, tmp_path / "later")  # all is done, and only the disk changes
    for name in ("run", "later"):
        assert weights(tmp_path / name) == ["iteration-02/model"], name
        assert results(tmp_path / name) == results(tmp_path / "all"), name
    details = read_manifest(tmp_path / "run/iteration-01/training").details
    assert details["weights_removed"] == "loop.keep_models=last"
    assert details["made"] == fingerprint(tmp_path / "run/iteration-01/model")
    said = "\n".join(line for lines in read_lineage(tmp_path / "run").steps() for line in lines)
    assert said.count("(weights deleted: loop.keep_models=last)") == 2
    assert (tmp_path / "run/report.html").is_file()
    assert pack(tmp_path / "run").folder == tmp_path / "run/iteration-02/model"
    with pytest.raises(DataError, match="holds nothing to publish"):
        pack(tmp_path / "run/iteration-01")
    monkeypatch.setattr(topr.engines.lazy, "open_engine", None)  # no model is loaded for any of it
    before = (tmp_path / "run/summary.json").read_bytes()
    run(short, tmp_path / "run")
    assert (tmp_path / "run/summary.json").read_bytes() == before
    assert weights(tmp_path / "run") == ["iteration-02/model"]


@pytest.mark.slow
def test_interrupted_it_resumes_with_the_same_numbers(tmp_path, monkeypatch):
    run(load_recipe("quickstart", BEST), tmp_path / "all")
    recipe = load_recipe("quickstart", [*BEST, "loop.keep_models=best"])
    killed = tmp_path / "killed"
    for stage, iteration in {
        "generate_rollouts": "iteration-02",
        "train_model": "iteration-03",
        "evaluate": "iteration-03",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(topr.runs.loop, stage, interrupted(stage, iteration))
            with pytest.raises(KeyboardInterrupt):
                run(recipe, killed)
    run(recipe, killed)
    kept = json.loads((killed / "summary.json").read_text())["kept"]["iteration"]
    assert weights(killed) == ([f"iteration-0{kept}/model"] if kept else [])
    assert results(killed) == results(tmp_path / "all")
