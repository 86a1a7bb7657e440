"""Which folders of a run directory hold a training or an evaluation. Nothing is read but names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topr.report.reader import as_mapping
from topr.report.text import visible


@dataclass(frozen=True, slots=True)
class Stage:
    """One folder that holds a training or an evaluation, or both."""

    label: str
    """What the page calls it, as it is shown."""
    name: str
    """What the recipe calls it."""
    iteration: int
    folder: Path
    comparison: bool = False


def trained_alone(directory: Path) -> Stage | None:
    """Return the one stage of a directory that `topr train` or a Trainer wrote, if it is one."""
    if (directory / "training" / "log.jsonl").is_file() or trainer_state(directory):
        return Stage("trained", "trained", 1, directory)
    return None


def trainer_state(directory: Path) -> Path | None:
    """Return the newest file in which a Trainer of transformers left its log."""
    found = directory.glob("checkpoint-*/trainer_state.json")  # of checkpoint-40, checkpoint-best
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_stages(directory: Path, recipe: Mapping[str, Any]) -> list[Stage]:
    """Every folder that the recipe asks for, and every further one that is there.

    Of a directory with one training alone: that.
    """
    if alone := trained_alone(directory):
        return [alone]
    name = str(as_mapping(recipe.get("train")).get("objective", "trained"))
    numbered = (re.fullmatch("iteration-([0-9]+)", p.name) for p in directory.glob("iteration-*"))
    found = {int(name[1]) for name in numbered if name}
    iterations = recipe.get("iterations", 1)
    planned = range(iterations + 1) if isinstance(iterations, int) and iterations < 1000 else ()
    numbers = sorted(found.union(planned))
    compare = map(str, as_mapping(recipe.get("compare")))
    names = [other for other in compare if other.isidentifier()]
    names += sorted(p.name for p in directory.glob("compare/*") if p.is_dir())
    stages = []
    for i in numbers:
        label = "base" if i == 0 else name if numbers[-1] == 1 else f"{name} · iteration {i}"
        folder = directory / f"iteration-{i:02d}"
        stages.append(Stage(visible(label), "base" if i == 0 else name, i, folder))
    for other in dict.fromkeys(names):
        folder = directory / "compare" / other
        stages.append(Stage(visible(other), other, 1, folder, comparison=True))
    return stages
