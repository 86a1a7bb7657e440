"""The commands of the page on GPUs and nodes, read by the real command line: none is run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from topr.cli import app
from topr.config import CurateConfig, TrainConfig, load_recipe, load_section

PAGE = Path(__file__).parents[1] / "docs/scaling.md"
SECTIONS: dict[str, tuple[Any, str]] = {
    "train": (TrainConfig, "train"),
    "curate": (CurateConfig, "curate"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"(?m)^ {4}(?:.*\\\n)*.*$", PAGE.read_text(encoding="utf-8"))
    words = [shlex.split(block.replace("\\\n", " "), comments=True) for block in blocks]
    return [line[line.index("topr") + 1 :] for line in words if "topr" in line]


def test_they_are_all_there() -> None:
    stages = ["generate", "grade", "curate", "train", "eval"]
    assert [line[0] for line in commands()] == ["run", "run", *stages, *stages]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_the_command_line_takes_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rollouts", "graded", "dataset"):
        (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    group: Any = typer.main.get_command(app)
    name, *rest = words
    given = group.commands[name].make_context(name, list(rest)).params
    overrides = given.get("overrides") or []
    if name in SECTIONS:
        load_section(*SECTIONS[name], given["recipe"], overrides)
    elif name != "grade":
        load_recipe(given.get("recipe") or given["source"], overrides)
