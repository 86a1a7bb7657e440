"""What a run will do, stage by stage: how many completions, optimizer steps and models.

Counts alone, from a recipe and the number of its problems. What each costs is elsewhere
(`topr.runs.plan.costs`), and so is what curation keeps (`topr.runs.plan.curating`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topr.config import CurateConfig, Recipe, TrainConfig
from topr.config.recipe import derived_sections
from topr.runs.preparation import quotas
from topr.stages.train_arguments import training_arguments
from topr.training import TOPRConfig
from topr.training.checks import objective_of
from topr.training.ordering import ShuffledBatches
from topr.training.watch import steps_between


class Kind(StrEnum):
    """What a stage does. Reading, curating and reporting take seconds and are left out."""

    GENERATE = "generate"
    GRADE = "grade"
    RECOMPUTE = "recompute log mu"
    TRAIN = "train"
    PROBE = "probe"
    EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A number that is known to lie between two others, its ends included.

    >>> Span.of(3) + Span(low=1, high=2)
    Span(low=4, high=5)
    """

    low: float
    high: float

    @classmethod
    def of(cls, value: float) -> "Span":
        """Return a number that is known."""
        return cls(low=value, high=value)

    def __add__(self, other: "Span") -> "Span":
        return Span(low=self.low + other.low, high=self.high + other.high)

    def __mul__(self, factor: float) -> "Span":
        return Span(low=self.low * factor, high=self.high * factor)


NONE = Span.of(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """`n` completions of each of `problems` problems, in one pass over their shards."""

    problems: int
    n: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Problems of a task."""

    train: int
    evaluation: int
    """Of `evaluate.split`, as many as are evaluated."""
    validation: int
    """Of the split `validation`, as many as are evaluated for `loop.keep=best`."""
    probe: int = 0
    """Of the split `validation`, at most: trainings are probed with `train.probe_problems`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a run."""

    kind: Kind
    label: str
    """Its line in a table; stages of several iterations share one."""
    folder: str
    """Of its manifest, in the run's directory."""
    completions: Span = NONE
    """Drawn, graded, scored, or in the training set."""
    draws: tuple[Draw, ...] = ()
    """Where their number is known: how they are drawn."""
    problems: int = 0
    """In the training set, at most."""
    steps: Span = NONE
    """Of the optimizer."""
    passes: Span = NONE
    """Completions that go through optimizer steps, counted again in each epoch."""
    loads: int = 0
    """Models that are loaded."""
    models: int = 0
    """Models that are written."""
    checkpoints: Span = NONE
    """Checkpoints on disk at a time, at most. All are removed when training ends."""
    estimated: bool = False
    """Counts rest on the grades of a few completions."""


class Drawn(Protocol):
    """What one iteration draws."""

    @property
    def completions(self) -> Span:
        """How many."""
        ...

    @property
    def draws(self) -> tuple[Draw, ...]:
        """How, where it is known."""
        ...

    def estimated(self, curate: CurateConfig | None = None) -> bool:
        """Say whether what is drawn, or what is kept of it, rests on a few grades."""
        ...

    def kept(self, curate: CurateConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many completions of each problem curation keeps, at least and at most."""
        ...


class Expect(Protocol):
    """Says what is drawn by the curations that know when a problem is full."""

    def __call__(self, curations: Sequence[CurateConfig]) -> Drawn:
        """Return what is drawn until problems are full by all of `curations`."""
        ...


def planned(recipe: Recipe, sizes: Sizes, expect: Expect) -> list[Stage]:
    """Return the stages of a run in their order. Later iterations are taken to be as the first."""
    stages = list(_evaluated(recipe, sizes, "evaluate base", Path("iteration-00"), validate=True))
    drawn = {1: expect(quotas(recipe, 1))}
    for iteration in range(1, recipe.iterations + 1):
        now = drawn[iteration] = drawn.get(min(iteration, 2)) or expect(quotas(recipe, iteration))
        folder = Path(f"iteration-{iteration:02d}")
        stages += _drawn(now, folder)
        first = max(1, iteration - (recipe.loop.window or iteration) + 1)
        pooled = [drawn[i] for i in range(first, iteration + 1)]
        stages += _trained(recipe, sizes, recipe.curate, recipe.train, pooled, "train", folder)
        stages += _measured(recipe, sizes, recipe.train, "evaluate", folder, validate=True)
    for name, comparison in recipe.compare.items():
        curate, train = derived_sections(recipe, comparison, where=f"compare.{name}")
        folder, label = Path("compare") / name, f"compare {name}"
        stages += _trained(recipe, sizes, curate, train, [drawn[1]], f"{label}: train", folder)
        stages += _measured(recipe, sizes, train, f"{label}: evaluate", folder, validate=False)
    if recipe.verifier is not None:
        stages += _drawn(expect(quotas(recipe, recipe.iterations + 1)), Path("candidates"))
    return stages


def _drawn(drawn: Drawn, folder: Path) -> Iterator[Stage]:
    generate = Stage(
        kind=Kind.GENERATE,
        label="generate" if folder.name != "candidates" else "generate candidates",
        folder=str(folder / "rollouts"),
        completions=drawn.completions,
        draws=drawn.draws,
        estimated=drawn.estimated(),
    )
    yield generate
    label = generate.label.replace("generate", "grade")
    yield replace(generate, kind=Kind.GRADE, label=label, folder=str(folder / "graded"))


def _trained(
    recipe: Recipe, sizes: Sizes, curate: CurateConfig, train: TrainConfig,
    pooled: Sequence[Drawn], label: str, folder: Path,
) -> Iterator[Stage]:  # fmt: skip
    """Yield what recomputes log mu where that is asked for, a training, and its probes."""
    ends = zip(*(each.kept(curate) for each in pooled), strict=True)
    low, high = (np.sum(sizes, axis=0) for sizes in ends)
    rows = Span(low=int(low.sum()), high=int(high.sum()))
    args = training_arguments(train, recipe.model, Path("unused"), recipe.seed)
    ways = [_steps(sizes, args) for sizes in (low, high)]
    stage = Stage(
        kind=Kind.TRAIN,
        label=label,
        folder=str(folder / "training"),
        completions=rows,
        problems=int(np.count_nonzero(high)),
        steps=Span(low=ways[0][0], high=ways[1][0]),
        passes=Span(low=ways[0][1], high=ways[1][1]),
        loads=1,
        models=1 + len(train.snapshots),
        checkpoints=Span(low=_checkpoints(ways[0][0], args), high=_checkpoints(ways[1][0], args)),
        estimated=pooled[0].estimated(curate),
    )
    if train.behavior_logprobs == "recompute":
        yield Stage(
            kind=Kind.RECOMPUTE,
            label=f"{label.removesuffix('train')}recompute log mu",
            folder=stage.folder,
            completions=rows,
            estimated=stage.estimated,
        )
    yield stage
    problems = 0 if train.watch == "off" else min(sizes.probe, train.probe_problems)
    if problems:
        low, high = (_probes(int(steps), args) for steps in (stage.steps.low, stage.steps.high))
        yield Stage(
            kind=Kind.PROBE,
            label=f"{label.removesuffix('train')}probe",
            folder=stage.folder,
            completions=Span(low=low * problems, high=high * problems),
            draws=(Draw(problems=problems, n=1),) * high,
            estimated=stage.estimated,
        )


def _steps(kept_P: NDArray[np.int64], args: TOPRConfig) -> tuple[int, float]:
    """Return optimizer steps, and how many completions go through them in all."""
    if not kept_P.any():
        return max(args.max_steps, 0), 0.0
    groups = np.repeat(np.arange(len(kept_P)), kept_P)
    batches = ShuffledBatches(
        groups.tolist(),
        args.batch_size(1),
        seed=0,
        whole_groups=objective_of(args).needs_group or args.shuffle_by == "prompt",
    )
    steps, per_epoch = args.optimizer_steps(len(batches)), args.steps_per_epoch(len(batches))
    return steps, len(groups) * steps / per_epoch


def _probes(steps: int, args: TOPRConfig) -> int:
    """Return how often a training is probed: before, every so many steps, and at its end."""
    return 1 + -(-steps // steps_between(steps, args.watch_steps))


def _checkpoints(steps: int, args: TOPRConfig) -> int:
    """Return how many checkpoints lie on disk at a time, while the next is written."""
    written = max(0, steps - 1) // int(args.save_steps)  # none of the last step
    limit = args.save_total_limit
    return written if limit is None else min(written, limit + 1)


def _measured(
    recipe: Recipe, sizes: Sizes, train: TrainConfig, label: str, folder: Path, *, validate: bool
) -> Iterator[Stage]:
    """Yield the evaluations of what a training leaves."""
    for step in sorted(train.snapshots):
        place = folder / "snapshots" / f"step-{step:06d}"
        yield from _evaluated(recipe, sizes, f"{label} snapshots", place, validate=False)
    yield from _evaluated(recipe, sizes, label, folder, validate=validate)


def _evaluated(
    recipe: Recipe, sizes: Sizes, label: str, folder: Path, *, validate: bool
) -> Iterator[Stage]:
    """Yield the evaluation of one model, and that on validation problems where one is to choose."""
    places = [(label, folder, sizes.evaluation, 1)]
    if validate and recipe.loop.keep == "best":
        places.append((f"{label}, validation", folder / "validation", sizes.validation, 0))
    for name, place, problems, loads in places:
        draws = [Draw(problems=problems, n=recipe.evaluate.n)]
        if recipe.evaluate.greedy:
            draws.append(Draw(problems=problems, n=1))
        yield Stage(
            kind=Kind.EVALUATE,
            label=name,
            folder=str(place / "evaluation"),
            completions=Span.of(sum(draw.problems * draw.n for draw in draws)),
            draws=tuple(draws),
            loads=loads,
        )
