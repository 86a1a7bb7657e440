"""`topr init`: a recipe to begin with."""

import json
import re
import shlex
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from topr.cli.console import say

SMALL_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
PROBLEMS_FILE = "problems.jsonl"


class Start(StrEnum):
    """Tasks that there is a first recipe for."""

    JSONL = "jsonl"
    GSM8K = "gsm8k"
    MATH = "math"
    ARITHMETIC = "arithmetic"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    directory: Annotated[Path, typer.Argument(help="Directory to write into; made if absent.")],
    task: Annotated[
        Start, typer.Option("--task", "-t", help="jsonl is a file of your own problems.")
    ] = Start.JSONL,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Directory or hub name of the model.")
    ] = None,
) -> None:
    """Write a commented recipe to change, with sample problems. Nothing is overwritten."""
    from topr.store.atomic import atomic_path, refuse_existing

    default = "builtin" if task is Start.ARITHMETIC else SMALL_MODEL
    texts = {"recipe.yaml": _recipe(task, directory, model or default)}
    if task is Start.JSONL:
        texts[PROBLEMS_FILE] = _shipped(PROBLEMS_FILE)
    for name in texts:
        refuse_existing(directory / name)
    for name, text in texts.items():
        with atomic_path(directory / name, overwrite=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
        say(str(directory / name))
    recipe, run = (shlex.quote(f"{path}") for path in (directory / "recipe.yaml", directory.name))
    say(f"next: topr run {recipe} -o runs/{run} --dry-run")


def _recipe(task: Start, directory: Path, model: str) -> str:
    text = _shipped("recipe.yaml").replace("TASK\n", _shipped(f"{task.value}.yaml"))
    values = {
        "DIRECTORY/problems.jsonl": json.dumps((directory / PROBLEMS_FILE).as_posix()),
        "DIRECTORY/recipe.yaml": shlex.quote((directory / "recipe.yaml").as_posix()),
        "MODEL": json.dumps(model),
    }
    return re.sub("|".join(values), lambda found: values[found[0]], text)


def _shipped(name: str) -> str:
    return (resources.files("topr") / "recipes" / "start" / name).read_text(encoding="utf-8")
