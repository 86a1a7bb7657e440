"""The verifier on real solutions by four language models, through the command line: checks are made
of labelled solutions, a toy model is warmed up on some, trained with TOPR on its own verdicts,
scores held-out solutions, and lets them vote. What a toy can learn of it is not the point.
"""

import json
from pathlib import Path

import pytest
from test_gsm8k_solutions import make_model

from command_line import read_jsonl, topr, write_jsonl
from topr.config import VerifierConfig
from topr.store import read_manifest, read_table
from topr.tasks import Split, load_task

pytestmark = pytest.mark.slow

LEARN, HELD_OUT = slice(0, 24), slice(24, 64)  # questions, each with four solutions
VERDICT = " Verification: Is the answer correct (Yes/No)? "
RECIPE = """
task: {name: verifier, rollouts: learn.jsonl, test_rollouts: held_out.jsonl}
model: {path: warm/model, device: cpu}
generate: {n: 4, max_tokens: 24}
grade: {none_right: warn}
train: {max_steps: 8, batch_size: 32, learning_rate: 1e-3, optim: adamw_torch}
evaluate: {n: 2, problems: 40, pass_at: [1, 2], bootstrap: 100}
"""


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checks")
    rows = read_jsonl(shared_data / "gsm8k_model_solutions.jsonl.gz")
    questions = sorted({row["question_id"] for row in rows})
    for name, part in (("learn", LEARN), ("held_out", HELD_OUT)):
        chosen = set(questions[part])
        write_jsonl(folder / f"{name}.jsonl", [row for row in rows if row["question_id"] in chosen])
    rollouts = str(folder / "learn.jsonl")
    task = load_task(VerifierConfig(name="verifier", prompt="plain", rollouts=rollouts))
    checks = task.problems(Split.TRAIN)
    write_jsonl(
        folder / "demonstrations.jsonl",
        [
            {"prompt": c.prompt, "completion": f" Looks fine.{VERDICT}{c.answer}", "reward": 1.0}
            for c in checks
        ],
    )
    reference = read_jsonl(shared_data / "gsm8k_train.jsonl.gz")[:300]
    texts = [f"{row['question']}\n{row['answer']}" for row in reference]
    make_model(folder / "model", [*texts, *([VERDICT + "Yes", VERDICT + "No"] * 100)])
    (folder / "recipe.yaml").write_text(RECIPE)
    topr(
        folder, "train", "demonstrations.jsonl", "-m", "model", "-o", "warm", "--device", "cpu",
        "train.objective=sft", "train.behavior_logprobs=recompute", "train.max_steps=60",
        "train.global_batch_size=16", "train.optim=adamw_torch", "train.learning_rate=5e-3",
    )  # fmt: skip
    topr(folder, "run", "recipe.yaml", "-o", "run")
    return folder


def test_checks_are_made_by_question(folder: Path) -> None:
    drawn = read_table(folder / "run/iteration-01/rollouts")
    held_out = read_table(folder / "run/iteration-01/evaluation")
    learnt = {row["question"] for row in read_jsonl(folder / "learn.jsonl")}
    reported = {row["question"] for row in read_jsonl(folder / "held_out.jsonl")}
    assert not learnt & reported
    assert all(any(q in prompt for q in learnt) for prompt in drawn["prompt"].to_pylist())
    assert all(any(q in prompt for q in reported) for prompt in held_out["prompt"].to_pylist())
    golds = drawn["gold"].to_pylist()
    assert golds.count("Yes") == golds.count("No") > 0


def test_no_final_answer_of_the_source_is_in_a_prompt(folder: Path) -> None:
    # The prompt holds the question and the solution, nothing that says whether it is right.
    solutions = {row["solution"] for row in read_jsonl(folder / "learn.jsonl")}
    for row in read_table(folder / "run/iteration-01/rollouts").to_pylist():
        assert any(
            row["prompt"].startswith("Question: ") and solution in row["prompt"]
            for solution in solutions
        )
        assert "#### " not in row["prompt"]


def test_the_models_end_in_verdicts_that_are_measured(folder: Path) -> None:
    summary = json.loads((folder / "run/summary.json").read_text())
    base, trained = summary["models"]
    assert base["invalid"] < 0.5  # the warm-up taught it the form
    assert trained["invalid"] < 0.5
    assert 0 < trained["pass@1"] < 1
    assert {"balanced_accuracy", "auc", "calibration_error"} <= set(trained)


@pytest.fixture(scope="module")
def scored(folder: Path) -> Path:
    topr(
        folder, "grade", "held_out.jsonl", "-o", "labelled.jsonl", "--task", "gsm8k",
        "--completion", "solution",
    )  # fmt: skip
    said = topr(
        folder, "verify", "labelled.jsonl", "-m", "run/iteration-01/model", "-o", "verified",
        "--recipe", "recipe.yaml", "--device", "cpu", "generate.n=4",
    )  # fmt: skip
    assert "160 solutions scored by 4 checks of each of" in said.stdout
    return folder / "verified"


def test_scores_stand_beside_the_rows(folder: Path, scored: Path) -> None:
    rows, source = read_jsonl(scored / "scored.jsonl"), read_jsonl(folder / "labelled.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in source]
    checks = read_table(scored / "checks").to_pylist()
    by_prompt: dict[str, list[str | None]] = {}
    for check in checks:
        by_prompt.setdefault(check["prompt"], []).append(check["answer"])
    for row in rows:
        (answers,) = (
            found
            for prompt, found in by_prompt.items()
            if f"Question: {row['question']}\n\nSolution: {row['solution']}\n\n" in prompt
        )
        assert row["verifier_score"] == answers.count("Yes") / 4
        assert row["verifier_invalid"] == answers.count(None) / 4
        assert row["verifier_checks"] == len(answers) == 4
        chance = row["verifier_probability"]
        assert chance is None if answers.count(None) == 4 else 0 <= chance <= 1


def test_the_metrics_are_those_of_the_scores(scored: Path) -> None:
    rows = read_jsonl(scored / "scored.jsonl")
    metrics = read_manifest(scored).details["metrics"]["all"]
    pairs = {
        (row["question_id"], row["solution"]): (
            row["verifier_score"]
            if row["is_correct"]
            else 1 - row["verifier_score"] - row["verifier_invalid"]
        )
        for row in rows
    }
    assert metrics["candidates"] == len(pairs)
    assert metrics["accuracy"] == pytest.approx(sum(pairs.values()) / len(pairs))


def test_perfect_scores_give_the_oracle(folder: Path, scored: Path) -> None:
    topr(folder, "vote", "labelled.jsonl", "--score", "is_correct", "-o", "oracle.json")
    votes = json.loads((folder / "oracle.json").read_text())
    solved: dict[str, list[bool]] = {}
    for row in read_jsonl(folder / "labelled.jsonl"):
        solved.setdefault(row["question_id"], []).append(row["is_correct"])
    assert votes["problems"] == 40
    assert votes["best@4"] == votes["oracle@4"] == votes["weighted@4"]
    assert votes["oracle@4"] == pytest.approx(sum(map(any, solved.values())) / 40)
    said = topr(folder, "vote", scored / "scored.jsonl").stdout
    assert "40 problems, scores in verifier_score" in " ".join(said.split())


def test_right_answers_with_wrong_reasoning_have_a_line_of_their_own(
    folder: Path, shared_data: Path
) -> None:
    rows = read_jsonl(shared_data / "gsm8k_reasoning_labels.jsonl.gz")
    lucky = [row for row in rows if row["answer_correct"] and not row["reasoning_correct"]]
    assert lucky
    write_jsonl(folder / "reasoning.jsonl", [*lucky, *rows[:12]])
    said = topr(
        folder, "verify", "reasoning.jsonl", "-m", "run/iteration-01/model", "-o", "reasoned",
        "--recipe", "recipe.yaml", "--device", "cpu", "--solution", "steps",
        "--label", "reasoning_correct", "--by", "answer_correct", "--by", "reasoning_correct",
        "generate.n=1",
    ).stdout  # fmt: skip
    assert "answer_correct=true, reasoning_correct=false: " in said
    metrics = read_manifest(folder / "reasoned").details["metrics"]
    line = metrics["answer_correct=true, reasoning_correct=false"]
    assert line["right_share"] == 0.0
    assert line["candidates"] == len({(r["question"], str(r["steps"])) for r in lucky})
