"""A run on reasoning_gym, from the shipped recipe with a tiny model, and its grades made again."""

import pytest
import yaml

from command_line import topr
from tiny import save_tiny
from topr.grading.gym import grade_gym
from topr.grading.gym_datasets import Entry
from topr.store import read_table

pytestmark = pytest.mark.slow

OVERRIDES = (
    "model.path=model", "model.dtype=float32", "task.reward=linear", "task.few_shot=1",
    "task.train_problems=4", "task.validation_problems=0", "task.test_problems=2",
    "generate.n=4", "generate.max_tokens=6", "generate.top_k=20", "grade.workers=1",
    "grade.truncated=grade", "grade.none_right=warn", "grade.timeout=60", "train.max_steps=1",
    "train.global_batch_size=8", "evaluate.n=1", "evaluate.pass_at=[1]", "evaluate.greedy=false",
    "evaluate.bootstrap=100",
)  # fmt: skip


def test_the_recipe_runs_from_problems_to_a_report(tmp_path):
    save_tiny(tmp_path / "model", chat_template=True)
    done = topr(tmp_path, "run", "reasoning-gym-small", "-o", "run", *OVERRIDES)
    assert "task.prompt=auto: chat" in done.stdout + done.stderr
    assert (tmp_path / "run/report.html").is_file()
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())

    graded = read_table(tmp_path / "run/iteration-01/graded").to_pylist()
    assert len({row["problem_id"] for row in graded}) == 4
    assert len(graded) == 16
    for row in graded:
        entry = Entry.from_json(row["entry"])
        assert (entry.dataset, entry.reward) == (row["dataset"], "linear")
        assert entry.dataset == recipe["task"]["dataset"]
        assert row["problem_id"].startswith(f"{entry.dataset}-")
        assert row["gold"] == entry.answer
        assert "Answer: " in row["prompt"]  # that of the example
        grade = grade_gym(row["completion"], row["entry"])
        assert (row["grade"], row["answer"]) == (grade.outcome, grade.answer)
        assert row["reward"] == pytest.approx(grade.reward)

    topr(tmp_path, "grade", "run/iteration-01/rollouts", "-t", "reasoning_gym", "-o", "again",
         "grade.truncated=grade", "grade.timeout=60")  # fmt: skip
    again = read_table(tmp_path / "again").to_pylist()
    assert [row["grade"] for row in again] == [row["grade"] for row in graded]
