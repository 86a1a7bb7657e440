"""`--overwrite` removes what topr made, and leaves everything else; where a run continues."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from topr.errors import RunDirectoryError
from topr.runs.continuing import continues_from
from topr.runs.replacing import removable, remove

RUN = (
    "recipe.yaml", "environment.json", "summary.json", "metrics.jsonl", "report.html", ".lock",
    "iteration-00/evaluation.json", "iteration-00/evaluation/manifest.json",
    "iteration-01/rollouts/part-00000.parquet", "iteration-01/rollouts/.part-00001.parquet.tmp",
    "iteration-01/training/checkpoint-40/trainer_state.json",
    "iteration-01/training/checkpoint-40/global_step40/of_any_name.pt",
    "iteration-01/training/log.jsonl", "iteration-01/training/started.json",
    "iteration-01/model/model-00001-of-00002.safetensors", "iteration-01/model/config.json",
    "iteration-01/snapshots/step-000005/model.safetensors", "iteration-01/adapter/README.md",
)  # fmt: skip


def written(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    return directory


def test_all_of_a_run_is_removed_but_its_lock(tmp_path):
    run = written(tmp_path / "run", *RUN)
    remove(run, removable(run))
    assert [path.name for path in run.rglob("*")] == [".lock"]


@pytest.mark.parametrize(
    "own",
    [
        "notes.md", "README.md", "iteration-01/model/notes.txt", "mine.safetensors",
        "iteration-01/rollouts/notes.txt", "data/problems.jsonl", ".git/config", "model/train.py",
    ],
)  # fmt: skip
def test_a_file_that_topr_did_not_make_keeps_everything(own, tmp_path):
    run = written(tmp_path / "run", *RUN, own)
    with pytest.raises(RunDirectoryError, match=rf"did not make \({own}"):
        removable(run)


def test_a_link_is_not_followed_and_keeps_everything(tmp_path):
    elsewhere = written(tmp_path / "elsewhere", "part-00000.parquet")
    run = written(tmp_path / "run", *RUN)
    (run / "iteration-02").symlink_to(elsewhere)
    with pytest.raises(RunDirectoryError, match="iteration-02"):
        removable(run)


@pytest.mark.parametrize("names", [("recipe.yaml",), ("model/model.safetensors",), ("a.txt",)])
def test_a_directory_that_is_no_run_is_left_alone(names, tmp_path):
    with pytest.raises(RunDirectoryError, match="nothing that topr knows"):
        removable(written(tmp_path / "other", *names))


def test_what_is_read_is_not_removed(tmp_path, monkeypatch):
    written(tmp_path / "run", *RUN)
    monkeypatch.chdir(tmp_path)
    model = "run/iteration-01/model"
    with pytest.raises(RunDirectoryError, match=f"{model} is read"):
        removable(Path("run"), ["builtin", model])


def test_an_empty_directory_and_none_hold_nothing(tmp_path):
    assert removable(tmp_path) == removable(tmp_path / "none") == []


def started(folder: Path, stage: str) -> None:
    written(folder, "part-00000.parquet")
    (folder / "started.json").write_text(json.dumps({"stage": stage, "fingerprint": "v1:0"}))


def test_the_first_line_says_where_a_run_continues(tmp_path):
    run = written(tmp_path / "run", "recipe.yaml", "environment.json")
    assert continues_from(run) is None
    started(run / "iteration-00/evaluation", "evaluate")
    assert continues_from(run).endswith("run: the starting model, evaluation")
    (run / "iteration-00/evaluation/started.json").unlink()
    training = run / "iteration-02/training"
    started(training, "train")
    assert continues_from(run).endswith("run: iteration 2, training")
    for step in (20, 40, 60):
        checkpoint = training / f"checkpoint-{step}"
        checkpoint.mkdir()
        state = {"global_step": step, "max_steps": 100}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        if step < 60:  # its writer was killed
            (checkpoint / "complete").touch()
    assert continues_from(run).endswith("run: iteration 2, training, step 40 of 100")
    (training / "started.json").unlink()
    started(run / "compare/sft/training", "train")
    assert continues_from(run).endswith("run: comparison sft, training")
    written(run, "summary.json")
    assert "is finished" in continues_from(run)


def overwriting(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "topr", "train", "rows.jsonl", "-m", "none", "-o", "run"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, text=True, check=False, capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_it_asks_on_a_terminal_and_refuses_without_one(tmp_path):
    rows = [{"prompt": "1+1=", "completion": "2", "reward": 1.0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = written(tmp_path / "run", *RUN)
    alone = overwriting(tmp_path, "--yes", stdin=subprocess.DEVNULL)
    assert "--yes belongs to --overwrite" in alone.stderr
    unasked = overwriting(tmp_path, "--overwrite", stdin=subprocess.DEVNULL)
    assert unasked.returncode == 1
    assert "no terminal" in unasked.stderr
    assert "--yes" in unasked.stderr
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    no = overwriting(tmp_path, "--overwrite", stdin=theirs)
    assert no.returncode == 1
    assert f"Remove {len(RUN) - 1} files" in no.stdout
    assert (run / "summary.json").is_file()
    os.write(ours, b"y\n")
    yes = overwriting(tmp_path, "--overwrite", stdin=theirs)
    assert "none" in yes.stderr, "there is no such model"
    assert not (run / "summary.json").exists()
