"""The public face: `import topr` gives these names, loads nothing heavy, and does the work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import topr
from tiny import save_tiny

PUBLIC = {
    "OBJECTIVES", "ConfigError", "DataError", "DivergedError", "EngineError", "EvalResult",
    "FinishReason", "Grade", "GradingError", "Message", "ModelError", "Objective", "Outcome",
    "Problem", "Recipe", "Rollout", "RunDirectoryError", "SamplingParams", "TOPRConfig",
    "TOPRTrainer", "ToprError", "TrainingError", "__version__", "curate", "grade", "load_recipe",
    "make_objective", "read_rollouts", "run", "write_report",
}  # fmt: skip


def test_the_names_are_these():
    assert set(topr.__all__) == PUBLIC
    assert set(dir(topr)) >= PUBLIC
    assert all(getattr(topr, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="no_such_name"):
        topr.no_such_name  # noqa: B018


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, topr; print([m for m in ('torch', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def completions(tmp_path_factory) -> Path:
    rows = [
        {"prompt": f"{a} + 1 =", "completion": f" The answer is {a + 1 + wrong}", "gold": a + 1}
        for a in range(3)
        for wrong in (0, 1)
    ]
    rows.append({"prompt": "9 + 1 =", "completion": " The answer is 11", "gold": 10})
    path = tmp_path_factory.mktemp("face") / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_five_lines_from_completions_to_a_report(completions, tmp_path):
    save_tiny(tmp_path / "model")
    rollouts = topr.read_rollouts(completions)
    graded = topr.grade(rollouts, "numeric", workers=1)
    assert graded["reward"][:2] == [1.0, -1.0]
    assert graded["grade"][6] == "wrong"
    dataset = topr.curate(graded, ["drop_no_signal"])
    assert len(dataset) == 6  # nothing is learned from a problem that is wrong alone
    args = topr.TOPRConfig(
        str(tmp_path / "out"), behavior_logprobs="recompute", max_steps=2, report_to="none",
        per_device_train_batch_size=6, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    topr.TOPRTrainer(str(tmp_path / "model"), args, dataset).train()
    page = topr.write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "Mean log-ratio" in page
    assert "Left out of this report" not in page  # a training alone is a whole one


def test_rows_of_any_kind_are_taken(completions):
    dataset = topr.read_rollouts(completions)
    rows = [dict(row) for row in dataset]
    graded = [
        topr.grade(given, "numeric", workers=1) for given in (dataset, rows, dataset.data.table)
    ]
    assert graded[0]["reward"] == graded[1]["reward"] == graded[2]["reward"]
    chosen = topr.curate(graded[0].select([1, 0, 6]), ["positives"])
    assert chosen["completion"] == [rows[0]["completion"]]


def test_columns_may_be_missing_in_the_first_row():
    rows = [
        {"completion": "The answer is 2", "gold": 2, "problem_id": None, "prompt": "a"},
        {"completion": "The answer is 2", "gold": 2, "finish_reason": "length", "prompt": "b"},
        {"completion": "The answer is 2", "gold": "x+1", "prompt": "b"},
    ]
    graded = topr.grade(rows, "numeric", workers=1)
    assert graded["reward"][:2] == [1.0, -1.0]
    assert graded["grade"][1] == "truncated"
    rewards = [{**row, "reward": reward} for row, reward in zip(rows, (1, 1, -1), strict=True)]
    del rewards[0]["completion"]
    kept = topr.curate(rewards, ["drop_no_signal"])
    assert kept["prompt"] == ["b", "b"]  # without problem_id, prompts tell problems apart


def test_what_does_not_fit_is_said(completions):
    rows = topr.read_rollouts(completions)
    with pytest.raises(topr.ConfigError, match="tiemout"):
        topr.grade(rows, "numeric", tiemout=3)
    with pytest.raises(topr.ConfigError, match="positves"):
        topr.curate(topr.grade(rows, "numeric", workers=1), ["positves"])
    with pytest.raises(topr.DataError, match="reward"):
        topr.curate(rows)
