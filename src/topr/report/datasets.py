"""What each training of a run was given, as its files say. No rendering."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from topr.config.mistakes import validate
from topr.config.recipe import Recipe, derived_sections
from topr.errors import ConfigError
from topr.records import Outcome
from topr.report.contents import Dataset, Training
from topr.report.folders import Stage
from topr.report.reader import Reader, as_mapping
from topr.report.text import as_number
from topr.store import read_table, shard_paths


def read_datasets(
    directory: Path,
    stages: list[Stage],
    recipe: Mapping[str, Any],
    trainings: tuple[Training, ...],
    reader: Reader,
) -> tuple[Dataset, ...]:
    """Return what each training was given, in the order of the stages."""
    datasets = []
    for stage in stages:
        if stage.iteration == 0:
            continue
        counts = reader.read(stage.folder / "dataset", _kept_and_positive)
        if counts is None:
            continue
        home = directory / "iteration-01" if stage.comparison else stage.folder
        training = next((t for t in trainings if t.label == stage.label), None)
        rollouts = reader.mapping(home / "rollouts" / "manifest.json", expected=False)
        manifest = reader.mapping(stage.folder / "dataset" / "manifest.json", expected=False)
        drawn = rollouts.get("rows")
        datasets.append(
            Dataset(
                label=stage.label,
                drawn=drawn if isinstance(drawn, int) else None,
                outcomes=reader.read(home / "graded", _outcomes, expected=False) or {},
                kept=counts[0],
                positives=counts[1],
                positive_share=_positive_share(training, *counts),
                baseline=baseline_of(stage, recipe, training),
                effective_share=_effective_share(training),
                curation=as_mapping(manifest.get("details")),
                drawing=as_mapping(rollouts.get("details")),
            )
        )
    return tuple(datasets)


def train_section(stage: Stage, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the recipe says of this training; empty where a comparison's cannot be derived."""
    if not stage.comparison:
        return as_mapping(recipe.get("train"))
    try:
        whole = validate(Recipe, recipe, where="recipe.yaml")
        return derived_sections(whole, whole.compare[stage.name], where=stage.name)[1].model_dump()
    except (ConfigError, KeyError):  # of another version of topr
        return {}


def baseline_of(stage: Stage, recipe: Mapping[str, Any], training: Training | None) -> float | None:
    """What the training says that it used, else what the recipe asks for."""
    used = as_number(training.details.get("baseline")) if training else None
    train = train_section(stage, recipe)
    if used is not None or not train or train.get("effective_positive_share") is not None:
        return used
    return as_number(train.get("baseline")) or 0.0


def _positive_share(training: Training | None, kept: int, positives: int) -> float | None:
    used = as_number(training.details.get("positive_share")) if training else None
    if used is not None:
        return used
    return positives / kept if kept else None


def _effective_share(training: Training | None) -> float | None:
    if training is None:
        return None
    for values in (training.details, training.log[-1]):
        share = as_number(values.get("effective_positive_share"))
        if share is not None:
            return share
    return None


def _kept_and_positive(folder: Path) -> tuple[int, int] | None:
    if not shard_paths(folder):
        return None
    reward = read_table(folder, ["reward"])["reward"]
    return len(reward), pc.sum(pc.greater(reward, 0)).as_py() or 0


def _outcomes(folder: Path) -> Mapping[str, int]:
    if not shard_paths(folder):
        return {}
    grade = read_table(folder, ["grade"])["grade"]
    found = {str(row["values"]): row["counts"] for row in pc.value_counts(grade).to_pylist()}
    order = [*map(str, Outcome), *sorted(found)]
    return {name: found[name] for name in dict.fromkeys(order) if name in found}
