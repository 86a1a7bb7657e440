"""A run directory, read into what the report shows. Nothing here computes a result.

Whatever a run does not have yet, or cannot be read, is left out and named in `Run.missing`.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from topr.errors import RunDirectoryError
from topr.evaluation import RESULT_FILE, read_evaluation
from topr.records import EvalResult
from topr.report.changes import solved
from topr.report.contents import Difference, Model, Run, Training
from topr.report.data import votes
from topr.report.datasets import read_datasets
from topr.report.folders import Stage, find_stages, trained_alone, trainer_state
from topr.report.reader import (
    Reader,
    as_mapping,
    as_mappings,
    json_mapping,
    log_rows,
    modified,
    steps_of,
    text,
    yaml_mapping,
)
from topr.report.sources import with_sources
from topr.report.text import as_number, visible

Labels = Mapping[str | int, str]
"""Of comparisons by their name in the summary, of the loop's models by their iteration."""


def read_run(directory: Path) -> Run:
    """Read a run directory, whole or partial.

    Raises:
        RunDirectoryError: it holds no part of a run.

    """
    return with_sources(read_results(directory), directory)


def read_results(directory: Path) -> Run:
    """Read everything of a run but the completions to browse.

    Raises:
        RunDirectoryError: it holds no part of a run.

    """
    trained = trained_alone(directory)
    reader = Reader(directory, whole=trained is None)
    if not (trained or any(directory.glob("iteration-*")) or (directory / "recipe.yaml").is_file()):
        raise RunDirectoryError(
            f"{directory} is not a run directory: it has no recipe.yaml, no iteration-00, "
            "iteration-01, ... and no training log. Give the directory that `topr run` or "
            "`topr train` wrote, or the output_dir of a TOPRTrainer."
        )
    recipe = reader.read(directory / "recipe.yaml", yaml_mapping) or {}
    stages = find_stages(directory, recipe)
    labels = {s.name if s.comparison else s.iteration: s.label for s in stages}
    evaluations = dict(_evaluations(stages, reader))
    trainings = _trainings(stages, reader)
    summary = reader.mapping(directory / "summary.json")
    kept = as_mapping(summary.get("kept"))
    models = _models(summary, evaluations, stages, labels, reader)
    loop = sorted((m for m in models if not m.comparison), key=lambda m: m.iteration)
    end = next((m for m in loop if m.iteration == kept.get("iteration")), None)
    if end is None and loop and loop[-1].iteration:
        end = loop[-1]
    home = directory / "verifier"
    verifier = _verifier(home, reader)
    return Run(
        name=visible(str(recipe.get("name") or directory.resolve().name)),
        recipe=recipe,
        recipe_text=reader.read(directory / "recipe.yaml", text, expected=False) or "",
        environment=reader.mapping(directory / "environment.json"),
        started=reader.read(directory / "recipe.yaml", modified, expected=False),
        models=models,
        start=loop[0] if loop else None,
        end=end,
        differences=_differences(summary, evaluations, labels, reader),
        kept=kept,
        evaluations=evaluations,
        pairs=_pairs(stages, evaluations, end),
        trainings=trainings,
        datasets=read_datasets(directory, stages, recipe, trainings, reader),
        verifier=verifier,
        votes=reader.read(home / "votes.json", _votes, expected=verifier is not None) or {},
        missing=tuple(dict.fromkeys(reader.missing)),
    )


def _verifier(home: Path, reader: Reader) -> Run | None:
    """Read the verifier's run, which lies inside; what it misses is missing here."""
    if not (home / "recipe.yaml").is_file():
        return None
    found = read_run(home)
    reader.missing += [f"verifier/{name}" for name in found.missing]
    return found


def _evaluations(stages: list[Stage], reader: Reader) -> Iterator[tuple[str, EvalResult]]:
    for stage in stages:
        found = reader.read(stage.folder / RESULT_FILE, _evaluation)
        if found is not None:
            yield stage.label, found


def _evaluation(path: Path) -> EvalResult:
    """An evaluation whose every problem has what the page counts; else it cannot be read."""
    found = read_evaluation(path)
    if not all(0 <= share <= 1 for _, share in solved(found).values()):
        raise ValueError(f"{path} has a problem with more right samples than samples")
    return found


def _votes(path: Path) -> Mapping[str, Any]:
    """Votes of which the page can show every row; else they cannot be read."""
    found = json_mapping(path)
    if votes(found):
        _finite(found.get("problems"))
    return found


def _pairs(
    stages: list[Stage], evaluations: Mapping[str, EvalResult], result: Model | None
) -> tuple[tuple[str, str], ...]:
    """Start and result of the loop, each iteration after the one before, comparisons and result.

    Where the start is the result: start and last, to show what was not kept.
    """
    loop = [s.label for s in stages if not s.comparison and s.label in evaluations]
    others = [s.label for s in stages if s.comparison and s.label in evaluations]
    end = result.label if result and result.label in loop[1:] else loop[-1] if loop else ""
    pairs = [(loop[0], end), *pairwise(loop)] if len(loop) > 1 else []
    pairs += [(other, end) for other in others if end]
    return tuple(dict.fromkeys(pairs))


def _models(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, EvalResult],
    stages: list[Stage],
    labels: Labels,
    reader: Reader,
) -> tuple[Model, ...]:
    """The summary's models; before there is one, those of the evaluations."""
    compared = {stage.label for stage in stages if stage.comparison}
    entries = summary.get("models")
    if not isinstance(entries, list):
        entries = [
            {"name": stage.name, "iteration": stage.iteration}
            | dict(evaluations[stage.label].metrics)
            for stage in stages
            if stage.label in evaluations
        ]
    models = []
    for entry in as_mappings(entries):
        name, iteration = str(entry.get("name")), entry.get("iteration") or 0
        if as_number(iteration) is None:
            reader.missing.append(f"model {name} of summary.json, iteration {iteration}")
            continue
        label = _label(labels, name, int(iteration))
        models.append(
            Model(
                name=visible(name),
                label=label,
                iteration=int(iteration),
                comparison=label in compared,
                metrics=entry,
            )
        )
    return tuple(models)


def _label(labels: Labels, name: str, iteration: int) -> str:
    """Of the stage of a model that the summary names."""
    return labels.get(name, labels.get(iteration, visible(name)))


def _differences(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, EvalResult],
    labels: Labels,
    reader: Reader,
) -> tuple[Difference, ...]:
    problems = [len(found.per_problem) for found in evaluations.values()]
    try:
        return tuple(
            Difference(
                a=_label(labels, str(entry["a"]), entry["a_iteration"]),
                b=_label(labels, str(entry["b"]), entry["b_iteration"]),
                metric=str(entry["metric"]),
                difference=_finite(entry["difference"]),
                ci=(_finite(entry["ci"][0]), _finite(entry["ci"][1])),
                problems=max(problems, default=None),
            )
            for entry in summary.get("comparisons", ())
        )
    except (KeyError, TypeError, ValueError, IndexError):
        reader.missing.append("the comparisons of summary.json cannot be read")
        return ()


def _finite(value: Any) -> float:
    found = as_number(value)
    if found is None:
        raise ValueError(f"{value} is not a number")
    return found


def _trainings(stages: list[Stage], reader: Reader) -> tuple[Training, ...]:
    trainings = []
    for stage in stages:
        folder = stage.folder / "training"
        state = trainer_state(stage.folder)
        if state is not None and not (folder / "log.jsonl").exists():
            log = reader.read(state, _log_history)
        else:
            log = reader.read(folder / "log.jsonl", log_rows, expected=stage.iteration > 0)
        if log:
            manifest = reader.mapping(folder / "manifest.json", expected=False)
            trainings.append(
                Training(
                    label=stage.label,
                    log=log,
                    probes=reader.read(folder / "probes.jsonl", _probes, expected=False) or (),
                    details=as_mapping(manifest.get("details")),
                )
            )
    return tuple(trainings)


def _probes(path: Path) -> tuple[Mapping[str, Any], ...]:
    return log_rows(path, "probe/ended")


def _log_history(path: Path) -> tuple[Mapping[str, Any], ...]:
    return steps_of(json_mapping(path)["log_history"])
