"""One model on held-out problems, from a recipe to `evaluation.json`. Resumable.

The formulas and the files' shapes are elsewhere; this is the order in which things happen.
"""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topr.config import EvaluateConfig, GradeConfig, ModelConfig, Recipe
from topr.engines import Engine, open_engine
from topr.errors import DataError
from topr.evaluation.results import RESULT_FILE, read_evaluation, write_evaluation
from topr.evaluation.scoring import SCORED_COLUMNS, score
from topr.generation import Progress as OnDraw
from topr.generation import draw
from topr.grading import grade_table, needs_columns
from topr.grading.survey import first_look
from topr.progress import Progress
from topr.records import EvalResult, SamplingParams
from topr.stages.common import fingerprint as fingerprint_of
from topr.stages.common import task_for
from topr.store import (
    Manifest,
    begin,
    read_table,
    shard_paths,
    write_manifest,
    write_shard,
)
from topr.tasks.base import Split, Task
from topr.verifier.task import check_question
from topr.verifier.verdicts import CHECK_COLUMNS, scores, verdict_metrics

if TYPE_CHECKING:  # it takes seconds to import, and scoring alone does not need it
    from transformers import PreTrainedTokenizerBase

SHARDS = "evaluation"


def evaluate_model(
    recipe: Recipe, model: ModelConfig, directory: Path, *, name: str, progress: Progress
) -> EvalResult:
    """Measure one model as a recipe says; see `evaluate`."""
    section, task = task_for(model, recipe.task, Split(recipe.evaluate.split), progress)
    engine = open_engine(model, recipe.generate)
    sections = (section, recipe.generate, recipe.evaluate, recipe.grade)
    mark = fingerprint_of(*sections, model, engine.revision, recipe.seed, name)
    with closing(engine):
        return measure(recipe, recipe.evaluate, task, engine, directory, name, 0, mark, progress)


def measure(
    recipe: Recipe, config: EvaluateConfig, task: Task, engine: Engine, directory: Path,
    name: str, iteration: int, mark: str, progress: Progress,
) -> EvalResult:  # fmt: skip
    """Measure an engine's model, with a bar; see `evaluate`."""
    problems = len(task.problems(Split(config.split))[: config.problems])
    total = problems * (config.n + int(config.greedy))
    with progress.bar(f"evaluating {name}", total, "completions") as advance:
        return evaluate(
            task,
            engine,
            config=config,
            grade=recipe.grade,
            directory=directory,
            name=name,
            iteration=iteration,
            seed=recipe.seed,
            max_tokens=recipe.generate.max_tokens,
            stop=recipe.generate.stop,
            shard_problems=recipe.generate.shard_problems,
            fingerprint=mark,
            on_draw=lambda n, tokens: advance(n, tokens=tokens),
        )


def evaluate(
    task: Task,
    engine: Engine,
    *,
    config: EvaluateConfig,
    grade: GradeConfig,
    directory: Path,
    name: str,
    iteration: int = 0,
    seed: int = 0,
    max_tokens: int = 512,
    stop: tuple[str, ...] | None = None,
    shard_problems: int = 64,
    fingerprint: str = "",
    on_draw: OnDraw | None = None,
    on_grade: Callable[[int], None] | None = None,
) -> EvalResult:
    """Measure one model; write `evaluation/` and `evaluation.json` into `directory`.

    Each problem gets `config.n` sampled completions and, with `config.greedy`, one at temperature
    0. All are kept in `evaluation/part-*.parquet`; a greedy row is known by its
    `sampling.temperature`. Killed anywhere and called again with the same arguments, it resumes:
    shards that are there are not drawn again, and a finished evaluation is read, not repeated.

    Args:
        task: problems, stop strings and the grader.
        engine: draws from the model that is measured.
        config: how many problems and completions, sampling, metrics.
        grade: how completions are graded.
        directory: of this model: an iteration's, or a comparison's.
        name: the model's name in tables.
        iteration: written into the result and each row.
        seed: of sampling and of the intervals.
        max_tokens: where `config.max_tokens` is none.
        stop: strings that end a completion; defaults to the task's.
        shard_problems: problems per shard while drawing.
        fingerprint: hash of what fixes the result, for the manifest.
        on_draw: told of completions and tokens as they are drawn.
        on_grade: told of completions as they are graded.

    Raises:
        DataError: the split holds no problems, or none of them can be scored.
        RunDirectoryError: `directory` holds another evaluation.
        EngineError: drawing failed.
        GradingError: grading cannot start.

    """
    shards = directory / SHARDS
    drawn = shards / "drawn"
    with begin(shards, "evaluate", fingerprint) as done:
        if done is not None:
            shutil.rmtree(drawn, ignore_errors=True)
            return read_evaluation(directory / RESULT_FILE)
        problems = task.problems(Split(config.split))[: config.problems]
        if not problems:
            raise DataError(
                f"task {task.name!r} has no {config.split} problems: choose another "
                "`evaluate.split`, or give the task some"
            )
        draws = _draws(config, max_tokens, task.stop if stop is None else stop, seed)
        look = first_look(task.grader, grade, engine.tokenizer)
        for folder, (sampling, n) in draws.items():
            draw(
                problems,
                engine,
                sampling,
                n,
                drawn / folder,
                shard_problems=shard_problems,
                iteration=iteration,
                keep_columns=needs_columns(task.grader),
                progress=on_draw,
                look=look if sampling.temperature else None,
            )
        _grade(task, engine, shards, [drawn / folder for folder in draws], grade, on_grade)
        result = score(
            read_table(shards, SCORED_COLUMNS),
            name=name,
            iteration=iteration,
            model=engine.model_name,
            split=config.split,
            pass_at=config.pass_at,
            resamples=config.bootstrap,
            seed=seed,
            group_of=check_question if task.grader == "verdict" else None,
        )
        if task.grader == "verdict":
            metrics = _of_verdicts(shards, engine.tokenizer, config.bootstrap, seed)
            result = replace(result, metrics={**result.metrics, **metrics})
        write_evaluation(directory / RESULT_FILE, result)
        _finish(shards, fingerprint)
        # The graded shards hold everything that the drawn ones do.
        shutil.rmtree(drawn)
        return result


def _of_verdicts(
    shards: Path, tokenizer: "PreTrainedTokenizerBase", resamples: int, seed: int
) -> dict[str, Any]:
    """Return what is measured of a verifier beside the share of verdicts that agree."""
    checks = read_table(shards, CHECK_COLUMNS)
    right = dict(zip(*(checks[name].to_pylist() for name in ("problem_id", "gold")), strict=True))
    found = verdict_metrics(
        scores(checks, tokenizer),
        {name: gold == "Yes" for name, gold in right.items()},
        {name: check_question(name) for name in right},
        resamples=resamples,
        seed=seed,
    )
    kept = ("right_share", "balanced_accuracy", "auc", "calibration_error")
    return {key: value for key, value in found.items() if key.removesuffix("_ci") in kept}


def _draws(
    config: EvaluateConfig, max_tokens: int, stop: tuple[str, ...], seed: int
) -> dict[str, tuple[SamplingParams, int]]:
    """Return what is drawn, by the folder it is drawn into: how, and how often per problem."""
    limit = config.max_tokens or max_tokens
    sampled = SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=limit,
        stop=stop,
        seed=seed,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=limit, stop=stop, seed=seed)
    draws = {"sampled": (sampled, config.n)}
    return draws | {"greedy": (greedy, 1)} if config.greedy else draws


def _grade(
    task: Task,
    engine: Engine,
    shards: Path,
    folders: list[Path],
    config: GradeConfig,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the drawn rows with their grades, one shard for each folder of draws."""
    done = {path.name for path in shard_paths(shards)}
    for index, folder in enumerate(folders):
        table = read_table(folder)
        if f"part-{index:05d}.parquet" not in done:
            graded = grade_table(
                table, task.grader, config, tokenizer=engine.tokenizer, progress=progress
            )
            write_shard(shards, index, graded)
        elif progress is not None:
            progress(table.num_rows)


def _finish(shards: Path, fingerprint: str) -> None:
    files = shard_paths(shards)
    rows = read_table(shards, ["problem_id"]).num_rows
    write_manifest(
        shards,
        Manifest(
            stage="evaluate",
            fingerprint=fingerprint,
            rows=rows,
            files=tuple(path.name for path in files),
        ),
    )
