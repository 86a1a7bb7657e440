"""What a newcomer types first: help, recipes, schema, env, mistakes."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "sympy")


def topr(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "topr", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["grade", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys; from topr.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.splitlines()[-1] == "[]"


def test_grading_and_curating_load_no_torch():
    code = "import sys, topr.stages.grade, topr.stages.curate; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_recipes_are_listed_with_what_they_need():
    shown = topr("recipes").stdout
    for name in ("quickstart", "arithmetic-study", "gsm8k", "math"):
        assert name in shown
    assert "GPU" in shown


def test_a_shipped_recipe_prints_resolved_and_loads_again(tmp_path):
    text = topr("recipes", "gsm8k").stdout
    assert "learning_rate: 5.0e-07" in text
    (tmp_path / "mine.yaml").write_text(text)
    assert topr("recipes", str(tmp_path / "mine.yaml")).stdout == text


def test_the_schema_is_one():
    schema = json.loads(topr("schema").stdout)
    assert schema["properties"]["task"]["discriminator"]["propertyName"] == "name"
    assert "learning_rate" in schema["$defs"]["TrainConfig"]["properties"]


def test_env_names_versions():
    found = json.loads(topr("env").stdout)
    assert found["packages"]["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrat", "-o", "x"], "Did you mean 'quickstart'?"),
        (
            ["run", "quickstart", "-o", "x", "train.learning_rat=1"],
            "mean 'train.learning_rate'?",
        ),
        (["run", "quickstart", "-o", "x", "train.objective=topper"], "Did you mean 'topr'?"),
        (["run", "quickstart", "-o", "x", "learning_rate"], "train.learning_rate=1e-6"),
        (["run", "gsm8k", "-o", "x", "model.path=builtin"], "makes no model of its own"),
        (["run", "quickstart", "-o", "x", "model.device=cuda:7"], "cuda:7"),
        (["train", "nowhere", "-o", "x", "-m", "nomodel/"], "nowhere is not there"),
        (["grade", "nowhere.jsonl", "-o", "y.jsonl", "-t", "gsm8k"], "nowhere.jsonl"),
        (["grade", "nowhere", "-o", "y", "-t", "gsm8k"], "nowhere is not there"),
        (["report", "nowhere"], "is not a run directory"),
        (["curate", "nowhere", "-o", "x", "train.baseline=0"], "section 'curate' only"),
    ],
)
def test_mistakes_get_one_message_and_leave_nothing(tmp_path, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "topr", *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
