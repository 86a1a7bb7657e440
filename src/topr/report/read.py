"""A run directory, read into what the report shows. Nothing here computes a result.

Whatever a run does not have yet, or cannot be read, is left out and named in `Run.missing`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from topr.errors import RunDirectoryError, ToprError
from topr.report.contents import Dataset, Difference, Model, Run, Training
from topr.report.rollouts import EVALUATION_PROBLEMS, TRAINING_PROBLEMS, Source, read_source
from topr.report.text import as_number
from topr.store import read_table, shard_paths

T = TypeVar("T")
_BROKEN = (
    ToprError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError, pa.ArrowException
)  # fmt: skip
"""What reading a file that is damaged, or not what its name says, may raise."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """One folder that holds a training or an evaluation, or both."""

    label: str
    name: str
    iteration: int
    folder: Path
    comparison: bool = False


@dataclass(slots=True)
class _Reader:
    """Reads files below one directory and remembers which are absent or broken."""

    root: Path
    missing: list[str] = field(default_factory=list)
    whole: bool = True
    """Whether a whole run is expected: else only what is broken is named, not what is absent."""

    def read(self, path: Path, parse: Callable[[Path], T], *, expected: bool = True) -> T | None:
        if not path.exists():
            if expected and self.whole:
                self.missing.append(str(path.relative_to(self.root)))
            return None
        try:
            return parse(path)
        except _BROKEN as e:
            reason = f"{path.relative_to(self.root)} cannot be read ({type(e).__name__})"
            self.missing.append(reason)
            return None

    def mapping(self, path: Path, *, expected: bool = True) -> Mapping[str, Any]:
        return self.read(path, _json_mapping, expected=expected) or {}


def read_run(directory: Path) -> Run:
    """Read a run directory, whole or partial.

    Raises:
        RunDirectoryError: it holds no part of a run.

    """
    trained = _trained_alone(directory)
    reader = _Reader(directory, whole=trained is None)
    if not (trained or any(directory.glob("iteration-*")) or (directory / "recipe.yaml").is_file()):
        raise RunDirectoryError(
            f"{directory} is not a run directory: it has no recipe.yaml, no iteration-00, "
            "iteration-01, ... and no training log. Give the directory that `topr run` or "
            "`topr train` wrote, or the output_dir of a TOPRTrainer."
        )
    recipe = reader.read(directory / "recipe.yaml", _yaml_mapping) or {}
    stages = [trained] if trained else _stages(directory, recipe)
    evaluations = _evaluations(stages, reader)
    trainings = _trainings(stages, reader)
    summary = reader.mapping(directory / "summary.json")
    sources = _sources(stages, evaluations, reader)
    verifier = _verifier(directory, reader)
    if verifier is not None:
        sources += tuple(
            replace(source, label=f"verifier · {source.label}") for source in verifier.sources
        )
    evaluated = {_evaluation_label(stage) for stage in stages if not stage.comparison}
    return Run(
        name=str(recipe.get("name") or directory.resolve().name),
        recipe=recipe,
        recipe_text=reader.read(directory / "recipe.yaml", _text, expected=False) or "",
        environment=reader.mapping(directory / "environment.json"),
        started=reader.read(directory / "recipe.yaml", _modified, expected=False),
        models=_models(summary, evaluations, stages),
        differences=_differences(summary, reader),
        kept=_mapping(summary.get("kept")),
        trainings=trainings,
        datasets=_datasets(directory, stages, recipe, trainings, reader),
        sources=sources,
        first_source=max(
            (i for i, source in enumerate(sources) if source.label in evaluated), default=0
        ),
        verifier=verifier,
        votes=reader.mapping(directory / "verifier" / "votes.json", expected=verifier is not None),
        missing=tuple(dict.fromkeys(reader.missing)),
    )


def _verifier(directory: Path, reader: _Reader) -> Run | None:
    """Read the verifier's run, which lies inside; what it misses is missing here."""
    home = directory / "verifier"
    if not (home / "recipe.yaml").is_file():
        return None
    found = read_run(home)
    reader.missing += [f"verifier/{name}" for name in found.missing]
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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


def _evaluations(stages: list[_Stage], reader: _Reader) -> dict[str, Mapping[str, Any]]:
    return {stage.label: reader.mapping(stage.folder / "evaluation.json") for stage in stages}


def _models(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    stages: list[_Stage],
) -> tuple[Model, ...]:
    """The summary's models; before there is one, those of the evaluations."""
    compared = {stage.name for stage in stages if stage.comparison}
    entries = summary.get("models")
    if not isinstance(entries, list):
        entries = [
            {"name": stage.name, "iteration": stage.iteration} | dict(metrics)
            for stage in stages
            if isinstance(metrics := evaluations[stage.label].get("metrics"), Mapping)
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


def _differences(summary: Mapping[str, Any], reader: _Reader) -> tuple[Difference, ...]:
    try:
        return tuple(
            Difference(
                a=str(entry["a"]),
                b=str(entry["b"]),
                metric=str(entry["metric"]),
                difference=float(entry["difference"]),
                ci=(float(entry["ci"][0]), float(entry["ci"][1])),
            )
            for entry in summary.get("comparisons", ())
        )
    except (KeyError, TypeError, ValueError, IndexError):
        reader.missing.append("the comparisons of summary.json cannot be read")
        return ()


def _trainings(stages: list[_Stage], reader: _Reader) -> tuple[Training, ...]:
    trainings = []
    for stage in stages:
        folder = stage.folder / "training"
        state = _trainer_state(stage.folder)
        if state is not None and not (folder / "log.jsonl").exists():
            log = reader.read(state, _log_history)
        else:
            log = reader.read(folder / "log.jsonl", _log, expected=stage.iteration > 0)
        if log:
            manifest = reader.mapping(folder / "manifest.json", expected=False)
            trainings.append(
                Training(
                    label=stage.label,
                    model=stage.name,
                    log=log,
                    probes=reader.read(folder / "probes.jsonl", _probes, expected=False) or (),
                    details=_mapping(manifest.get("details")),
                )
            )
    return tuple(trainings)


def _datasets(
    directory: Path,
    stages: list[_Stage],
    recipe: Mapping[str, Any],
    trainings: tuple[Training, ...],
    reader: _Reader,
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
                curation=_mapping(manifest.get("details")),
                drawing=_mapping(rollouts.get("details")),
            )
        )
    return tuple(datasets)


def _baseline(stage: _Stage, recipe: Mapping[str, Any], training: Training | None) -> float | None:
    """What the training says that it used, else what the recipe asks for."""
    used = training.details.get("baseline") if training else None
    if as_number(used) is not None:
        return as_number(used)
    train = dict(recipe.get("train") or {})
    if stage.comparison:
        train |= ((recipe.get("compare") or {}).get(stage.name) or {}).get("train") or {}
    if train.get("effective_positive_share") is not None:
        return None
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
    stages: list[_Stage], evaluations: Mapping[str, Mapping[str, Any]], reader: _Reader
) -> tuple[Source, ...]:
    sources = []
    for stage in stages:
        order = _problem_order(evaluations[stage.label])
        shards = partial(_read_shards, label=_evaluation_label(stage), order=order)
        sources.append(reader.read(stage.folder / "evaluation", shards))
    for stage in stages:
        examples = partial(_read_examples, label=f"{stage.label} — training examples")
        path = stage.folder / "training" / "examples.parquet"
        sources.append(reader.read(path, examples, expected=stage.iteration > 0))
    return tuple(source for source in sources if source is not None)


def _evaluation_label(stage: _Stage) -> str:
    return f"{stage.label} — evaluation"


def _problem_order(evaluation: Mapping[str, Any]) -> list[str]:
    entries = evaluation.get("per_problem")
    if not isinstance(entries, list):
        return []
    return [str(entry["problem_id"]) for entry in entries if "problem_id" in entry]


def _read_shards(folder: Path, *, label: str, order: list[str]) -> Source | None:
    files = shard_paths(folder)
    if not files:
        return None
    return read_source(files, label=label, max_problems=EVALUATION_PROBLEMS, order=order)


def _read_examples(path: Path, *, label: str) -> Source:
    return read_source([path], label=label, max_problems=TRAINING_PROBLEMS)


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
    return _log(path, "probe/ended")


def _log(path: Path, key: str = "loss") -> tuple[Mapping[str, Any], ...]:
    """Rows of optimizer steps, or of probes. A last line that is being written is not a row yet."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and key in row:
            rows.append(row)
    return tuple(rows)


def _log_history(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(row for row in _json_mapping(path)["log_history"] if "loss" in row)


def _json_mapping(path: Path) -> Mapping[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _yaml_mapping(path: Path) -> Mapping[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected a mapping")
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _modified(path: Path) -> datetime | None:
    return datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
