"""A run of a model with a chat template, as a stranger starts it: how it asks, and when it stops.

The model is random: all of its answers are wrong.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from command_line import topr, write_jsonl
from tiny import save_tiny
from topr.store import read_manifest, read_table

pytestmark = pytest.mark.slow

CHANGES = (
    "task.train_file=train.jsonl", "task.test_file=test.jsonl", "task.validation_problems=0",
    "task.few_shot=0", "task.system_prompt=Be brief.", "model.path=model", "model.device=cpu",
    "generate.n=2", "generate.max_tokens=6", "generate.shard_problems=1", "grade.workers=1",
    "train.max_steps=1", "train.global_batch_size=4", "train.optim=adamw_torch",
    "evaluate.n=1", "evaluate.pass_at=[1]", "evaluate.bootstrap=100",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    save_tiny(folder / "model", chat_template=True)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {900 + i}"} for i in range(2)]
        write_jsonl(folder / f"{split}.jsonl", rows)
    (folder / "mine.yaml").write_text("task: {name: gsm8k}\n")
    return folder


@pytest.fixture(scope="module")
def stopped(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "topr", "run", "mine.yaml", "-o", "run", *CHANGES],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_prompt_is_decided_once_and_recorded(folder, stopped):
    assert "task.prompt=auto: chat, since the tokenizer of model has a chat template" in (
        stopped.stdout
    )
    assert yaml.safe_load((folder / "run/recipe.yaml").read_text())["task"]["prompt"] == "chat"
    rollouts = folder / "run/iteration-01/rollouts"
    assert read_manifest(rollouts).details["prompt"] == "chat"
    for prompt in read_table(rollouts)["prompt"].to_pylist():
        assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSolve")


def test_a_run_stops_before_it_trains_on_wrong_completions_alone(folder, stopped):
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    error = stopped.stderr.partition("error:")[2]
    for told in (
        "so training would see wrong ones alone",
        "reached the token limit",
        "gsm8k-train-0000",
        "warn",
    ):
        assert told in error, told
    # The first of two shards had told it.
    assert "a look at the first completions" in stopped.stderr
    assert not (folder / "run/iteration-01/dataset").exists()
    assert "truncated 100.0%: most reached the token limit" in stopped.stdout


def test_told_to_it_goes_on_from_there(folder, stopped):
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "run/iteration-01").rglob("part-*")
    }
    done = topr(folder, "run", "mine.yaml", "-o", "run", *CHANGES, "grade.none_right=warn")
    assert "topr (iteration 1): pass@1" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # A finished run is not stopped after the fact.
    topr(folder, "run", "mine.yaml", "-o", "run", *CHANGES)


def test_a_plain_prompt_for_a_chat_model_is_warned_of(folder):
    plain = [change for change in CHANGES if not change.startswith("task.system_prompt")]
    done = topr(folder, "generate", "mine.yaml", "-o", "plain", *plain, "task.prompt=plain")
    assert "warning: the prompts are plain text" in done.stderr
    (first, *_) = read_table(folder / "plain")["prompt"].to_pylist()
    assert first.endswith("\nAnswer:")
