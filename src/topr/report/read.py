"""A run directory, read into what the report shows. Nothing here computes a result.

Whatever a run does not have yet, or cannot be read, is left out and named in `Run.missing`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from topr.errors import RunDirectoryError
from topr.evaluation import RESULT_FILE, read_evaluation
from topr.records import EvalResult
from topr.report.changes import chosen, solved
from topr.report.contents import Dataset, Difference, Model, Run, Training
from topr.report.reader import (
    Reader,
    as_mapping,
    json_mapping,
    log_rows,
    modified,
    text,
    yaml_mapping,
)
from topr.report.rollouts import EVALUATION_PROBLEMS, Source, read_source
from topr.report.text import as_number
from topr.report.weights import weigher
from topr.store import read_table, shard_paths


@dataclass(frozen=True, slots=True)
class _Stage:
    """One folder that holds a training or an evaluation, or both."""

    label: str
    name: str
    iteration: int
    folder: Path
    comparison: bool = False


def read_run(directory: Path) -> Run:
    """Read a run directory, whole or partial.

    Raises:
        RunDirectoryError: it holds no part of a run.

    """
    trained = _trained_alone(directory)
    reader = Reader(directory, whole=trained is None)
    if not (trained or any(directory.glob("iteration-*")) or (directory / "recipe.yaml").is_file()):
        raise RunDirectoryError(
            f"{directory} is not a run directory: it has no recipe.yaml, no iteration-00, "
            "iteration-01, ... and no training log. Give the directory that `topr run` or "
            "`topr train` wrote, or the output_dir of a TOPRTrainer."
        )
    recipe = reader.read(directory / "recipe.yaml", yaml_mapping) or {}
    stages = [trained] if trained else _stages(directory, recipe)
    evaluations = dict(_evaluations(stages, reader))
    trainings = _trainings(stages, reader)
    summary = reader.mapping(directory / "summary.json")
    kept = as_mapping(summary.get("kept"))
    models = _models(summary, evaluations, stages)
    loop = sorted((m for m in models if not m.comparison), key=lambda m: m.iteration)
    pairs = _pairs(stages, evaluations, kept)
    sources = _sources(stages, evaluations, pairs, recipe, trainings, reader)
    verifier = _verifier(directory, reader)
    if verifier is not None:
        sources += tuple(
            replace(source, label=f"verifier · {source.label}") for source in verifier.sources
        )
    return Run(
        name=str(recipe.get("name") or directory.resolve().name),
        recipe=recipe,
        recipe_text=reader.read(directory / "recipe.yaml", text, expected=False) or "",
        environment=reader.mapping(directory / "environment.json"),
        started=reader.read(directory / "recipe.yaml", modified, expected=False),
        models=models,
        start=loop[0] if loop else None,
        end=next(
            (m for m in loop if m.iteration == kept.get("iteration")), loop[-1] if loop else None
        ),
        differences=_differences(summary, evaluations, reader),
        kept=kept,
        evaluations=evaluations,
        pairs=pairs,
        trainings=trainings,
        datasets=_datasets(directory, stages, recipe, trainings, reader),
        sources=sources,
        verifier=verifier,
        votes=reader.mapping(directory / "verifier" / "votes.json", expected=verifier is not None),
        missing=tuple(dict.fromkeys(reader.missing)),
        settings={},
    )


def _verifier(directory: Path, reader: Reader) -> Run | None:
    """Read the verifier's run, which lies inside; what it misses is missing here."""
    home = directory / "verifier"
    if not (home / "recipe.yaml").is_file():
        return None
    found = read_run(home)
    reader.missing += [f"verifier/{name}" for name in found.missing]
    return found


def _trained_alone(directory: Path) -> _Stage | None:
    """Return the one stage of a directory that `topr train` or a Trainer wrote, if it is one."""
    if (directory / "training" / "log.jsonl").is_file() or _trainer_state(directory):
        return _Stage("trained", "trained", 1, directory)
    return None


def _trainer_state(directory: Path) -> Path | None:
    """Return the newest file in which a Trainer of transformers left its log."""
    found = directory.glob("checkpoint-*/trainer_state.json")
    return max(found, key=lambda path: int(path.parent.name.split("-")[-1]), default=None)


def _stages(directory: Path, recipe: Mapping[str, Any]) -> list[_Stage]:
    """Every folder that the recipe asks for, and every further one that is there."""
    train = recipe.get("train")
    name = str(train.get("objective") if isinstance(train, Mapping) else "trained")
    found = {int(p.name[10:]) for p in directory.glob("iteration-*") if p.name[10:].isdigit()}
    iterations = recipe.get("iterations", 1)
    planned = range(iterations + 1) if isinstance(iterations, int) else ()
    numbers = sorted(found.union(planned))
    compare = recipe.get("compare")
    names = list(compare) if isinstance(compare, Mapping) else []
    names += sorted(p.name for p in directory.glob("compare/*") if p.is_dir())
    stages = []
    for i in numbers:
        label = "base" if i == 0 else name if numbers[-1] == 1 else f"{name} · iteration {i}"
        stages.append(
            _Stage(label, "base" if i == 0 else name, i, directory / f"iteration-{i:02d}")
        )
    for other in dict.fromkeys(map(str, names)):
        stages.append(_Stage(other, other, 1, directory / "compare" / other, comparison=True))
    return stages


def _evaluations(stages: list[_Stage], reader: Reader) -> Iterator[tuple[str, EvalResult]]:
    for stage in stages:
        found = reader.read(stage.folder / RESULT_FILE, read_evaluation)
        if found is not None:
            yield stage.label, found


def _pairs(
    stages: list[_Stage], evaluations: Mapping[str, EvalResult], kept: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Start and result of the loop, each iteration after the one before, comparisons and result."""
    loop = [s.label for s in stages if not s.comparison and s.label in evaluations]
    others = [s.label for s in stages if s.comparison and s.label in evaluations]
    result = next(
        (s.label for s in stages if not s.comparison and s.iteration == kept.get("iteration")), ""
    )
    end = result if result in loop[1:] else loop[-1] if loop else ""
    pairs = [(loop[0], end), *pairwise(loop)] if len(loop) > 1 else []
    pairs += [(other, end) for other in others if end]
    return tuple(dict.fromkeys(pairs))


def _models(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, EvalResult],
    stages: list[_Stage],
) -> tuple[Model, ...]:
    """The summary's models; before there is one, those of the evaluations."""
    compared = {stage.name for stage in stages if stage.comparison}
    entries = summary.get("models")
    if not isinstance(entries, list):
        entries = [
            {"name": stage.name, "iteration": stage.iteration}
            | dict(evaluations[stage.label].metrics)
            for stage in stages
            if stage.label in evaluations
        ]
    return tuple(
        Model(
            name=str(entry.get("name")),
            iteration=int(entry.get("iteration") or 0),
            comparison=str(entry.get("name")) in compared,
            metrics=entry,
        )
        for entry in entries
        if isinstance(entry, Mapping)
    )


def _differences(
    summary: Mapping[str, Any], evaluations: Mapping[str, EvalResult], reader: Reader
) -> tuple[Difference, ...]:
    problems = [len(found.per_problem) for found in evaluations.values()]
    try:
        return tuple(
            Difference(
                a=str(entry["a"]),
                b=str(entry["b"]),
                metric=str(entry["metric"]),
                difference=float(entry["difference"]),
                ci=(float(entry["ci"][0]), float(entry["ci"][1])),
                problems=max(problems, default=None),
            )
            for entry in summary.get("comparisons", ())
        )
    except (KeyError, TypeError, ValueError, IndexError):
        reader.missing.append("the comparisons of summary.json cannot be read")
        return ()


def _trainings(stages: list[_Stage], reader: Reader) -> tuple[Training, ...]:
    trainings = []
    for stage in stages:
        folder = stage.folder / "training"
        state = _trainer_state(stage.folder)
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


def _datasets(
    directory: Path,
    stages: list[_Stage],
    recipe: Mapping[str, Any],
    trainings: tuple[Training, ...],
    reader: Reader,
) -> tuple[Dataset, ...]:
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
                baseline=_baseline(stage, recipe, training),
                effective_share=_effective_share(training),
                curation=as_mapping(manifest.get("details")),
                drawing=as_mapping(rollouts.get("details")),
            )
        )
    return tuple(datasets)


def _train_section(stage: _Stage, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the recipe says of this training."""
    train = dict(as_mapping(recipe.get("train")))
    if stage.comparison:
        other = as_mapping(as_mapping(recipe.get("compare")).get(stage.name))
        train |= as_mapping(other.get("train"))
    return train


def _baseline(stage: _Stage, recipe: Mapping[str, Any], training: Training | None) -> float | None:
    """What the training says that it used, else what the recipe asks for."""
    used = as_number(training.details.get("baseline")) if training else None
    train = _train_section(stage, recipe)
    if used is not None or train.get("effective_positive_share") is not None:
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


def _sources(
    stages: list[_Stage],
    evaluations: Mapping[str, EvalResult],
    pairs: Sequence[tuple[str, str]],
    recipe: Mapping[str, Any],
    trainings: tuple[Training, ...],
    reader: Reader,
) -> tuple[Source, ...]:
    """The same problems of every evaluation, then the examples of every training."""
    first = [evaluations[label] for label in (pairs[0] if pairs else list(evaluations)[:1])]
    shown = chosen(first, EVALUATION_PROBLEMS)
    sources = []
    for stage in stages:
        results = solved(evaluations[stage.label]) if stage.label in evaluations else {}
        shards = partial(_read_shards, label=stage.label, chosen=shown, results=results)
        sources.append(reader.read(stage.folder / "evaluation", shards))
    for stage in stages:
        training = next((t for t in trainings if t.label == stage.label), None)
        baseline = _baseline(stage, recipe, training)
        path = stage.folder / "training" / "examples.parquet"
        if path.exists():
            weigh = weigher(_train_section(stage, recipe), baseline)
            label = f"{stage.label}, training examples"
            examples = partial(_read_examples, label=label, weigh=weigh)
            sources.append(reader.read(path, examples))
        elif stage.iteration > 0:
            reader.read(path, _read_examples)  # which names it as missing
    return tuple(source for source in sources if source is not None)


def _read_shards(folder: Path, **given: Any) -> Source | None:
    files = shard_paths(folder)
    return read_source(files, **given) if files else None


def _read_examples(path: Path, **given: Any) -> Source:
    return read_source([path], tokens=True, **given)


def _kept_and_positive(folder: Path) -> tuple[int, int] | None:
    if not shard_paths(folder):
        return None
    reward = read_table(folder, ["reward"])["reward"]
    return len(reward), pc.sum(pc.greater(reward, 0)).as_py() or 0


def _outcomes(folder: Path) -> Mapping[str, int]:
    if not shard_paths(folder):
        return {}
    grade = read_table(folder, ["grade"])["grade"]
    return {str(entry["values"]): entry["counts"] for entry in pc.value_counts(grade).to_pylist()}


def _probes(path: Path) -> tuple[Mapping[str, Any], ...]:
    return log_rows(path, "probe/ended")


def _log_history(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(row for row in json_mapping(path)["log_history"] if "loss" in row)
