"""The example of docs/tasks.md, as a reader would run it, up to where a model is needed."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from topr.config import TaskConfig, load_recipe
from topr.tasks import Split, load_task

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def block_after(text: str, page: str) -> str:
    return re.search(re.escape(text) + r".*?```\w+\n(.*?)```", page, re.DOTALL)[1]


def test_the_page_has_a_task_and_reward_that_work(tmp_path, monkeypatch):
    page = PAGE.read_text(encoding="utf-8")
    for name in ("colours.py", "colours.jsonl", "colours.yaml"):
        (tmp_path / name).write_text(block_after(f"`{name}`, the", page), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    recipe = load_recipe("colours.yaml")
    task = load_task(recipe.task)
    problems = [*task.problems(Split.TRAIN), *task.problems(Split.TEST)]
    assert len(problems) == 4
    assert all(re.fullmatch(r"Question: .+\?\nAnswer:", problem.prompt) for problem in problems)

    monkeypatch.syspath_prepend(tmp_path)
    module, _, function = task.grader.partition(":")
    reward = getattr(__import__(module), function)
    colour = [problem.columns["colour"] for problem in problems]
    completions = [f" It is {colour[0].upper()}.", " Purple.", "  ", colour[3]]
    assert reward(completions=completions, colour=colour) == [1.0, -1.0, None, 1.0]


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_the_table_shows_the_graders_and_stop_strings_that_the_tasks_have(name):
    task = load_task(TypeAdapter(TaskConfig).validate_python({"name": name, "prompt": "plain"}))
    page = PAGE.read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, _, grader, ends, _ = row.split("|")
    assert grader.strip() == f"`{task.grader}`"
    shown = re.findall(r"`([^`]+)`", ends)
    assert tuple(text.replace("\\n", "\n") for text in shown) == task.stop
