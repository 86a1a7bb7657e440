"""A run whose engine is a server that topr starts for each model."""

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from command_line import write_jsonl
from servers import SCRIPT, notes
from tiny import save_tiny
from topr.config import load_recipe
from topr.errors import ConfigError
from topr.runs.loop import run
from topr.store import read_table

RECIPE: dict[str, Any] = {
    "iterations": 2,
    "task": {"name": "jsonl", "grader": "exact", "train_file": "", "test_problems": 2},
    "generate": {"engine": "server", "n": 4, "max_tokens": 16, "shard_problems": 3},
    "grade": {"workers": 1, "truncated": "grade", "none_right": "warn"},
    "train": {"max_steps": 2, "batch_size": 8, "optim": "adamw_torch"},
    "evaluate": {"n": 2, "pass_at": [1], "bootstrap": 100},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {i} ?", "answer": str(i)} for i in range(6)]
    write_jsonl(tmp_path / "problems.jsonl", rows)
    values = RECIPE | {"model": {"path": str(save_tiny(tmp_path / "base")), "device": "cpu"}}
    values["task"] = values["task"] | {"train_file": str(tmp_path / "problems.jsonl")}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def command(log: Path, *traits: str) -> str:
    words = [sys.executable, "-I", str(SCRIPT), "{port}", str(log), "of={model}", *traits]
    return f"generate.server.command={json.dumps(words)}"


def left(log: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if str(log) in (process.info["cmdline"] or ())]


@pytest.mark.slow
def test_each_model_has_its_server(recipe: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "run"
    run(load_recipe(recipe, [command(log)]), output)
    models = [note["model"] for note in notes(log) if "model" in note]
    later = [str(output / f"iteration-{i:02d}" / "model") for i in (1, 2)]
    assert models == [str(tmp_path / "base"), *later]
    assert left(log) == []
    for number, model in enumerate(models[:2], start=1):
        rollouts = read_table(output / f"iteration-{number:02d}" / "rollouts").to_pylist()
        assert {(row["engine"], row["model"]) for row in rollouts} == {("server", model)}
        assert len(rollouts) == 16


def test_a_server_without_log_probabilities_ends_the_run_before_it_draws(
    recipe: Path, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "run"
    with pytest.raises(ConfigError, match=r"set train.behavior_logprobs=recompute"):
        run(load_recipe(recipe, [command(log, "textual")]), output)
    assert [note for note in notes(log) if "seed" in note] == []
    assert left(log) == []
