"""Rollouts to scored rollouts: a verifier checks every different solution, several times."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from topr.config import GenerateConfig, GradeConfig, ModelConfig, Recipe
from topr.engines import Engine
from topr.engines.lazy import LazyEngine
from topr.errors import DataError
from topr.interop import ColumnMap, read_rows, write_rows
from topr.progress import Progress
from topr.stages.common import data_fingerprint, open_stage
from topr.stages.draw_plan import plan_draw
from topr.stages.generate import generate_rollouts
from topr.stages.grade import grade_rollouts
from topr.store import Manifest, read_table, shard_paths, write_columns, write_json_atomic
from topr.tasks import load_task
from topr.tokenization.digest import tokenizer_digest
from topr.verifier.task import Candidate, VerifierTask, candidates_of
from topr.verifier.verdicts import CHECK_COLUMNS, Score, scores, verdict_metrics
from topr.verifier.votes import METHODS
from topr.verifier.voting import SCORE, VOTE_COLUMNS, vote

METRICS_FILE = "metrics.json"
VOTES_FILE = "votes.json"
COLUMNS = (SCORE, "verifier_probability", "verifier_invalid", "verifier_checks")
"""What is added to each row: share of Yes, P(Yes) after one reasoning, share without a verdict,
number of checks."""


def verify_rollouts(
    source: Path,
    task: VerifierTask,
    engine: Engine,
    config: GenerateConfig,
    directory: Path,
    *,
    columns: ColumnMap | None = None,
    by: Sequence[str] = (),
    resamples: int = 2000,
    seed: int,
    progress: Progress,
) -> Manifest:
    """Write a verifier's scores of the rows of `source`, and the checks themselves.

    The same solution of the same question is checked once. `directory` gets the scores (shards
    that refer to those of `source`; of another file, all of its rows with the scores, in its
    format), `drawn/` and `checks/`, the checks and their grades, and where rows say which
    solutions are right, `metrics.json`.

    Args:
        source: graded or ungraded rollouts, or a file with a question and a solution in each row.
        task: how a check is asked for.
        engine: on the verifier.
        config: the section `generate`: `n` checks of each solution.
        directory: where everything goes.
        columns: of a file; defaults to the usual names.
        by: columns by whose values the metrics are broken down.
        resamples: of the questions, for the intervals.
        seed: of sampling and of the intervals.
        progress: receives checks.

    Raises:
        DataError: there is no question, no solution, or no column of a name in `by`.

    """
    verifier = (engine.revision or engine.model_name, tokenizer_digest(engine.tokenizer))
    settings = (task.config, config, verifier, columns, list(by), resamples, seed)
    with open_stage(directory, "verify", data_fingerprint(source), *settings) as stage:
        if stage.done is not None:
            return stage.done
        table = read_table(source) if source.is_dir() else read_rows(source)
        _validate_columns(table, by)
        candidates = candidates_of(table, columns)
        found = _check(candidates, task, engine, config, directory, seed, progress)
        _write(_with_scores(table, [found[each.id] for each in candidates]), source, directory)
        metrics = _metrics(table, candidates, found, by, resamples, seed)
        write_json_atomic(directory / METRICS_FILE, metrics)
        details = {
            "model": engine.model_name,
            "revision": engine.revision,
            "checked": len(found),
            "checks": config.n,
            "metrics": metrics,
        }
        return stage.finish(rows=len(table), details=details)


def _check(
    candidates: Sequence[Candidate], task: VerifierTask, engine: Engine, config: GenerateConfig,
    directory: Path, seed: int, progress: Progress,
) -> Mapping[str, Score]:  # fmt: skip
    """Return the score of each different candidate by its id; the checks are written."""
    drawn, checks = directory / "drawn", directory / "checks"
    problems = list({each.id: task.problem(each) for each in candidates}.values())
    plan = plan_draw(problems, task, config, seed)
    generate_rollouts(plan, engine, drawn, progress=progress)
    grade_rollouts(drawn, task.grader, GradeConfig(), checks, progress=progress)
    return scores(read_table(checks, CHECK_COLUMNS), engine.tokenizer)


def _validate_columns(table: pa.Table, by: Sequence[str]) -> None:
    taken = [name for name in COLUMNS if name in table.column_names]
    if taken:
        raise DataError(
            f"the rows have {', '.join(taken)} already: they were scored before; give the rollouts "
            "without scores"
        )
    for name in by:
        if name not in table.column_names:
            raise DataError(f"no column {name!r} (--by) among {', '.join(table.column_names)}")


def _with_scores(table: pa.Table, found: Sequence[Score]) -> pa.Table:
    values: Mapping[str, Sequence[Any]] = {
        SCORE: [score.yes for score in found],
        "verifier_probability": [score.probability for score in found],
        "verifier_invalid": [score.invalid for score in found],
        "verifier_checks": [score.checks for score in found],
    }
    for name, column in values.items():
        kind = pa.int32() if name == "verifier_checks" else pa.float64()
        table = table.append_column(name, pa.array(column, kind, from_pandas=True))
    return table


def _write(table: pa.Table, source: Path, directory: Path) -> None:
    """Write scored rows as the unscored ones were: under their shards' names, or as one file."""
    if not source.is_dir():
        suffixes = "".join(part for part in source.suffixes if not part[1:].isdigit())
        target = directory / f"scored{suffixes}"
        target.unlink(missing_ok=True)  # of a call that was killed before its manifest
        write_rows(target, table)
        return
    start = 0
    for path in shard_paths(source):
        rows = read_table(path, ["sample"]).num_rows
        if not (directory / path.name).exists():
            write_columns(directory, path, table.slice(start, rows), COLUMNS)
        start += rows


def _metrics(
    table: pa.Table,
    candidates: Sequence[Candidate],
    found: Mapping[str, Score],
    by: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of all rows, and of the rows of each value in the columns of `by`."""
    question = {c.id: c.key for c in candidates}

    def of(chosen: Sequence[Candidate]) -> dict[str, Any]:
        right: dict[str, bool] = {}
        for candidate in chosen:
            if candidate.right is not None:
                right.setdefault(candidate.id, candidate.right)  # the first label, as in the task
        return verdict_metrics(found, right, question, resamples=resamples, seed=seed)

    metrics = {"all": of(candidates)}
    groups: dict[str, list[Candidate]] = {}
    values = [table.column(name).to_pylist() for name in by]
    for candidate, *row in zip(candidates, *values, strict=True):
        if row:
            name = ", ".join(f"{b}={json.dumps(v)}" for b, v in zip(by, row, strict=True))
            groups.setdefault(name, []).append(candidate)
    return metrics | {name: of(groups[name]) for name in sorted(groups)}


def vote_with(
    recipe: Recipe, verifier: ModelConfig, home: Path, *, progress: Progress
) -> dict[str, Any]:
    """Score the test candidates of a verifier's recipe and let them vote; write `votes.json`.

    Args:
        recipe: with a task `verifier` that has `test_rollouts`.
        verifier: the trained one.
        home: where `scored/` and `votes.json` go.
        progress: receives checks.

    """
    task, scored = load_task(recipe.task), home / "scored"
    assert isinstance(task, VerifierTask) and task.test_rollouts is not None  # noqa: S101, PT018
    resamples = recipe.evaluate.bootstrap
    with closing(LazyEngine(verifier, recipe.generate)) as engine:
        verify_rollouts(
            task.test_rollouts, task, engine, recipe.generate, scored, resamples=resamples,
            seed=recipe.seed, progress=progress,
        )  # fmt: skip
    table = read_table(scored, [*VOTE_COLUMNS, SCORE])
    votes = vote(table, resamples=resamples, seed=recipe.seed).as_json()
    write_json_atomic(home / VOTES_FILE, votes)
    return votes


def votes_line(votes: Mapping[str, Any]) -> str:
    """Say what the largest vote found."""
    k = votes["at"][-1]
    shares = ", ".join(f"{name} {votes[f'{name}@{k}']:.1%}" for name in METHODS)
    low, high = votes[f"weighted@{k} - majority_ci"]
    return (
        f"votes of {k} candidates on {votes['problems']} problems: {shares}; weighted less plain "
        f"majority {100 * votes[f'weighted@{k} - majority']:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    )
