"""The completions of a run that the page browses: which files, and which problems of them."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from topr.report.changes import chosen, solved
from topr.report.contents import Run
from topr.report.datasets import baseline_of, train_section
from topr.report.folders import Stage, find_stages, trained_alone
from topr.report.reader import Reader
from topr.report.rollouts import EVALUATION_PROBLEMS, Source, read_source
from topr.report.weights import weigher
from topr.store import shard_paths


def with_sources(run: Run, directory: Path, also: Collection[str] = ()) -> Run:
    """Return the run with the same problems of every evaluation, and the examples of trainings.

    Args:
        run: what was read of the directory.
        directory: of the run.
        also: ids of problems to show, besides the first and those that changed in this run.

    """
    reader = Reader(directory, whole=trained_alone(directory) is None)
    stages = find_stages(directory, run.recipe)
    first = run.pairs[0] if run.pairs else [*run.evaluations][:1]
    shown = chosen([run.evaluations[label] for label in first], EVALUATION_PROBLEMS, also)
    sources: list[Source | None] = []
    for stage in stages:
        results = solved(run.evaluations[stage.label]) if stage.label in run.evaluations else {}
        shards = partial(_read_shards, label=stage.label, chosen=shown, results=results)
        sources.append(reader.read(stage.folder / "evaluation", shards))
    for stage in stages:
        path = stage.folder / "training" / "examples.parquet"
        examples = partial(_read_examples, stage=stage, run=run)
        sources.append(reader.read(path, examples, expected=stage.iteration > 0))
    if run.verifier is not None:
        sources += [replace(s, label=f"verifier · {s.label}") for s in run.verifier.sources]
    return replace(
        run,
        sources=tuple(source for source in sources if source is not None),
        missing=(*run.missing, *reader.missing),
    )


def _read_shards(folder: Path, **given: Any) -> Source | None:
    files = shard_paths(folder)
    return read_source(files, **given) if files else None


def _read_examples(path: Path, stage: Stage, run: Run) -> Source:
    training = next((t for t in run.trainings if t.label == stage.label), None)
    weigh = weigher(train_section(stage, run.recipe), baseline_of(stage, run.recipe, training))
    return read_source([path], label=f"{stage.label}, training examples", tokens=True, weigh=weigh)
