"""A recipe: all sections together, read from YAML and dotted overrides, written back resolved."""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, Field, TypeAdapter

from topr.config.base import Section, unchecked_fixed
from topr.config.curation import CurateConfig
from topr.config.mistakes import SectionT, similar, validate
from topr.config.reading import apply_override, read_values, shipped
from topr.config.sections import (
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    LoopConfig,
    ModelConfig,
)
from topr.config.tasks import ArithmeticConfig, TaskConfig
from topr.config.training import TrainConfig
from topr.errors import ConfigError

BASELINE = frozenset({"baseline", "effective_positive_share"})
"""Keys of `train` of which one at most may be set."""


class Comparison(Section):
    """Another way of training the starting model on the first iteration's rollouts."""

    curate: dict[str, Any] = Field(default_factory=dict)
    """Keys of `curate` that differ."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train` that differ."""

    def fixed(self) -> dict[str, Any]:
        """See `Section.fixed`; the keys are checked together with the recipe's."""
        kept = super().fixed()
        if "train" in kept:
            kept["train"] = unchecked_fixed(TrainConfig, kept["train"])
        return kept


class Recipe(Section):
    """Everything that fixes a run."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"description", "needs"})

    name: str
    """Name of the recipe: that of its file where none is given."""
    description: str = ""
    """One line for `topr recipes`."""
    needs: str = ""
    """What it takes: hardware, time, downloads."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of sampling and training."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Times that the loop generates, grades, curates, trains and evaluates."""
    loop: LoopConfig = LoopConfig()
    task: TaskConfig
    model: ModelConfig = ModelConfig()
    generate: GenerateConfig = GenerateConfig()
    grade: GradeConfig = GradeConfig()
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compare: dict[str, Comparison] = Field(default_factory=dict)
    """Named comparisons, each trained from the starting model on the first iteration's rollouts."""
    verifier: dict[str, Any] | None = None
    """The sections of a second recipe, for a verifier of what the loop's model writes; its
    candidates come from this run."""

    def fixed(self) -> dict[str, Any]:
        """See `Section.fixed`; the verifier's sections are checked when its run begins."""
        kept = super().fixed()
        if "verifier" in kept:
            kept["verifier"] = unchecked_fixed(Recipe, kept["verifier"])
        return kept

    def fingerprint(self) -> str:
        """Return a hash of everything that fixes the run's numbers."""
        return hashlib.sha256(json.dumps(self.fixed(), sort_keys=True).encode()).hexdigest()[:16]


def shipped_recipes() -> dict[str, Traversable]:
    """Return the recipes in the package by name."""
    return shipped("recipes")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: name of a shipped recipe, or path of a YAML file.
        overrides: `key.key=value`, the value in YAML: `train.learning_rate=1e-6`.

    Raises:
        ConfigError: no such recipe, broken YAML, an unknown key or a value that does not fit.

    """
    values = read_values(source, overrides, shipped_recipes(), what="recipe")
    values.setdefault("name", Path(str(source)).stem)
    recipe = validate(Recipe, values, where=f"recipe {source}")
    comparisons(recipe, f"recipe {source}, ")
    if recipe.verifier is not None:
        verifier_recipe(recipe, candidates="", test_candidates="", generator="")
    return recipe


def comparisons(recipe: Recipe, source: str = "") -> dict[str, tuple[CurateConfig, TrainConfig]]:
    """Return the sections `curate` and `train` of each comparison, by its name."""
    return {
        name: derived_sections(recipe, comparison, where=f"{source}compare.{name}")
        for name, comparison in recipe.compare.items()
    }


def derived_sections(
    recipe: Recipe, comparison: Comparison, *, where: str
) -> tuple[CurateConfig, TrainConfig]:
    """Return the recipe's own sections with the differences of a comparison."""
    train = recipe.train.model_dump()
    if comparison.train.get("objective", recipe.train.objective) != recipe.train.objective:
        train |= {"taper": None, "objective_args": {}}  # they belong to the recipe's objective
    if train.keys() & comparison.train.keys() & BASELINE:
        train |= dict.fromkeys(BASELINE)  # each fixes the other
    return (
        validate(CurateConfig, recipe.curate.model_dump() | comparison.curate, where=where),
        validate(TrainConfig, train | comparison.train, where=where),
    )


def verifier_recipe(
    recipe: Recipe, *, candidates: str, test_candidates: str, generator: str
) -> Recipe:
    """Return the recipe of a run's verifier.

    Args:
        recipe: of the run, with its `verifier`.
        candidates: graded rollouts that the verifier learns from.
        test_candidates: those that it is measured on.
        generator: the model that wrote them: what the built-in verifier starts from.

    Raises:
        ConfigError: an unknown key, or a value that does not fit.

    """
    values = dict(recipe.verifier or {})
    task = dict(values.get("task") or {})
    task |= {"name": "verifier", "rollouts": candidates, "test_rollouts": test_candidates}
    if isinstance(recipe.task, ArithmeticConfig):
        warmup = {"seed": recipe.seed, "generator": generator}
        warmup |= {"arithmetic": recipe.task.model_dump(mode="json")}
        task["warmup"] = {**warmup, **(task.get("warmup") or {})}
    # What a run may be told while it is under way holds for its verifier's as well.
    values |= {"name": f"{recipe.name}-verifier", "task": task}
    values["grade"] = {"none_right": recipe.grade.none_right, **(values.get("grade") or {})}
    values.setdefault("seed", recipe.seed)
    return validate(Recipe, values, where=f"recipe {recipe.name}, verifier")


def load_section(
    section: type[SectionT], name: str, recipe: str | Path | None, overrides: Sequence[str] = ()
) -> SectionT:
    """Read one section, from a recipe or from its defaults, for a stage that is run alone.

    Args:
        section: its class.
        name: its key in a recipe; overrides are written as for a whole recipe, `name.key=value`.
        recipe: as for `load_recipe`, or None for the defaults.
        overrides: as for `load_recipe`.

    Raises:
        ConfigError: as `load_recipe`, or an override belongs to another section.

    """
    values = {} if recipe is None else read_values(recipe, (), shipped_recipes(), what="recipe")
    for override in overrides:
        _refuse_other_section(override, name, section)
        apply_override(values, override)
    return validate(section, values.get(name, {}), where=f"section {name}")


def override_section(section: SectionT, name: str, overrides: Sequence[str]) -> SectionT:
    """Return a section with overrides laid over it, written `name.key=value`.

    Raises:
        ConfigError: as `load_section`.

    """
    values = {name: section.model_dump(mode="json")}
    for override in overrides:
        _refuse_other_section(override, name, type(section))
        apply_override(values, override)
    return validate(type(section), values[name], where=f"section {name}")


def _refuse_other_section(override: str, name: str, section: type[BaseModel]) -> None:
    if override.startswith(f"{name}."):
        return
    key, _, value = override.partition("=")
    meant = f"{name}.KEY=VALUE with KEY one of {', '.join(section.model_fields)}"
    if near := similar(key, section.model_fields):
        meant = f"{name}.{near}={value or 'VALUE'}"
    raise ConfigError(
        f"override {override!r}: this command reads the section {name!r} only; write {meant}"
    )


def dump_recipe(recipe: Section) -> str:
    """Return a resolved recipe or study as YAML, every default written out."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema()
