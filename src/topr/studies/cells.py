"""One cell of a study: its own run, on rollouts that it shares with other cells.

`work` is what a worker process is given; everything that it needs is in a `Job`, and what it made
is in the job's directory when it returns. Not here: which cells there are (`topr.studies.run`).
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter

from topr.config import Recipe
from topr.config.study import BASE
from topr.errors import DivergedError, RunDirectoryError
from topr.progress import Silent
from topr.runs.environment import environment
from topr.stages.common import fingerprint
from topr.store import read_manifest, write_json_atomic
from topr.studies.results import Cell, Point
from topr.user_code import code_digest
from topr.verifier.votes import METHODS

CELL_FILE = "cell.json"
STANDARD_ERROR = "_se"
"""Ends the key of a metric's standard error, over problems."""
OF_VERDICTS = ("balanced_accuracy", "auc", "calibration_error", "invalid")
FEW = 1 / 8
"""A problem with a smaller share of correct samples has few."""
LOGGED = (
    "step", "log_ratio/positive", "log_ratio/negative", "weight/negative",
    "weight/negative_below_0.01", "effective_sample_size", "grad_norm",
)  # fmt: skip
LOG_POINTS = 100


class Kind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    """Runs the recipe."""
    EVALUATE = "evaluate"
    """Evaluates the starting model."""
    DRAW = "draw"
    """Does that, and samples and grades the first rollouts, for others to train on."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell to be computed."""

    arm: str
    seed: int
    rate: float | None
    recipe: Recipe
    kind: Kind
    directory: Path
    draws: Path
    """Where evaluation and first rollouts of the starting model lie, for all cells that share
    them."""

    @property
    def title(self) -> str:
        """Return a name for messages."""
        rate = "" if self.rate is None else f", rate {self.rate:g}"
        return f"{self.arm}, seed {self.seed}{rate}"

    @property
    def fingerprint(self) -> str:
        """Return a hash of what the cell's numbers depend on."""
        from topr.studies.sharing import draws_fingerprint

        if self.kind is not Kind.TRAIN:
            return draws_fingerprint(self.recipe)
        names = (self.recipe.train.objective, getattr(self.recipe.task, "grader", ""))
        own = [code_digest(name) for name in names if ":" in name]
        return fingerprint(self.recipe.fingerprint(), own) if own else self.recipe.fingerprint()


def is_done(job: Job) -> bool:
    """Say whether the cell is there.

    Raises:
        RunDirectoryError: it is, and was computed from another recipe.

    """
    path = job.directory / CELL_FILE
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8")).get("recipe")
    if found != job.fingerprint:
        raise RunDirectoryError(
            f"{path} was computed from another recipe than the study's now (settings or defaults "
            "have changed since). Nothing is overwritten: remove the cell's directory to compute "
            "it anew, or give the study a new one"
        )
    return True


def drawing_for(job: Job) -> Job:
    """Return the job that a training cell waits for."""
    return replace(job, arm=BASE, rate=None, kind=Kind.DRAW, directory=job.draws)


def work(job: Job) -> None:
    """Compute a cell, or resume it."""
    from topr.runs.loop import draw_first, run
    from topr.studies.sharing import share_stages

    began = time.perf_counter()
    diverged = None
    log: dict[str, tuple[float, ...]] = {}
    if job.kind is Kind.TRAIN:
        try:
            share_stages(job.recipe, job.draws, job.directory)
            run(job.recipe, job.directory, Silent(), report=False)
            checked = job.recipe.verifier is not None
            points, log = _checked(job) if checked else _trained(job), _log(job)
        except DivergedError as error:
            diverged, points = str(error), (_fallen(job),)
    else:
        with FileLock(job.draws / ".lock"):  # two cells may share it
            draw_first(job.recipe, job.draws, Silent(), rollouts=job.kind is Kind.DRAW)
        points = (_starting(job),)
    cell = Cell(
        arm=job.arm, seed=job.seed, rate=job.rate, points=points, log=log, diverged=diverged
    )
    job.directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(
        job.directory / CELL_FILE,
        {
            "cell": asdict(cell),
            "seconds": time.perf_counter() - began,
            "recipe": job.fingerprint,
            "commit": environment()["commit"],
        },
    )


@dataclass(frozen=True, kw_only=True)
class Done:
    """A cell that is there, and how it came about."""

    cell: Cell
    seconds: float
    """Of its last call."""
    commit: str | None = None
    """Of topr's repository, when it was computed."""


def read_cell(job: Job) -> Done:
    """Return a cell that is there."""
    return TypeAdapter(Done).validate_json((job.directory / CELL_FILE).read_bytes())


def _fallen(job: Job) -> Point:
    """Return what a training that diverged counts for: nothing right, nothing readable."""
    if job.recipe.verifier is not None:
        return _fallen_verifier(job.recipe)
    drawn = job.draws / "iteration-01" / "rollouts" / "manifest.json"
    tokens = json.loads(drawn.read_text(encoding="utf-8"))["details"]["tokens"]
    base = _metrics(job.draws / "iteration-00" / "evaluation.json")
    ones = {"invalid", "few_correct"}
    worst = {key: 1.0 if key in ones else 0.0 for key in base}
    return Point(iteration=job.recipe.iterations, step=None, tokens=tokens, metrics=worst)


def _fallen_verifier(recipe: Recipe) -> Point:
    """Return the same of a run whose verifier diverged: no verdict is right, no vote is won."""
    keys = {"accuracy": 0.0, **dict.fromkeys(OF_VERDICTS, 0.0)}
    keys |= {"calibration_error": 1.0, "invalid": 1.0}
    votes = {f"{m}@{2**i}": 0.0 for m in METHODS for i in range(recipe.evaluate.n.bit_length())}
    metrics = {f"{base}{k}": v for base in ("", "base_") for k, v in (keys | votes).items()}
    errors = {key + STANDARD_ERROR: 0.0 for key in keys}
    return Point(iteration=1, step=None, tokens=0, metrics=metrics | errors)


def _starting(job: Job) -> Point:
    return Point(
        iteration=0, step=None, tokens=0,
        metrics=_metrics(job.draws / "iteration-00" / "evaluation.json"),
    )  # fmt: skip


def _trained(job: Job) -> tuple[Point, ...]:
    """Return the evaluations of a run in the order of its steps."""
    points, tokens = [], 0
    for iteration in range(1, job.recipe.iterations + 1):
        folder = job.directory / f"iteration-{iteration:02d}"
        manifest = json.loads((folder / "rollouts/manifest.json").read_text(encoding="utf-8"))
        tokens += manifest["details"]["tokens"]
        for step in sorted(job.recipe.train.snapshots):
            found = folder / "snapshots" / f"step-{step:06d}" / "evaluation.json"
            if found.is_file():
                metrics = _metrics(found)
                points.append(Point(iteration=iteration, step=step, tokens=tokens, metrics=metrics))
        metrics = _metrics(folder / "evaluation.json")
        points.append(Point(iteration=iteration, step=None, tokens=tokens, metrics=metrics))
    return tuple(points)


def _metrics(path: Path) -> dict[str, float]:
    """Return the plain numbers of an evaluation, and the share of problems with few correct."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    metrics = {k: v for k, v in found["metrics"].items() if isinstance(v, int | float)}
    rows = [row for row in found["per_problem"] if row["samples"]]
    few = [row["correct"] < FEW * row["samples"] for row in rows]
    return metrics | _errors(found["metrics"]) | {"few_correct": sum(few) / len(few)}


def _errors(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return standard errors, from 95 % intervals."""
    ends = {k.removesuffix("_ci"): v for k, v in metrics.items() if k.endswith("_ci")}
    return {key + STANDARD_ERROR: (high - low) / 3.92 for key, (low, high) in ends.items()}


def _checked(job: Job) -> tuple[Point, ...]:
    """Return what a run's verifier and its base are worth, and the votes."""
    home = job.directory / "verifier"
    last = int((job.recipe.verifier or {}).get("iterations", 1))
    metrics: dict[str, float] = {}
    for prefix, iteration, votes in (("base_", 0, home / "base"), ("", last, home)):
        found = _metrics(home / f"iteration-{iteration:02d}" / "evaluation.json")
        kept = {"accuracy": found["pass@1"]} | {k: found[k] for k in OF_VERDICTS if k in found}
        kept |= {k + STANDARD_ERROR: found[k + STANDARD_ERROR] for k in OF_VERDICTS if k in found}
        text = (votes / "votes.json").read_text(encoding="utf-8")
        kept |= {k: v for k, v in json.loads(text).items() if re.fullmatch(r"\w+@\d+", k)}
        metrics |= {prefix + key: value for key, value in kept.items()}
    drawn = [read_manifest(home / f"iteration-{i:02d}" / "rollouts") for i in range(1, last + 1)]
    tokens = sum(manifest.details["tokens"] for manifest in drawn if manifest is not None)
    return (Point(iteration=last, step=None, tokens=tokens, metrics=metrics),)


def _log(job: Job) -> dict[str, tuple[float, ...]]:
    """Return some lines of the last iteration's training log, by key."""
    home, iterations = job.directory, job.recipe.iterations
    if job.recipe.verifier is not None:
        home, iterations = home / "verifier", int(job.recipe.verifier.get("iterations", 1))
    path = home / f"iteration-{iterations:02d}" / "training" / "log.jsonl"
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    lines = lines[:: -(-len(lines) // LOG_POINTS)]
    return {
        key: tuple(round(float(line[key]), 4) for line in lines)
        for key in LOGGED
        if all(key in line for line in lines)
    }
