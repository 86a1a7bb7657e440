"""Which rollouts made which model: read from what the stages of a run left. Nothing is computed."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topr.errors import DataError
from topr.report.text import plural
from topr.runs.directory import iterations, kept_of, trainings
from topr.store import Manifest, read_manifest, shard_paths, stream_tables

WRITER = ("model", "revision")
TRAINED = (
    "made", "written_by", "objective", "steps", "optimizer", "optimizer_state", "learning_rate",
    "lr_scheduler_type", "positive_share", "baseline",
)  # fmt: skip
"""What a `Training` has as the manifest has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """Completions that one model wrote."""

    place: str
    """Directory, seen from the run's."""
    model: str
    revision: str | None
    completions: int
    tokens: int
    gguf: Mapping[str, Any] | None = None
    """The GGUF file that the model's weights are from, as its manifest has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a model was made."""

    place: str
    """Directory of the iteration or comparison, seen from the run's."""
    started_from: str | None
    """Revision of the model that training started from."""
    made: str
    """Revision of the model that came out."""
    datasets: tuple[str, ...]
    """Directories, seen from the run's."""
    written_by: Mapping[str, int]
    """Completions that were trained on, by the revision of the model that wrote them."""
    objective: str
    steps: int
    optimizer: str
    optimizer_state: str
    """`fresh`: moments started at zero."""
    learning_rate: float
    lr_scheduler_type: str
    positive_share: float
    baseline: float
    weights_removed: str | None = None
    """The setting by which the weights were deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Of one run, as far as it has come."""

    rollouts: tuple[Rollouts, ...]
    trainings: tuple[Training, ...]
    kept: Mapping[str, Any] | None
    """Of `summary.json`: which iteration's model is the run's result."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def name(self, revision: str | None) -> str:
        """Return whose a revision is: a training's place, or `base`."""
        places = {training.made: training.place for training in self.trainings}
        first = self.rollouts[0].revision if self.rollouts else None
        if revision in places:
            return places[revision]
        return "base" if revision is not None and revision == first else f"revision {revision}"

    def steps(self) -> list[list[str]]:
        """Return what was made, in the order of making: each a heading and lines for people."""
        drawn = {step.place: self._drawing(step) for step in self.rollouts}
        trained = {step.place: self._training(step) for step in self.trainings}
        iterations = sorted({place.split("/")[0] for place in drawn})
        order = [p for i in iterations for p in (f"{i}/rollouts", i)]
        order += [place for place in trained if place not in iterations]
        return [each[p] for p in order for each in (drawn, trained) if p in each]

    def _drawing(self, step: Rollouts) -> list[str]:
        lines = [
            step.place,
            f"{step.completions} completions, {step.tokens} tokens, written by "
            f"{self.name(step.revision)} ({step.model}, {step.revision})",
        ]
        return lines if step.gguf is None else [*lines, f"weights from {describe_gguf(step.gguf)}"]

    def _training(self, step: Training) -> list[str]:
        written = ", ".join(f"{n} by {self.name(rev)}" for rev, n in step.written_by.items())
        gone = f" (weights deleted: {step.weights_removed})" if step.weights_removed else ""
        return [
            f"{step.place}/model {step.made}{gone}",
            f"from {self.name(step.started_from)}, {plural(step.steps, 'step')} of "
            f"{step.objective}, {step.optimizer} ({step.optimizer_state} state), "
            f"rate {step.learning_rate:g} ({step.lr_scheduler_type})",
            f"on {', '.join(step.datasets)}: completions {written}; "
            f"{step.positive_share:.1%} positive, baseline {step.baseline:+.2f}",
        ]


def describe_gguf(source: Mapping[str, Any]) -> str:
    """Say which GGUF file weights are from, as a manifest has it."""
    at = f" at {source['revision']}" if source["revision"] else ""
    types = ", ".join(f"{count} {name}" for name, count in source["tensors"].items())
    return (
        f"{source['file']} of {source['path']}{at} (GGUF, sha256 {source['sha256']}; tensors: "
        f"{types}), dequantized to {source['dtype']}"
    )


def read_lineage(directory: Path) -> Lineage:
    """Read the lineage of a run.

    Raises:
        DataError: the directory holds no run, or one that has sampled nothing yet.

    """
    drawn = tuple(_rollouts(directory))
    if not (directory / "recipe.yaml").is_file() or not drawn:
        raise DataError(
            f"{directory} holds no run that has drawn rollouts: give the directory that "
            "`topr run NAME -o DIR` wrote"
        )
    kept = kept_of(directory) or None
    return Lineage(rollouts=drawn, trainings=tuple(_trainings(directory)), kept=kept)


def _rollouts(directory: Path) -> Iterator[Rollouts]:
    for folder in (path / "rollouts" for path in iterations(directory)):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        first = next(stream_tables(shard_paths(folder)[:1], WRITER, rows=1)).slice(0, 1)
        (writer,) = first.to_pylist()
        yield Rollouts(
            place=str(folder.relative_to(directory)),
            completions=manifest.rows,
            tokens=manifest.details["tokens"],
            gguf=manifest.details.get("gguf"),
            **writer,
        )


def _trainings(directory: Path) -> Iterator[Training]:
    for folder in sorted(trainings(directory), key=lambda path: path.parent != directory):
        manifest = read_manifest(folder / "training")
        if manifest is not None:
            yield _training(directory, folder, manifest)


def _training(directory: Path, folder: Path, manifest: Manifest) -> Training:
    found = manifest.details
    return Training(
        place=str(folder.relative_to(directory)),
        started_from=found["revision"],
        datasets=tuple(os.path.relpath(folder / place, directory) for place in found["datasets"]),
        **{name: found[name] for name in TRAINED},
        weights_removed=found.get("weights_removed"),
    )
