"""Drawing in rounds through the real command line, killed in the middle of a round."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from topr.store import read_manifest, read_table

pytestmark = pytest.mark.slow

OVERRIDES = [
    "task.train_problems=6", "task.test_problems=4", "task.warmup.hidden_size=16",
    "task.warmup.num_layers=1", "task.warmup.num_heads=2", "task.warmup.intermediate_size=16",
    "task.warmup.steps=30", "generate.n=2", "generate.max_tokens=12", "generate.shard_problems=2",
    "train.max_steps=2", "train.global_batch_size=8", "train.save_steps=2", "evaluate.n=2",
    "evaluate.pass_at=[1,2]", "evaluate.bootstrap=100", "grade.workers=1", "grade.none_right=warn",
    "curate.steps=[{rule: anna_karenina, per_problem: 4, max_positives: 2, max_candidates: 8}]",
    # It holds places for positives that hardly come, so there are several rounds.
    "compare={more: {curate: {steps: [{rule: anna_karenina, per_problem: 4, max_positives: 2, "
    "max_candidates: 6, reserve: 1}]}, train: {objective: tis}}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "TOPR_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "topr", *map(str, arguments)]


def test_killed_in_a_round_it_ends_with_the_undisturbed_dataset(tmp_path, environment):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = subprocess.run(
        command("run", "quickstart", "-o", straight, *OVERRIDES),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "draw up to 8 completions per problem, in rounds" in done.stdout
    assert "tokens in" in done.stdout
    assert "effective share p~" in done.stdout
    assert "log mu as recorded differs from the trainer's own by" in done.stdout
    process = subprocess.Popen(
        command("run", "quickstart", "-o", killed, *OVERRIDES),
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (killed / "iteration-01/rollouts/part-00004.parquet").exists():
        assert process.poll() is None, "ended before the second round"
        assert time.monotonic() < deadline, "the second round never came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    again = subprocess.run(
        command("run", "quickstart", "-o", killed, *OVERRIDES),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    for part in ("iteration-01/graded", "iteration-01/dataset", "compare/more/dataset"):
        ours, theirs = (
            read_table(run / part).drop_columns(["model"]) for run in (killed, straight)
        )
        assert ours.equals(theirs), part
    details = [read_manifest(run / "iteration-01/rollouts").details for run in (killed, straight)]
    assert details[0] == details[1]
    assert len(details[0]["rounds"]) > 1
    weights = [
        (run / "iteration-01/model/model.safetensors").read_bytes() for run in (killed, straight)
    ]
    assert weights[0] == weights[1]
    report = (straight / "report.html").read_text()
    assert "Recorded log μ against the trainer’s own" in report
    assert "<h3>Curation</h3>" in report
    assert "<code>anna_karenina</code>" in report
    assert "the problem&#39;s quota was full" in report
    assert re.search(r"more: [\d,]+ tokens sampled, [\d,]+ kept; 8 completions of every", report)


def test_the_stages_one_by_one_draw_in_rounds_too(tmp_path, environment):
    def topr(*arguments: object) -> str:
        done = subprocess.run(
            command(*arguments), env=environment, capture_output=True, text=True, check=False,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = [override for override in OVERRIDES if not override.startswith("compare")]
    said = topr("generate", "quickstart", "-o", "rollouts", "--graded", "graded", *alone)
    assert "drawing 8 for all would have taken about" in said
    said = topr("generate", "quickstart", "-o", "short", *alone)
    assert "up to 8 completions of a problem; here are 2" in said
    (steps,) = (override for override in OVERRIDES if override.startswith("curate"))
    said = topr("curate", "graded", "-o", "dataset", steps)
    assert "anna_karenina" in said
    assert "share of positives p" in said
    kept = read_manifest(Path(tmp_path / "dataset"))
    assert kept.rows == 24
    json.dumps(kept.details)
