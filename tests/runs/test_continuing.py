"""The first line of a run that is started again says where it continues."""

import json
import shutil
from pathlib import Path

import pytest

from topr.runs.continuing import continues_from
from topr.stages.train_files import drop_checkpoints


def started(folder: Path, stage: str, name: str = "started.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part-00000.parquet").touch()
    (folder / name).write_text(json.dumps({"stage": stage, "fingerprint": "v1:0"}))


def checkpoint(training: Path, step: int, *, complete: bool = True) -> None:
    folder = training / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 100}))
    if complete:
        (folder / "complete").touch()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (run / name).write_text("{}")
    return run


def test_the_first_line_says_where_a_run_continues(run):
    assert continues_from(run) is None
    started(run / "iteration-00/evaluation", "evaluate")
    assert continues_from(run).endswith("run: the starting model, evaluation")
    (run / "iteration-00/evaluation/started.json").unlink()
    training = run / "iteration-02/training"
    started(training, "train")
    assert continues_from(run).endswith("run: iteration 2, training")
    for step in (20, 40, 60):
        checkpoint(training, step, complete=step < 60)  # the last one's writer was killed
    assert continues_from(run).endswith("run: iteration 2, training, step 40 of 100")
    (training / "started.json").unlink()
    started(run / "compare/sft/training", "train")
    assert continues_from(run).endswith("run: comparison sft, training")


def test_of_what_is_done_the_newest_is_named(run):
    started(run / "iteration-100/graded", "grade", "manifest.json")
    assert continues_from(run).endswith("run: iteration 100, after grading")


def test_what_somebody_put_there_is_not_looked_at(run):
    started(run / "iteration-01/rollouts", "generate", "manifest.json")
    said = continues_from(run)
    shutil.copytree(run / "iteration-01", run / "iteration-01-backup")
    (run / "assets").mkdir()
    for path in (run / "assets", run / "compare", run / "verifier"):
        path.mkdir(exist_ok=True)
        (path / "manifest.json").write_text('{"name": "web app"}')
        (path / "started.json").write_text("not JSON")
    assert continues_from(run) == said
    assert said.endswith("run: iteration 1, after generating")


def test_a_copy_of_a_checkpoint_is_none(run):
    training = run / "iteration-01/training"
    started(training, "train")
    checkpoint(training, 40)
    shutil.copytree(training / "checkpoint-40", training / "checkpoint-40-backup")
    assert continues_from(run).endswith("step 40 of 100")
    drop_checkpoints(training)
    assert [path.name for path in training.glob("checkpoint*")] == ["checkpoint-40-backup"]


def test_a_summary_promises_nothing_of_what_is_missing(run):
    (run / "summary.json").write_text("{}")
    assert "only what is missing is computed" in continues_from(run)
    started(run / "verifier/iteration-01/training", "train")
    assert continues_from(run).endswith("run: the verifier, training")
