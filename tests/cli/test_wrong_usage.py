"""What people type who come from other tools, and what they are told."""

import json
import re
import shlex
import sys

import pytest
from typer.testing import CliRunner

from topr.cli import app, main, training
from topr.cli.overview import EXAMPLES, GROUPS
from topr.config import load_recipe

ROWS = [{"prompt": "2+2=", "completion": " 4", "reward": 1}]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "rows.jsonl", "-m", "m", "-o", "o", "lr=1"], r"train\.learning_rate=1$"),
        (["train", "rows.jsonl", "-m", "m", "-o", "o", "learning_rate=2"], r"learning_rate=2$"),
        (["train", "rows.jsonl", "-m", "m", "-o", "o", "--train.learning_rate", "1"],
         r"without dashes, train\.learning_rate="),
        (["run", "quickstart", "-o", "o", "lr=1"], r"did you mean 'train\.learning_rate'"),
        (["run", "quickstart", "-o", "o", "train.lr=1"], r"did you mean 'train\.learning_rate'"),
        (["run", "quickstart", "-o", "o", "train.epochs=1"], r"'train\.num_train_epochs'"),
        (["run", "quickstart", "-o", "o", "generate.max_new_tokens=1"], r"'generate\.max_tokens'"),
        (["run", "tab.yaml", "-o", "o"], r"tab\.yaml.*spaces, not with tabs"),
        (["train", "empty.jsonl", "-m", "m", "-o", "o"], r"empty\.jsonl is empty"),
        (["grade", "empty.jsonl", "-t", "numeric", "-o", "o.jsonl"], r"empty\.jsonl is empty"),
        (["import", "empty.jsonl", "--tokenizer", "m", "-o", "o"], r"empty\.jsonl is empty"),
        (["compare", "nothing", "nothing"], r"nothing"),
        (["init", "begun"], r"begun.recipe\.yaml exists already"),
    ],
)  # fmt: skip
def test_wrong_usage_says_what_to_write(arguments, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "tab.yaml").write_text("task:\n\tname: arithmetic\n")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/recipe.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["topr", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert re.search(told, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "o").exists()
    assert (tmp_path / "begun/recipe.yaml").read_text() == "name: mine\n"


def test_one_value_is_a_list_of_one():
    recipe = load_recipe("quickstart", ["curate.steps=positives", "evaluate.pass_at=4"])
    assert [step.rule for step in recipe.curate.steps] == ["positives"]
    assert recipe.evaluate.pass_at == (4,)


@pytest.mark.parametrize("task", ["jsonl", "gsm8k", "math", "arithmetic"])
def test_a_first_recipe_is_a_recipe(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "mine", "--task", task], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    recipe = load_recipe("mine/recipe.yaml")
    assert recipe.task.name == task
    if task == "jsonl":
        from topr.tasks import Split, load_task

        problems = load_task(recipe.task)
        assert len(problems.problems(Split.TRAIN)) + len(problems.problems(Split.TEST)) == 12


@pytest.mark.parametrize("name", ["MODEL-a", "my task: x", "it's"])
def test_a_first_recipe_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", name], catch_exceptions=False)
    recipe = load_recipe(f"{name}/recipe.yaml")
    assert recipe.task.train_file == f"{name}/problems.jsonl"
    assert recipe.model.path == "Qwen/Qwen2.5-0.5B-Instruct"
    said = shlex.split(done.output.splitlines()[-1].removeprefix("next: "))
    assert said == ["topr", "run", f"{name}/recipe.yaml", "-o", f"runs/{name}", "--dry-run"]


@pytest.mark.parametrize("sampling", [None, {"top_p": 1.0}])
def test_rows_without_temperature_are_samples(sampling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"problem_id": "p", "grade": "truncated", "answer": None, "sampling": sampling,
           "completion_ids": None, "finish_reason": None}  # fmt: skip
    rows = [row, {**row, "grade": "correct"}]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    done = CliRunner().invoke(app, ["eval", "g.jsonl", "-o", "s", "--json"], catch_exceptions=False)
    found = json.loads(done.output)["metrics"]
    assert found["pass@1"] == 0.5
    assert found["invalid"] == 0.0  # a grader that reads no answers


@pytest.mark.parametrize(
    ("logprobs", "wanted"),
    [([None, None], "recompute"), ([None, [-0.5]], "sampler"), ([[-0.5], [-0.5]], "sampler")],
)
def test_log_mu_is_recomputed_only_where_no_row_has_it(logprobs, wanted, tmp_path, monkeypatch):
    """A first row without, such as a greedy one that is left out, decides nothing."""
    asked = []

    def stopped(dataset, output, model, config, *more):
        asked.append(config.behavior_logprobs)
        raise SystemExit(0)

    monkeypatch.setattr(training, "_train", stopped)
    rows = [
        {"prompt": "a", "completion_ids": [1], "reward": 1, "logprobs": each} for each in logprobs
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    CliRunner().invoke(app, ["train", str(tmp_path / "rows.jsonl"), "-m", "m", "-o", "o"])
    assert asked == [wanted]


def test_every_command_has_a_group_and_examples_that_name_its_options():
    commands = {str(command.name): command for command in app.registered_commands}
    assert set(commands) == set(EXAMPLES) == {name for names in GROUPS.values() for name in names}
    for name, examples in EXAMPLES.items():
        assert len(examples) == 2
        help_ = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for example in examples:
            assert example.startswith(f"topr {name}")
            options = re.findall(r"(?<= )--?[a-z-]+", example)
            assert all(option in help_ for option in options), (example, options)


def test_rows_of_another_tool_are_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": q, "completion": f"The answer is {a}", "gold": "4"}
        for q in "ab" for a in (4, 5)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner()
    assert run.invoke(app, ["grade", "rows.jsonl", "-t", "numeric", "-o", "g.jsonl"]).exit_code == 0
    done = run.invoke(app, ["eval", "g.jsonl", "-o", "scores", "--json"], catch_exceptions=False)
    found = json.loads(done.output)["metrics"]
    assert found["pass@1"] == 0.5
    assert not {"truncated", "mean_length"} & set(found)
    done = run.invoke(app, ["compare", "scores", "scores", "--json"], catch_exceptions=False)
    assert json.loads(done.output)[0]["difference"] == 0
