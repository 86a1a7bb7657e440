"""A Hugging Face model directory from disk, with a chat template, through every command.

The model is random: it says nothing of mathematics, and all of its answers to GSM8K are wrong.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from command_line import read_jsonl, topr, write_jsonl
from tiny import save_tiny, tiny_tokenizer
from topr.config import ModelConfig, TrainConfig
from topr.errors import DataError
from topr.progress import Silent
from topr.stages.train import train_model
from topr.store import read_table

pytestmark = pytest.mark.slow

REWARD = '''
def names_the_letter(completions, answer, topic, **columns):
    """+1 where the letter is in the text, -1 where not, None where nothing was written."""
    if topic != [f"letter {gold}" for gold in answer]:
        raise ValueError(f"{topic} does not belong to {answer}")
    return [
        None if not text else 1.0 if gold in text.lower() else -1.0
        for text, gold in zip(completions, answer)
    ]
'''
RECIPE = """
task:
  name: jsonl
  train_file: letters.jsonl
  test_problems: 4
  grader: my_rewards:names_the_letter
model: {path: model, device: cpu}
generate: {n: 8, max_tokens: 16}
grade: {workers: 1, truncated: grade}
train: {max_steps: 6, batch_size: 16, optim: adamw_torch, learning_rate: 1e-3}
evaluate: {n: 4, pass_at: [1, 4], bootstrap: 100}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    save_tiny(folder / "model", chat_template=True, max_position_embeddings=1024)
    return folder


def overrides(shared_data: Path, prompt: str) -> list[str]:
    return [
        f"task.train_file={(shared_data / 'gsm8k_train.jsonl.gz').resolve()}",
        f"task.test_file={(shared_data / 'gsm8k_test.jsonl.gz').resolve()}",
        f"task.prompt={prompt}", "task.few_shot=1", "task.train_problems=4", "task.test_problems=3",
        "generate.n=4", "generate.max_tokens=12", "evaluate.n=2", "evaluate.pass_at=[1,2]",
        "evaluate.bootstrap=100", "model.device=cpu", "grade.workers=1",
    ]  # fmt: skip


def test_gsm8k_with_the_chat_template_through_every_stage(shared_data, folder):
    changes = overrides(shared_data, "chat")
    topr(folder, "generate", "gsm8k", "-m", "model", "-o", "rollouts", *changes)
    topr(folder, "grade", "rollouts", "-o", "graded", "--task", "gsm8k", "grade.workers=1")
    trained = topr(
        folder, "train", "graded", "-m", "model", "-o", "trained", "--device", "cpu",
        "train.behavior_logprobs=recompute", "train.max_steps=3", "train.global_batch_size=8",
        "train.optim=adamw_torch", "train.learning_rate=1e-3",
    )  # fmt: skip
    assert "the model can only unlearn" in trained.stderr
    measured = topr(folder, "eval", "gsm8k", "-m", "trained/model", "-o", "evaluated", *changes)
    assert "pass@1" in measured.stdout

    rows = read_table(folder / "graded").to_pylist()
    questions = {
        row["id"]: row["question"] for row in read_jsonl(shared_data / "gsm8k_train.jsonl.gz")
    }
    assert len(rows) == 16
    for row in rows:
        assert row["prompt"].startswith("<|im_start|>user\nThere are 15 trees")
        assert row["prompt"].endswith(
            f"<|im_start|>user\n{questions[row['problem_id']].strip()}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert len(row["logprobs"]) == len(row["completion_ids"]) <= 12
        assert row["reward"] == -1.0
    log = read_jsonl(folder / "trained/training/log.jsonl")
    assert log[0]["log_ratio/negative"] == pytest.approx(0, abs=1e-4)
    assert log[-1]["log_ratio/negative"] < -0.1

    made = {path.name for path in (folder / "trained/model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= made
    assert not [name for name in made if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    before, after = (load_file(folder / f"{at}model/model.safetensors") for at in ("", "trained/"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)

    evaluated = json.loads((folder / "evaluated/evaluation.json").read_text())
    assert evaluated["problems"] == 3
    assert all("gsm8k-test" in entry["problem_id"] for entry in evaluated["per_problem"])


def test_gsm8k_with_the_plain_prompt(shared_data, folder):
    changes = overrides(shared_data, "plain")
    topr(folder, "generate", "gsm8k", "-m", "model", "-o", "plain", *changes)
    topr(folder, "eval", "gsm8k", "-m", "model", "-o", "plain-evaluated", *changes)
    tokenizer = tiny_tokenizer()
    for source, name in (("plain", "gsm8k-train"), ("plain-evaluated/evaluation", "gsm8k-test")):
        for row in read_table(folder / source).to_pylist():
            assert row["problem_id"].startswith(name)
            assert row["prompt"].startswith("Question: There are 15 trees")
            assert row["prompt"].endswith("\nAnswer:")
            assert tokenizer.decode(row["prompt_ids"]).endswith(row["prompt"])
            assert row["sampling"]["stop"] == ["\nQuestion:"]


def test_a_users_problems_and_reward_function_through_a_run(folder):
    write_jsonl(
        folder / "letters.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": f"Write {number} words with {letter}."}],
                "answer": letter,
                "topic": f"letter {letter}",
            }
            for number, letter in enumerate("etaoinshrdlu")
        ],
    )
    (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    (folder / "letters.yaml").write_text(RECIPE, encoding="utf-8")
    said = topr(folder, "run", "letters.yaml", "-o", "run")
    assert "topr (iteration 1): pass@1" in said.stdout

    graded = read_table(folder / "run/iteration-01/graded").to_pylist()
    assert len(graded) == 8 * 8
    for row in graded:
        assert row["topic"] == f"letter {row['gold']}"
        expected = 1.0 if row["gold"] in row["completion"].lower() else -1.0
        assert row["reward"] == (expected if row["completion"] else None)
    assert {row["reward"] for row in graded} >= {1.0, -1.0}
    log = read_jsonl(folder / "run/iteration-01/training/log.jsonl")
    assert log[0]["log_ratio/positive"] == pytest.approx(0, abs=1e-3)
    assert log[-1]["log_ratio/negative"] < 0
    summary = json.loads((folder / "run/summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["base", "topr"]
    assert (folder / "run/report.html").is_file()


@pytest.mark.parametrize("chat", [False, True])
def test_rows_that_are_no_rollouts_are_trained_on(folder, tmp_path, chat):
    asked, said = "What is 1 + 1?", ["2", "3"]
    rows = [
        {
            "prompt": [{"role": "user", "content": asked}] if chat else f"Question: {asked}\n",
            "completion": [{"role": "assistant", "content": text}] if chat else text,
            "reward": reward,
        }
        for text, reward in zip(said, (1, -1), strict=True)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    train_model(
        ModelConfig(path=str(folder / "model"), device="cpu"),
        [tmp_path / "rows.jsonl"],
        TrainConfig(behavior_logprobs="recompute", max_steps=2, batch_size=2),
        tmp_path / "out",
        seed=0,
        progress=Silent(),
    )
    examples = pq.read_table(tmp_path / "out/training/examples.parquet").to_pylist()
    assert [row["prompt"] for row in examples] == [row["prompt"] for row in rows]
    end = "<|im_end|>" if chat else "</s>"  # a turn ends otherwise than a text
    assert [row["tokens"] for row in examples] == [["2", end], ["3", end]]
    assert all(len(row["policy_logprobs"]) == 2 for row in examples)


def test_rows_of_other_names_are_sent_to_the_importer(folder, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "?", "completion": "2", "reward": 1}])
    with pytest.raises(DataError, match=r"no column 'prompt': found question, .*topr import"):
        train_model(
            ModelConfig(path=str(folder / "model"), device="cpu"),
            [tmp_path / "rows.jsonl"],
            TrainConfig(),
            tmp_path / "out",
            seed=0,
            progress=Silent(),
        )


def test_other_weights_under_the_same_name_are_another_result(tmp_path):
    save_tiny(tmp_path / "model", max_position_embeddings=1024)
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"{n} + 1 =", "answer": n + 1} for n in range(4)])
    (tmp_path / "r.yaml").write_text(
        "task: {name: jsonl, train_file: p.jsonl, test_problems: 1}\n"
        "model: {path: model, device: cpu}\ngenerate: {n: 2, max_tokens: 4}\n"
    )
    topr(tmp_path, "generate", "r.yaml", "-o", "drawn")
    topr(tmp_path, "generate", "r.yaml", "-o", "drawn")
    save_tiny(tmp_path / "model", seed=1, max_position_embeddings=1024)
    done = subprocess.run(
        [sys.executable, "-m", "topr", "generate", "r.yaml", "-o", "drawn"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "made with other settings or from other data" in done.stderr


def test_what_scoring_does_not_read_is_refused(tmp_path):
    (tmp_path / "graded").mkdir()
    for extra, message in (
        (["-m", "nonsense"], "no model is asked for more"),
        (["foo.bar=3"], "this command reads the section 'evaluate' only"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "topr", "eval", "graded", "-o", "out", *extra],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert message in " ".join(done.stderr.split())
