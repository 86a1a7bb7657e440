"""The main job through the real command line: run, interruption in every stage, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import listens_to_interrupts
from topr.store import read_table

# A run that takes every path in seconds: tiny base, few problems, several shards and checkpoints.
OVERRIDES = [
    "task.train_problems=6", "task.test_problems=4", "task.warmup.hidden_size=16",
    "task.warmup.num_layers=1", "task.warmup.num_heads=2", "task.warmup.intermediate_size=16",
    "task.warmup.steps=30", "generate.n=4", "generate.max_tokens=12", "generate.shard_problems=1",
    # 24 completions are 3 steps an epoch: the last step is in the middle of one.
    "train.max_steps=11", "train.global_batch_size=8", "train.save_steps=2", "evaluate.n=2",
    "evaluate.pass_at=[1,2]", "evaluate.bootstrap=100", "grade.workers=1", "grade.none_right=warn",
    "compare={sft: {train: {objective: sft, max_steps: 2}}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "topr", *map(str, arguments)]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "TOPR_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def topr(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(cache), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "straight"
    done = topr(cache, "run", "quickstart", "-o", directory, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("base (iteration 0): pass@1") for line in lines)
    assert any(line.startswith("topr (iteration 1): pass@1") for line in lines)
    assert any(line.startswith("topr - sft: pass@1") for line in lines)
    heads = [line for line in lines if line.strip("┃ ").startswith("model ")]
    assert len(heads) == 1, "one table of results"
    return directory


@pytest.mark.slow
def test_a_run_leaves_what_it_says(straight):
    summary = json.loads((straight / "summary.json").read_text())
    assert [(m["name"], m["iteration"]) for m in summary["models"]] == [
        ("base", 0), ("topr", 1), ("sft", 1),
    ]  # fmt: skip
    for model in summary["models"]:
        low, high = model["pass@1_ci"]
        assert 0 <= low <= model["pass@1"] <= high <= 1
        assert {"pass@2", "maj@2", "greedy", "invalid", "mean_length"} <= set(model)
    assert {(c["a"], c["b"]) for c in summary["comparisons"]} == {("topr", "base"), ("topr", "sft")}
    graded = read_table(straight / "iteration-01/graded")
    assert graded.num_rows == 24
    assert graded.column("grade").null_count == 0
    logs = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "evaluation" for line in logs) == 3
    assert sum(line["kind"] == "training" for line in logs) == 13
    assert 50_000 < (straight / "report.html").stat().st_size < 1_000_000
    assert (straight / "iteration-01/model/model.safetensors").is_file()
    left = {path.name for path in (straight / "iteration-01/training").iterdir()}
    assert left == {"log.jsonl", "probes.jsonl", "examples.parquet", "manifest.json", ".lock"}
    assert not list(straight.rglob("*.bin"))


def _is_in(stage: str, run: Path) -> bool:
    """Whether the run is in the middle of a stage, by what lies on disk."""
    first = run / "iteration-01"
    return {
        "evaluate": (run / "iteration-00/evaluation/drawn/sampled/part-00001.parquet").exists(),
        "generate": (first / "rollouts/part-00002.parquet").exists(),
        "grade": (first / "graded/part-00001.parquet").exists(),
        "train": (first / "training/checkpoint-4/complete").exists(),
        "save": (first / "model").exists(),
        "compare": (run / "compare/sft/dataset/manifest.json").exists(),
    }[stage]


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_undisturbed_numbers(straight, cache):
    killed = straight.parent / "killed"
    arguments = command("run", "quickstart", "-o", killed, *OVERRIDES)
    killed.mkdir()  # A process that was killed while it claimed the directory leaves these.
    for name in (".lock", ".recipe.yaml.tmp"):
        (killed / name).touch()
    for stage in ("evaluate", "generate", "grade", "train", "save", "compare"):
        process = subprocess.Popen(
            arguments, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=listens_to_interrupts,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not _is_in(stage, killed):
            assert process.poll() is None, f"ended before {stage}: {process.stdout.read()}"
            assert time.monotonic() < deadline, f"{stage} never came"
            time.sleep(0.002)
        # An interruption by the user in one stage, a hard kill in the others.
        process.send_signal(signal.SIGINT if stage == "generate" else signal.SIGKILL)
        process.wait(timeout=60)
        assert process.returncode == (130 if stage == "generate" else -signal.SIGKILL)
        said = process.stdout.read().decode()
        assert ("the same command resumes here" in said) == (stage == "generate")
        assert (f"continues from {killed}: " in said) == (stage != "evaluate")
        if stage == "save":
            assert re.search(r"iteration 1, training, step (4|6|8|10) of 11", said)
        process.stdout.close()
        assert not (killed / "summary.json").exists()
    done = topr(cache, "run", "quickstart", "-o", killed, *OVERRIDES)
    assert done.returncode == 0, done.stderr

    def numbers(run: Path) -> list[dict]:
        models = json.loads((run / "summary.json").read_text())["models"]
        return [{k: v for k, v in model.items() if k != "path"} for model in models]

    assert numbers(killed) == numbers(straight)
    for part in ("iteration-01/rollouts", "iteration-01/graded", "iteration-01/dataset"):
        ours, theirs = (
            read_table(run / part).drop_columns(["model"]) for run in (killed, straight)
        )
        assert ours.equals(theirs), part
    for model in ("iteration-01", "compare/sft"):
        weights = [
            (run / model / "model/model.safetensors").read_bytes() for run in (killed, straight)
        ]
        assert weights[0] == weights[1], model


@pytest.mark.slow
def test_started_again_a_finished_run_does_nothing_and_another_recipe_is_refused(straight, cache):
    before = (straight / "iteration-01/model/model.safetensors").stat().st_mtime_ns
    again = topr(cache, "run", "quickstart", "-o", straight, *OVERRIDES)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"continues from {straight}, which has a summary")
    assert (straight / "iteration-01/model/model.safetensors").stat().st_mtime_ns == before
    other = topr(cache, "run", "quickstart", "-o", straight, *OVERRIDES, "train.learning_rate=1e-5")
    assert other.returncode == 1
    assert "train.learning_rate (0.0001 there, 1e-05 now)" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_directory_with_other_files_is_refused(tmp_path, cache):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = topr(cache, "run", "quickstart", "-o", tmp_path, *OVERRIDES)
    assert refused.returncode == 1
    assert "is not empty (thesis.tex)" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
