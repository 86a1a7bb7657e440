"""`--overwrite` removes what topr made, and leaves everything else."""

import os
from pathlib import Path

import pytest

from tiny_rollouts import tiny_rollout
from topr.errors import RunDirectoryError
from topr.runs.replacing import removable, remove
from topr.store import locked, read_table, rollouts_to_table, write_shard
from topr.store.shards import write_columns
from topr.verifier.task import PROMPT_FILE

RUN = (
    "recipe.yaml", "environment.json", "summary.json", "metrics.jsonl", "report.html", ".lock",
    "iteration-00/evaluation.json", "iteration-00/evaluation/manifest.json",
    "iteration-01/rollouts/part-00000.parquet", "iteration-01/rollouts/.part-00001.parquet.tmp",
    "iteration-01/training/checkpoint-40/trainer_state.json",
    "iteration-01/training/checkpoint-40/global_step40/of_any_name.pt",
    "iteration-01/training/log.jsonl", "iteration-01/training/started.json",
    "iteration-01/model/model-00001-of-00002.safetensors", "iteration-01/model/config.json",
    "iteration-01/snapshots/step-000005/model.safetensors", "iteration-01/adapter/README.md",
    "iteration-01/adapter/adapter_config.json", "iteration-01/model/spiece.model",
    "iteration-01/.model.tmp/config.json", "iteration-02/validation/evaluation.json",
    "compare/sft/training/manifest.json", "candidates/graded/part-00000.parquet",
    "verifier/recipe.yaml", "verifier/votes.json", "verifier/base/votes.json",
    "verifier/scored/metrics.json", "verifier/base/scored/checks/part-00000.parquet",
    f"verifier/iteration-01/model/{PROMPT_FILE}",
)  # fmt: skip
RECIPE = "{iterations: 2, compare: {sft: {}}, verifier: {iterations: 1}}"


def written(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECIPE if name == "recipe.yaml" else "{}", encoding="utf-8")
    return directory


def test_all_of_a_run_is_removed_but_its_lock(tmp_path):
    run = written(tmp_path / "run", *RUN)
    (run / "iteration-02/snapshots").mkdir()
    remove(run, removable(run))
    assert [path.name for path in run.rglob("*")] == [".lock"]


@pytest.mark.parametrize(
    "own",
    [
        "notes.md", "README.md", "iteration-01/model/notes.txt", "mine.safetensors",
        "iteration-01/rollouts/notes.txt", "data/problems.jsonl", ".git/config", "model/train.py",
        # of topr's names, at places where topr does not write them
        "data/part-00000.parquet", "my-sft/checkpoint-500/thesis.tex", "checkpoint-1/.git/config",
        "other-project/results.json", "notes/report.html", "backup/recipe.yaml", "cell.json",
        "model/config.json", ".cache.tmp/secret", "iteration-01/training/checkpoint-40/thesis.tex",
        "iteration-01-backup/dataset/part-00000.parquet", "iteration-01/model/README.md",
        # of another command of topr: the recipe names neither
        "iteration-03/model/config.json", "compare/mine/model/config.json",
        "seed-0/topr-1e-06/recipe.yaml",
    ],
)  # fmt: skip
def test_a_file_that_topr_did_not_make_keeps_everything(own, tmp_path):
    run = written(tmp_path / "run", *RUN, own)
    with pytest.raises(RunDirectoryError, match=rf"did not make \({own}\)"):
        removable(run)


def test_a_card_that_was_edited_is_somebodys_own(tmp_path):
    run = written(tmp_path / "run", *RUN)
    card = run / "iteration-01/adapter/README.md"
    later = card.with_name("adapter_config.json").stat().st_mtime_ns + 1
    os.utime(card, ns=(later, later))
    with pytest.raises(RunDirectoryError, match="did not make"):
        removable(run)


def test_a_run_in_a_run_is_another_one(tmp_path):
    run = written(tmp_path / "run", *RUN)
    written(run / "x", *RUN)
    with pytest.raises(RunDirectoryError, match="did not make"):
        removable(run)


def test_what_another_process_writes_is_kept(tmp_path):
    run = written(tmp_path / "run", *RUN, "iteration-01/training/.lock")
    files = removable(run)
    with locked(run / "iteration-01/training"):
        for call in (lambda: removable(run), lambda: remove(run, files)):
            with pytest.raises(RunDirectoryError, match="another process"):
                call()
    assert all(path.exists() for path in files)


def test_a_study_is_removed_with_its_own_cells_alone(tmp_path):
    names = ("environment.json", "results.json", "final.png", "sweep/draws-0a1b2c3d/cell.json")
    study = written(tmp_path / "study", *names, "seed-0/topr-1e-06/recipe.yaml")
    (study / "recipe.yaml").write_text("arms: {topr: {}}")
    assert len(removable(study)) == len(names) + 2
    added = written(study, "seed-0/Mine-1e-06/cell.json") / "seed-0/Mine-1e-06/cell.json"
    with pytest.raises(RunDirectoryError, match="Mine-1e-06"):
        removable(study)
    added.write_text('{"cell": {"arm": "Mine", "rate": 1e-6}}')
    assert added in removable(study)
    written(study, "seed-0/topr-1e-06-copy/recipe.yaml")
    with pytest.raises(RunDirectoryError, match=r"topr-1e-06-copy/recipe\.yaml"):
        removable(study)


def test_a_training_is_removed_and_a_run_beside_it_is_not(tmp_path):
    names = ("training/manifest.json", "training/log.jsonl", "model/config.json", "report.html")
    home = tmp_path / "trained"
    begun = written(home, *names[1:], "training/started.json")
    assert len(removable(begun)) == len(names)
    written(begun, "iteration-01/rollouts/part-00000.parquet")
    with pytest.raises(RunDirectoryError, match="iteration-01"):
        removable(begun)


def test_a_link_is_not_followed_and_keeps_everything(tmp_path):
    elsewhere = written(tmp_path / "elsewhere", "part-00000.parquet")
    run = written(tmp_path / "run", *RUN)
    (run / "iteration-02/rollouts").symlink_to(elsewhere)
    with pytest.raises(RunDirectoryError, match="iteration-02/rollouts"):
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


def test_what_is_read_by_way_of_another_directory_is_not_removed(tmp_path):
    """graded/ leaves its completions where they were drawn; an adapter, its model."""
    run = written(tmp_path / "run", "recipe.yaml", "environment.json")
    source = write_shard(run / "iteration-01/rollouts", 0, rollouts_to_table([tiny_rollout()]))
    graded = tmp_path / "graded"
    write_columns(graded, source, read_table(source), ["grade", "reward", "answer"])
    for read in (graded, graded / source.name):
        with pytest.raises(RunDirectoryError, match=r"is read .*by way of .*part-00000\.parquet"):
            removable(run, [str(read)])
    written(run, "iteration-01/model/config.json")
    adapter = written(tmp_path / "adapter", "adapter_config.json")
    base = run / "iteration-01/model"
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    with pytest.raises(RunDirectoryError, match=r"is read .*by way of .*model"):
        removable(run, [str(adapter)])
    assert removable(run, [str(tmp_path / "none"), "builtin", "Think. " * 1000, "~nobody/x", "\0"])


def test_an_empty_directory_and_none_hold_nothing(tmp_path):
    assert removable(tmp_path) == removable(tmp_path / "none") == []
