"""One cell of a study: a run of its own, on draws that it shares with other cells.

`work` is what a worker process is given; everything that it needs is in a `Job`, and what it made
is in the job's directory when it returns. Not here: which cells there are (`topr.studies.grid`).
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from topr.config import Recipe
from topr.config.study import BASE
from topr.progress import Silent
from topr.store import write_json_atomic
from topr.studies.results import Cell, Point, cell_from

CELL_FILE = "cell.json"
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
    """Does that, and draws and grades the first rollouts, for others to train on."""


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


def is_done(job: Job) -> bool:
    """Say whether the cell is there."""
    return (job.directory / CELL_FILE).is_file()


def drawing_for(job: Job) -> Job:
    """Return the job that a training cell waits for."""
    return replace(job, arm=BASE, rate=None, kind=Kind.DRAW, directory=job.draws)


def work(job: Job) -> None:
    """Compute a cell, or go on with it."""
    from topr.loop import draw_first, run

    began = time.perf_counter()
    if job.kind is Kind.TRAIN:
        run(job.recipe, job.directory, Silent(), first=job.draws)
        points, log = _trained(job), _log(job)
    else:
        draw_first(job.recipe, job.draws, Silent(), rollouts=job.kind is Kind.DRAW)
        points, log = (_starting(job),), {}
    cell = Cell(arm=job.arm, seed=job.seed, rate=job.rate, points=points, log=log)
    job.directory.mkdir(parents=True, exist_ok=True)
    write_json_atomic(
        job.directory / CELL_FILE,
        {"cell": asdict(cell), "seconds": time.perf_counter() - began},
    )


def read_cell(job: Job) -> tuple[Cell, float]:
    """Return a cell that is there, and the seconds that its last call took."""
    found = json.loads((job.directory / CELL_FILE).read_text(encoding="utf-8"))
    return cell_from(found["cell"]), found["seconds"]


def _starting(job: Job) -> Point:
    return Point(
        iteration=0, step=None, tokens=0,
        metrics=_metrics(job.draws / "iteration-00" / "evaluation.json"),
    )  # fmt: skip


def _trained(job: Job) -> tuple[Point, ...]:
    """Return the evaluations of a run in the order of its steps."""
    points, tokens = [], 0
    for iteration in range(1, job.recipe.iterations + 1):
        name = f"iteration-{iteration:02d}"
        folder = job.directory / name
        drawn = (job.draws if iteration == 1 else job.directory) / name / "rollouts"
        manifest = json.loads((drawn / "manifest.json").read_text(encoding="utf-8"))
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
    return metrics | {"few_correct": sum(few) / len(few)}


def _log(job: Job) -> dict[str, tuple[float, ...]]:
    """Return some lines of the last iteration's training log, by key."""
    last = f"iteration-{job.recipe.iterations:02d}"
    text = (job.directory / last / "training" / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    lines = lines[:: -(-len(lines) // LOG_POINTS)]
    return {
        key: tuple(round(float(line[key]), 4) for line in lines)
        for key in LOGGED
        if all(key in line for line in lines)
    }
