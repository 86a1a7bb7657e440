"""Generator and verifier from one recipe, through the real command line, killed on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from topr.config import load_recipe
from topr.errors import DataError, ToprError
from topr.runs.recipe_checks import check_recipe
from topr.store import read_manifest, read_table
from topr.studies import cells
from topr.studies.cells import Job, Kind
from topr.verifier.task import PROMPT_FILE, noted_prompt

pytestmark = pytest.mark.slow

TIMES = r'"(tokens_per_second|probe/seconds)": [\d.]+'
"""What no two runs have alike."""
OVERRIDES = [
    "task.train_problems=12", "task.test_problems=6", "task.warmup.steps=400",
    "task.warmup.hidden_size=32", "task.warmup.num_layers=1", "task.warmup.num_heads=2",
    "task.warmup.intermediate_size=64", "generate.n=8", "generate.max_tokens=40",
    "train.max_steps=2", "train.global_batch_size=16", "evaluate.n=4", "evaluate.pass_at=[1,4]",
    "evaluate.bootstrap=100", "grade.workers=1", "grade.none_right=warn",
    "task.max_steps=2", "task.min_steps=1",
    "verifier.iterations=1", "verifier.task.warmup={steps: 60}", "verifier.generate.n=2",
    "verifier.generate.max_tokens=48", "verifier.train.max_steps=2",
    "verifier.train.global_batch_size=8", "verifier.grade={workers: 1}",
    "verifier.evaluate={n: 2, pass_at: [1, 2], bootstrap: 100}",
]  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "TOPR_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(run: Path) -> list[str]:
    return [sys.executable, "-m", "topr", "run", "verifier-arithmetic", "-o", str(run), *OVERRIDES]


@pytest.fixture(scope="module")
def done(tmp_path_factory, environment) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "straight"
    made = subprocess.run(
        command(run), env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return run, made.stdout


def test_the_verifier_learns_from_what_the_trained_generator_wrote(done):
    run, _ = done
    generator = read_manifest(run / "iteration-01/training").details["made"]
    candidates = read_table(run / "candidates/graded")
    assert set(candidates["revision"].to_pylist()) == {generator}
    checks = read_table(run / "verifier/iteration-01/rollouts")
    solutions = candidates["completion"].to_pylist()
    questions = set(candidates["question"].to_pylist())
    for row in checks.to_pylist():
        question, _, rest = row["prompt"].partition(" Solution : ")
        assert question in questions
        assert rest.removesuffix(" . Check :") in solutions
    tested = read_table(run / "verifier/iteration-01/evaluation")
    assert not questions & {p.partition(" Solution : ")[0] for p in tested["prompt"].to_pylist()}


def test_a_trained_verifier_is_asked_as_it_was_in_training(done, environment, tmp_path):
    run, _ = done
    model, rollouts = run / "verifier/iteration-01/model", run / "candidates/graded"
    subprocess.run(
        [
            sys.executable, "-m", "topr", "verify", str(rollouts), "-m", str(model),
            "-o", str(tmp_path / "scored"), "generate.n=1", "generate.max_tokens=4",
        ],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    asked = read_table(tmp_path / "scored/checks")["prompt"].to_pylist()
    assert all(" Solution : " in prompt and prompt.endswith(" . Check :") for prompt in asked)
    (tmp_path / PROMPT_FILE).write_text("{}")
    with pytest.raises(DataError, match=r"verifier.json cannot be read \(KeyError"):
        noted_prompt(tmp_path)


def test_test_candidates_vote(done):
    run, said = done
    votes = json.loads((run / "verifier/votes.json").read_text())
    assert votes["problems"] == 6
    assert votes["at"] == [1, 2, 4]
    evaluation = json.loads((run / "iteration-01/evaluation.json").read_text())["metrics"]
    assert votes["majority@4"] == pytest.approx(evaluation["maj@4"])
    assert votes["oracle@4"] == pytest.approx(evaluation["pass@4"])
    assert votes["majority@1"] == pytest.approx(evaluation["pass@1"])
    assert "votes of 4 candidates on 6 problems: majority" in said


def test_the_report_shows_both(done):
    run, _ = done
    report = (run / "report.html").read_text()
    assert '<section id="verifier">' in report
    assert "weighted − majority" in report
    assert re.search(r"<option[^>]*>verifier · ", report)
    assert (run / "verifier/report.html").is_file()
    assert '<section id="verifier">' not in (run / "verifier/report.html").read_text()


def test_a_study_reads_verdicts_and_votes_of_both_verifiers(done):
    run, _ = done
    recipe = load_recipe("verifier-arithmetic", OVERRIDES)
    job = Job(
        arm="topr", seed=0, rate=None, recipe=recipe, kind=Kind.TRAIN, directory=run, draws=run
    )
    (point,) = cells._checked(job)
    summary = json.loads((run / "verifier/summary.json").read_text())
    base, trained = summary["models"]
    votes = json.loads((run / "verifier/base/votes.json").read_text())
    assert point.metrics["accuracy"] == trained["pass@1"]
    assert point.metrics["base_accuracy"] == base["pass@1"]
    assert point.metrics["base_weighted@4"] == votes["weighted@4"]
    assert point.metrics["base_majority@4"] == point.metrics["majority@4"]
    assert "weighted@4 - majority" not in point.metrics
    assert point.tokens == read_manifest(run / "verifier/iteration-01/rollouts").details["tokens"]


def test_killed_while_it_scores_it_ends_with_the_undisturbed_votes(done, environment):
    straight, _ = done
    killed = straight.parent / "killed"
    process = subprocess.Popen(
        command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (killed / "verifier/summary.json").exists():
        assert process.poll() is None, "ended before the verifier was trained"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    again = subprocess.run(
        command(killed), env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    for name in ("summary.json", "verifier/votes.json", "metrics.jsonl", "verifier/metrics.jsonl"):
        ours, theirs = (
            (run / name).read_text().replace(str(run), "RUN") for run in (killed, straight)
        )
        assert re.sub(TIMES, "", ours) == re.sub(TIMES, "", theirs), name


def test_a_moved_run_goes_on(done, environment, tmp_path):
    straight, _ = done
    moved = tmp_path / "moved"
    shutil.copytree(straight, moved)
    recipe = moved / "verifier/recipe.yaml"
    assert "keep: last" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("  keep: last\n", ""))  # of an older version
    again = subprocess.run(
        command(moved), env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "warming up" not in again.stdout
    assert (moved / "verifier/votes.json").read_text() == (
        straight / "verifier/votes.json"
    ).read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("verifier.generate.top_k=5", "behavior_logprobs=sampler"),
        ("verifier.train.objective=nonsense", "no objective 'nonsense'"),
        ("verifier.loop={keep: best}", "set verifier.task.validation_problems"),
        ("verifier.model={path: /nowhere/at/all}", "there is no directory /nowhere/at/all"),
        ("verifier.tain={}", "unknown key 'tain'; did you mean 'train'"),
    ],
)
def test_a_wrong_verifier_is_refused_before_the_generator_is_trained(override, message):
    with pytest.raises(ToprError, match=re.escape(message)):
        check_recipe(load_recipe("verifier-arithmetic", [override]))


def test_a_verifier_that_diverged_gets_nothing_right():
    recipe = load_recipe("verifier-arithmetic", OVERRIDES)
    job = Job(
        arm="topr", seed=0, rate=None, recipe=recipe, kind=Kind.TRAIN, directory=Path("x"),
        draws=Path("x"),
    )  # fmt: skip
    metrics = cells._fallen(job).metrics
    assert metrics["accuracy"] == metrics["balanced_accuracy"] == metrics["weighted@4"] == 0.0
    assert metrics["invalid"] == 1.0
    assert metrics["balanced_accuracy_se"] == 0.0
