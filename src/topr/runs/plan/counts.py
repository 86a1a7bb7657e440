"""What a run will do, stage by stage: how many completions, optimizer steps and models.

Counts alone; what each costs is in `topr.runs.plan.costs`. No grade of the run is known yet. Where
rules look at grades, they are applied to made-up problems, each as hard as one of the few that were
seen; where none was seen, the count is the most that is possible.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from topr.config import AllRule, CapRule, CurateConfig, Recipe, TrainConfig
from topr.config.recipe import comparisons
from topr.curation import Columns, curate, finished, max_candidates, most_per_problem
from topr.errors import DataError
from topr.records import Split
from topr.report.text import plural
from topr.runs.preparation import quotas
from topr.stages.probe import probe_source
from topr.stages.train_arguments import training_arguments
from topr.tasks import Task
from topr.training import TOPRConfig
from topr.training.checks import objective_of
from topr.training.ordering import ShuffledBatches
from topr.training.watch import steps_between

MADE_UP = 2000
"""Problems that are made up at most: the share that is kept is then right within 2 %."""


class Kind(StrEnum):
    """What a stage does. Reading, curating and reporting take seconds and are left out."""

    GENERATE = "generate"
    GRADE = "grade"
    TRAIN = "train"
    EVALUATE = "evaluate"


ABOUT, AT_MOST = "about ", "at most "
"""Words before a count. An exact one has none: the better known is the smaller text."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number, and how well it is known.

    >>> print(Count(1000) + Count(200, ABOUT))
    about 1,200
    """

    value: int = 0
    certainty: str = ""

    def __add__(self, other: "Count") -> "Count":
        return Count(self.value + other.value, max(self.certainty, other.certainty))

    def __str__(self) -> str:
        return f"{self.certainty}{self.value:,}"

    def of(self, noun: str) -> str:
        """Return it with its noun: `about 1,200 completions`, `1 optimizer step`."""
        return f"{self.certainty}{plural(self.value, noun)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """`n` completions of each of `problems` problems."""

    problems: int
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a run."""

    kind: Kind
    label: str
    """Its line in a table; stages of several iterations share one."""
    folder: Path
    """Of its manifest, in the run's directory."""
    completions: Count
    """Generated, graded, evaluated, or in the training set."""
    draws: Sequence[Draw]
    """How completions are generated; those of a training are its probes."""
    steps: Count = Count()
    """Of the optimizer."""
    passes: float = 0.0
    """Completions that go through optimizer steps, counted again in each epoch."""
    recomputed: int = 0
    """Completions whose log mu is recomputed before training."""
    models: int = 0
    """Models that are written."""
    checkpoints: int = 0
    """Checkpoints on disk at a time, at most. All are removed when training ends."""


def planned(recipe: Recipe, task: Task, graded: pa.Table | None = None) -> list[Stage]:
    """Return the stages of a run in their order. Later iterations are taken to be as the first.

    Args:
        recipe: of the run.
        task: of the recipe.
        graded: completions that were seen; None: what depends on grades is counted at most.

    """
    first, later = (_generated(recipe, task, iteration, graded) for iteration in (1, 2))
    drawn = [first] + [later] * (recipe.iterations - 1)
    stages = [*_evaluated(recipe, task, "evaluate base", Path("iteration-00"), best=True)]
    for iteration, now in enumerate(drawn, start=1):
        folder = Path(f"iteration-{iteration:02d}")
        pooled = drawn[:iteration][-(recipe.loop.window or iteration) :]
        stages += _drawn(now, "", folder)
        stages.append(_trained(recipe, task, recipe.curate, recipe.train, pooled, "train", folder))
        stages += _evaluated(recipe, task, "evaluate", folder, recipe.train.snapshots, best=True)
    for name, (config, train) in comparisons(recipe).items():
        label, folder = f"compare {name}:", Path("compare") / name
        stages.append(_trained(recipe, task, config, train, [first], f"{label} train", folder))
        stages += _evaluated(recipe, task, f"{label} evaluate", folder, train.snapshots)
    if recipe.verifier is not None:
        stages += _drawn(later, " candidates", Path("candidates"))
    return stages


@dataclass(frozen=True, kw_only=True)
class _Generated:
    """What one iteration generates."""

    problems: int
    draws: Sequence[Draw]
    """One for each round."""
    certainty: str
    grades: Columns | None
    """Made-up grades of some of the problems; None: no grade was seen."""

    def kept(self, config: CurateConfig) -> tuple[NDArray[np.int64], str]:
        """Return how many completions of each problem are kept. Duplicates are not foreseen."""
        exact = not self.certainty and all(isinstance(s, AllRule | CapRule) for s in config.steps)
        if self.grades is None:
            most = self.draws[0].n
            kept_P = np.full(self.problems, min(most, most_per_problem(config, most)))
            return kept_P, "" if exact else AT_MOST
        exact = exact and not np.isnan(self.grades.rewards_N).any()
        try:
            chosen = self.grades.problems_N[curate(self.grades, config).keep]
        except DataError:  # no right one was seen, and the rules want some
            chosen = np.zeros(0, np.int64)
        kept_P = np.bincount(chosen, minlength=len(self.grades.names))
        return np.resize(kept_P, self.problems), "" if exact else ABOUT


def _generated(recipe: Recipe, task: Task, iteration: int, graded: pa.Table | None) -> _Generated:
    """Return what an iteration generates: rounds are played through with made-up grades."""
    problems, curations = len(task.problems(Split.TRAIN)), quotas(recipe, iteration)
    n, unknown, grades = recipe.generate.n, AT_MOST, None
    most = max((max_candidates(each) or 0 for each in curations), default=n)
    draws = [Draw(problems=problems, n=most)]
    if graded is not None:
        unknown, draws = ABOUT, []
        rewards = _made_up(graded, min(problems, MADE_UP), most)
        drawn_P, open_P = np.zeros(len(rewards), np.int64), np.ones(len(rewards), np.bool_)
        while open_P.any() and drawn_P.max() < most:
            more = min(n, most - int(drawn_P.max()))
            draws.append(Draw(problems=max(1, round(problems * open_P.mean())), n=more))
            drawn_P[open_P] += more
            problems_N, samples_N = np.nonzero(np.arange(most) < drawn_P[:, None])
            names, unlike = [str(problem) for problem in problems_N], range(len(problems_N))
            grades = Columns.of(rewards[problems_N, samples_N], names, samples_N, unlike)
            open_P = ~np.all([finished(grades, each) for each in curations], axis=0)
    certainty = unknown if curations else ""
    return _Generated(problems=problems, draws=draws, certainty=certainty, grades=grades)


def _made_up(graded: pa.Table, problems: int, n: int) -> NDArray[np.float64]:
    """Return rewards of problems that are each as hard as one that was seen, [problems, n].

    Of a problem few completions were seen, so its share of right ones is drawn from what they and
    one more, with the mean share of all problems, leave possible (a beta distribution).
    """
    _, seen_N = np.unique(graded["problem_id"].to_pylist(), return_inverse=True)
    reward_N = np.array(graded["reward"].to_pylist(), np.float64)  # nan: no reward
    right, wrong = np.bincount(seen_N, reward_N > 0), np.bincount(seen_N, reward_N <= 0)
    share = (right.sum() + 0.5) / (right.sum() + wrong.sum() + 1)
    generator = np.random.default_rng(0)
    like = generator.integers(len(right), size=problems)
    solved_P = generator.beta(right[like] + share, wrong[like] + 1 - share)
    rewards = np.where(generator.random((problems, n)) < solved_P[:, None], 1.0, -1.0)
    rewards[generator.random(rewards.shape) < np.isnan(reward_N).mean()] = np.nan
    return rewards


def _drawn(made: _Generated, suffix: str, folder: Path) -> Iterator[Stage]:
    """Yield the stages that generate completions and grade them."""
    count = Count(sum(draw.problems * draw.n for draw in made.draws), made.certainty)
    for kind, name in ((Kind.GENERATE, "rollouts"), (Kind.GRADE, "graded")):
        label = f"{kind}{suffix}"
        yield Stage(
            kind=kind, label=label, folder=folder / name, completions=count, draws=made.draws
        )


def _trained(
    recipe: Recipe, task: Task, config: CurateConfig, train: TrainConfig,
    pooled: Sequence[_Generated], label: str, folder: Path,
) -> Stage:  # fmt: skip
    """Return a training with its probes."""
    kept, certainties = zip(*(each.kept(config) for each in pooled), strict=True)
    args = training_arguments(train, recipe.model, Path("unused"), recipe.seed)
    rows_P, certainty = np.sum(kept, axis=0), max(certainties)
    steps, passes = _steps(rows_P, args)
    rows = Count(int(rows_P.sum()), certainty)
    source = None if train.watch == "off" else probe_source(recipe, task)
    asked = min(len(source.problems), train.probe_problems) if source else 0
    probes = 1 + -(-steps // steps_between(steps, args.watch_steps)) if asked else 0
    return Stage(
        kind=Kind.TRAIN,
        label=label,
        folder=folder / "training",
        completions=rows,
        draws=[Draw(problems=asked, n=1)] * probes,
        steps=Count(steps, "" if args.max_steps > 0 else certainty),
        passes=passes,
        recomputed=rows.value if train.behavior_logprobs == "recompute" else 0,
        models=1 + len(train.snapshots),
        # Two, and the one that is being written; none of the last step.
        checkpoints=min(max(0, steps - 1) // int(args.save_steps), 3),
    )


def _steps(kept_P: NDArray[np.int64], args: TOPRConfig) -> tuple[int, float]:
    """Return optimizer steps, and how many completions go through them in all."""
    if not kept_P.any():
        return max(args.max_steps, 0), 0.0
    whole = bool(objective_of(args).needs_group) or args.shuffle_by == "prompt"
    groups = np.repeat(np.arange(len(kept_P)), kept_P).tolist()
    batches = len(ShuffledBatches(groups, args.batch_size(1), seed=0, whole_groups=whole))
    steps = args.optimizer_steps(batches)
    return steps, len(groups) * steps / args.steps_per_epoch(batches)


def _evaluated(
    recipe: Recipe, task: Task, label: str, folder: Path, snapshots: Sequence[int] = (), *,
    best: bool = False,
) -> Iterator[Stage]:  # fmt: skip
    """Yield evaluations of snapshots, of a model, and on validation problems to find the best."""
    config = recipe.evaluate
    names = [f"snapshots/step-{step:06d}" for step in sorted(snapshots)]
    places = [(f"{label} snapshots", folder / name, config.split) for name in names]
    places.append((label, folder, config.split))
    if best and recipe.loop.keep == "best":
        places.append((f"{label}, validation", folder / "validation", "validation"))
    for name, place, split in places:
        problems = len(task.problems(Split(split))[: config.problems])
        samples = [config.n, 1] if config.greedy else [config.n]
        yield Stage(
            kind=Kind.EVALUATE,
            label=name,
            folder=place / "evaluation",
            completions=Count(problems * sum(samples)),
            draws=[Draw(problems=problems, n=n) for n in samples],
        )
