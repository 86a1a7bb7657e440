"""What a run says of its models: `metrics.jsonl` and `summary.json`. Nothing is measured here."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topr.config import Recipe
from topr.evaluation import compare
from topr.records import EvalResult
from topr.runs.directory import trainings
from topr.runs.recipe_checks import BASE
from topr.stages.probe import PROBES_FILE
from topr.stages.train import LOG_FILE
from topr.store import read_manifest, write_json_atomic, write_text_atomic

CHOSEN_BY = "pass@1"
"""Metric on validation problems by which the best iteration is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """A model and how good it is."""

    result: EvalResult
    path: Path
    step: int | None
    """Optimizer step of a snapshot; None: a model at the end of its training."""


def write_metrics(directory: Path, results: Sequence[Evaluated]) -> None:
    """Write metrics.jsonl again from what the stages left: a resumed run repeats no line."""
    lines: list[dict[str, Any]] = []
    for found in results:
        result = found.result
        step = {} if found.step is None else {"step": found.step}
        lines.append(
            {"kind": "evaluation", "name": result.name, "iteration": result.iteration}
            | step
            | {"split": result.split, **result.metrics}
        )
    for folder in trainings(directory):
        where, work = str(folder.relative_to(directory)), folder / "training"
        for kind, path in (("training", work / LOG_FILE), ("probe", work / PROBES_FILE)):
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            for line in text.splitlines():
                lines.append({"kind": kind, "where": where} | json.loads(line))
                lines[-1].pop("weight_histogram", None)  # of the log alone: half of a line
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text_atomic(directory / "metrics.jsonl", text)


def model_lines(results: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Return name, iteration, path and metrics of every model at the end of its training."""
    return [
        {"name": e.result.name, "iteration": e.result.iteration, "path": str(e.path)}
        | dict(e.result.metrics)
        for e in results
        if e.step is None
    ]


def write_summary(
    recipe: Recipe, results: Sequence[Evaluated], validations: Sequence[Evaluated], directory: Path
) -> dict[str, Any]:
    """Write and return summary.json: the models, which one is kept, and paired differences.

    Args:
        recipe: of the run.
        results: evaluations on the split that is reported.
        validations: of the base and of each iteration on validation problems, where the best is
            kept; else empty.
        directory: of the run.

    """
    ends = {(e.result.name, e.result.iteration): e for e in results if e.step is None}
    main = recipe.train.objective
    kept = _kept(recipe, ends, validations)
    # Where the base itself is kept there is nothing to compare it with.
    pairs = [((main, kept["iteration"]), (BASE, 0))] if kept["iteration"] else []
    pairs += [((main, 1), (name, 1)) for name in recipe.compare]
    comparisons = [
        asdict(difference) | {"a_iteration": a[1], "b_iteration": b[1]}
        for a, b in pairs
        for difference in compare(ends[a].result, ends[b].result)
    ]
    summary = {
        "schema": 1,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "models": model_lines(results),
        "kept": kept,
        "comparisons": comparisons,
        "alarms": _alarms(directory),
    }
    write_json_atomic(directory / "summary.json", summary)
    return summary


def best_of(validations: Sequence[Evaluated]) -> Evaluated:
    """Return the best model on validation problems; of equals the earlier one.

    It took less training.
    """
    return max(validations, key=lambda found: found.result.metrics[CHOSEN_BY])


def _alarms(directory: Path) -> list[dict[str, Any]]:
    """Return what looked ruined while it was trained, and whether it was stopped."""
    found = []
    for folder in trainings(directory):
        manifest = read_manifest(folder / "training")
        watch = (manifest.details if manifest else {}).get("watch") or {}
        stopped = {name: watch[name] for name in ("kept_step",) if name in watch}
        where = str(folder.relative_to(directory))
        found += [{"where": where} | alarm | stopped for alarm in watch.get("alarms") or ()]
    return found


def _kept(
    recipe: Recipe, ends: dict[tuple[str, int], Evaluated], validations: Sequence[Evaluated]
) -> dict[str, Any]:
    """Return which iteration's model is the run's result, and why."""
    if not validations:
        last = ends[recipe.train.objective, recipe.iterations]
        return {"iteration": recipe.iterations, "path": str(last.path), "by": "last"}
    best = best_of(validations)
    return {
        "iteration": best.result.iteration,
        "path": str(best.path),
        "by": f"{CHOSEN_BY} on validation problems",
        "validation": [found.result.metrics[CHOSEN_BY] for found in validations],
    }
