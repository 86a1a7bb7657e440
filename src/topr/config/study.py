"""A study: one recipe, varied in named arms and repeated over seeds. No torch."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from topr.config.base import Section, unchecked_fixed
from topr.config.mistakes import validate
from topr.config.reading import read_values, shipped
from topr.config.recipe import Recipe

METRICS = re.compile(
    r"(pass|maj)@\d+|greedy|truncated|mean_length|few_correct"
    r"|(base_)?(accuracy|balanced_accuracy|auc|calibration_error|invalid)"
    r"|(base_)?(majority|weighted|best|oracle)@\d+"
)
BASE = "base"
"""The starting model's name in claims and results."""


class Arm(Section):
    """One way of going about it."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"label", "series", "x"})

    label: str
    """Its name in tables and figures."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """What differs from the study's recipe, section by section, key by key."""
    train: bool = True
    """False: only the arm's starting model is evaluated."""
    rate: str | float | None = None
    """The learning rate, or the arm whose chosen rate this one takes; by default chosen by a sweep
    of its own."""
    series: str | None = None
    """Arms of one series are joined by a line, over their `x`."""
    x: float | None = None
    """Where the arm stands on the study's axis; in a series it defaults to its generated tokens."""


class Claim(Section):
    """A statement about two arms: `arm` is above `than` by `margin` or more."""

    says: str
    """The sentence that is reproduced or not."""
    arm: str
    than: str = BASE
    """Another arm, or `base`: the starting model."""
    metric: str = "pass@1"
    than_metric: str | None = None
    """Of the other arm; defaults to the same."""
    margin: float = 0.0
    """Negative for "not below by more than"."""


class Study(Section):
    """Everything that fixes a study."""

    # What is said of cells can be changed when they are there; seeds and arms can be added: each
    # cell knows by itself which recipe it was computed from.
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"seeds", "arms", "description", "needs", "claims", "metrics", "curves", "axis", "scale"}
    )

    name: str
    description: str
    """One line for `topr study`."""
    needs: str = ""
    """What it takes: hardware, time."""
    recipe: dict[str, Any]
    """The recipe that every arm starts from."""
    arms: dict[str, Arm]
    claims: tuple[Claim, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Of the base model, the problems, sampling and training alike: each seed is its own run,
    in which arms share base model and rollouts."""
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        3e-5,
        1e-4,
        3e-4,
    )
    """Learning rates of the sweep, the same for every arm."""
    tuning_seed: int = 100
    """Seed of the sweep, whose choice is made on validation problems by `metric`."""
    metric: str = "pass@1"
    """What rates are chosen by, and figures show."""
    metrics: tuple[str, ...] = ("pass@1", "maj@16", "pass@16", "greedy", "invalid")
    """Columns of the results' table."""
    curves: tuple[str, ...] = ("log_ratio/positive", "log_ratio/negative")
    """Keys of the training log that are drawn over optimizer steps."""
    axis: str = ""
    """What `x` is."""
    scale: Literal["linear", "log"] = "linear"
    """Of the axis."""

    def fixed(self) -> dict[str, Any]:
        """See `Section.fixed`; the recipe is checked with each arm's changes."""
        kept = super().fixed()
        return kept | {"recipe": unchecked_fixed(Recipe, kept["recipe"])}

    @model_validator(mode="after")
    def _names_are_there(self) -> "Study":
        for name, arm in self.arms.items():
            if name == BASE:
                raise ValueError(f"an arm cannot be named {BASE!r}: that is the starting model")
            of = self.arms.get(arm.rate) if isinstance(arm.rate, str) else None
            if isinstance(arm.rate, str) and (of is None or of.rate is not None or not of.train):
                raise ValueError(f"arms.{name}.rate: {arm.rate!r} is not an arm with its own sweep")
        for claim in self.claims:
            for metric in (claim.metric, claim.than_metric or claim.metric):
                if not METRICS.fullmatch(metric):
                    raise ValueError(
                        f"claim {claim.says!r} is about {metric!r}: expected pass@K, maj@N, "
                        "greedy, invalid, truncated, mean_length, few_correct or, of a verifier, "
                        "accuracy, balanced_accuracy, auc, calibration_error, majority@N, "
                        "weighted@N, best@N, oracle@N, each also with base_ before it"
                    )
            for name in (claim.arm, claim.than):
                if name != BASE and name not in self.arms:
                    raise ValueError(
                        f"claim {claim.says!r} names {name!r}; arms are {', '.join(self.arms)}"
                    )
        loops = [self.recipe, *(arm.changes for arm in self.arms.values())]
        loops += [values.get("verifier") or {} for values in loops]
        if any((values.get("loop") or {}).get("keep") == "best" for values in loops):
            raise ValueError(
                "loop.keep=best: a study reports the last iteration's model; leave it out"
            )
        if self.tuning_seed in self.seeds:
            raise ValueError(
                f"tuning_seed={self.tuning_seed} is one of seeds={list(self.seeds)}: rates would "
                "be chosen on the very runs that are reported"
            )
        return self

    def cell(self, arm: str | None, seed: int, rate: float | None, split: str) -> Recipe:
        """Return the recipe of one cell.

        Args:
            arm: None for the starting model alone.
            seed: of everything.
            rate: the learning rate; None leaves the recipe's.
            split: what is evaluated on.

        """
        values = dict(self.recipe)
        if arm is not None:
            values = merged(values, self.arms[arm].changes)
        values = merged(values, {"name": self.name, "seed": seed, "evaluate": {"split": split}})
        if values.get("task", {}).get("name") == "arithmetic":
            values = merged(values, {"task": {"seed": seed, "warmup": {"seed": seed}}})
        if rate is not None:
            train = {"train": {"learning_rate": rate}}
            values = merged(values, {"verifier": train} if "verifier" in values else train)
        where = f"study {self.name}" + (f", arms.{arm}" if arm else "")
        return validate(Recipe, values, where=where)


def shipped_studies() -> dict[str, Traversable]:
    """Return the studies in the package by name."""
    return shipped("recipes", "studies")


def load_study(source: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study, and check the recipe of each of its arms.

    Args:
        source: name of a shipped study, or path of a YAML file.
        overrides: `key.key=value`, as for a recipe: `seeds=[0]`, `recipe.train.max_steps=20`.

    Raises:
        ConfigError: no such study, broken YAML, an unknown key or a value that does not fit.

    """
    values = read_values(source, overrides, shipped_studies(), what="study")
    values.setdefault("name", Path(str(source)).stem)
    study = validate(Study, values, where=f"study {source}")
    for arm in study.arms:
        study.cell(arm, study.seeds[0], None, "test")
    return study


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with changes laid over them, mapping by mapping."""
    result = dict(values)
    for key, value in changes.items():
        there = result.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            result[key] = merged(there, value)
        else:
            result[key] = value
    return result
