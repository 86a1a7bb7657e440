"""One model on held-out problems, to `evaluation.json`: the stage `evaluate`.

An evaluation is two plans: some samples of each problem, and one greedy completion. The formulas
and the files' shapes are elsewhere (`topr.evaluation`); this is the order in which things happen.
"""

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topr.config import EvaluateConfig, GenerateConfig, GradeConfig, ModelConfig, Recipe
from topr.engines import Engine
from topr.engines.lazy import LazyEngine
from topr.errors import DataError
from topr.evaluation.results import RESULT_FILE, read_evaluation, write_evaluation
from topr.evaluation.scoring import SCORED_COLUMNS, score
from topr.grading import grade_table
from topr.grading.survey import first_look
from topr.progress import Progress
from topr.records import EvalResult
from topr.stages.common import grading_version, open_stage, task_for
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan, plan_draw
from topr.store import read_table, shard_paths, write_shard
from topr.tasks.base import Split, Task
from topr.tokenization.digest import tokenizer_digest
from topr.verifier.task import check_question
from topr.verifier.verdicts import CHECK_COLUMNS, scores, verdict_metrics

if TYPE_CHECKING:  # it takes seconds to import, and scoring alone does not need it
    from transformers import PreTrainedTokenizerBase

SHARDS = "evaluation"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """What a model is measured on, and how."""

    draws: Mapping[str, DrawPlan]
    """By the folder they go to: `sampled`, and `greedy` where that is wanted."""
    grader: str
    grade: GradeConfig
    config: EvaluateConfig
    """Split, metrics and resamples; the rest of it is in `draws`."""
    seed: int
    """Of the intervals, and of sampling."""

    @property
    def completions(self) -> int:
        """How many are sampled."""
        return sum(plan.completions for plan in self.draws.values())


def plan_evaluation(
    task: Task,
    config: EvaluateConfig,
    generate: GenerateConfig,
    grade: GradeConfig,
    *,
    model: ModelConfig | None = None,
    seed: int = 0,
    iteration: int = 0,
) -> EvaluationPlan:
    """Return what the section `evaluate` says, with what it leaves to the section `generate`.

    Raises:
        DataError: the split holds no problems.

    """
    problems = task.problems(Split(config.split))[: config.problems]
    if not problems:
        raise DataError(
            f"task {task.name!r} has no {config.split} problems: choose another "
            "`evaluate.split`, or give the task some"
        )
    sampled = plan_draw(
        problems, task, generate, seed, n=config.n, iteration=iteration,
        settings=(generate,) if model is None else (generate, model.at("")),
    )  # fmt: skip
    sampling = replace(
        sampled.sampling, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k,
        max_tokens=config.max_tokens or generate.max_tokens,
    )  # fmt: skip
    sampled = replace(sampled, sampling=sampling)
    greedy = replace(sampled, sampling=replace(sampling, temperature=0.0, top_p=1.0, top_k=0), n=1)
    return EvaluationPlan(
        draws={"sampled": sampled} | ({"greedy": greedy} if config.greedy else {}),
        grader=task.grader,
        grade=grade,
        config=config,
        seed=seed,
    )


def evaluate_model(
    recipe: Recipe, model: ModelConfig, directory: Path, *, name: str, progress: Progress
) -> EvalResult:
    """Measure one model as a recipe says; see `evaluate`."""
    task = task_for(model, recipe.task, Split(recipe.evaluate.split), progress)
    plan = plan_evaluation(
        task, recipe.evaluate, recipe.generate, recipe.grade, model=model, seed=recipe.seed
    )
    with closing(LazyEngine(model, recipe.generate)) as engine:
        return evaluate(plan, engine, directory, name=name, progress=progress)


def evaluate(
    plan: EvaluationPlan,
    engine: Engine,
    directory: Path,
    *,
    name: str,
    progress: Progress,
) -> EvalResult:
    """Measure one model; write `evaluation/` and `evaluation.json` into `directory`.

    All completions are kept in `evaluation/part-*.parquet`, a shard for each of its plans; a
    greedy row is known by its `sampling.temperature`. Killed anywhere and called again, it resumes:
    shards that are there are not sampled again, and a finished evaluation is read, not repeated.

    Args:
        plan: what is measured, and how.
        engine: on the model that is measured.
        directory: of this model: an iteration's, or a comparison's.
        name: the model's name in tables.
        progress: receives completions and tokens.

    Raises:
        DataError: none of the problems can be scored.
        RunDirectoryError: `directory` holds another evaluation.
        EngineError: sampling failed.
        GradingError: grading cannot start.

    """
    shards = directory / SHARDS
    drawn = shards / "drawn"
    measured = (engine.revision or engine.model_name, tokenizer_digest(engine.tokenizer))
    with open_stage(
        shards, "evaluate", plan, grading_version(plan.grader), measured, name
    ) as stage:
        if stage.done is not None:
            shutil.rmtree(drawn, ignore_errors=True)
            return read_evaluation(directory / RESULT_FILE)
        with progress.bar(f"evaluating {name}", plan.completions, "completions") as advance:
            look = first_look(plan.grader, plan.grade, engine.tokenizer)
            for folder, each in plan.draws.items():
                sampled = each.sampling.temperature > 0
                draw(each, engine, drawn / folder, advance=advance, look=look if sampled else None)
            _grade(plan, engine, shards, drawn)
        result = _score(plan, engine, shards, name)
        write_evaluation(directory / RESULT_FILE, result)
        stage.finish(rows=plan.completions)
        # The graded shards hold everything that the sampled ones do.
        shutil.rmtree(drawn)
        return result


def _grade(plan: EvaluationPlan, engine: Engine, shards: Path, drawn: Path) -> None:
    """Write the sampled rows with their grades, one shard for each draw."""
    done = {path.name for path in shard_paths(shards)}
    for index, folder in enumerate(plan.draws):
        if f"part-{index:05d}.parquet" not in done:
            table = read_table(drawn / folder)
            graded = grade_table(table, plan.grader, plan.grade, tokenizer=engine.tokenizer)
            write_shard(shards, index, graded)


def _score(plan: EvaluationPlan, engine: Engine, shards: Path, name: str) -> EvalResult:
    of_verdicts = plan.grader == "verdict"
    result = score(
        read_table(shards, SCORED_COLUMNS),
        name=name,
        iteration=plan.draws["sampled"].iteration,
        model=engine.model_name,
        split=plan.config.split,
        pass_at=plan.config.pass_at,
        resamples=plan.config.bootstrap,
        seed=plan.seed,
        group_of=check_question if of_verdicts else None,
    )
    if of_verdicts:
        more = _of_verdicts(shards, engine.tokenizer, plan.config.bootstrap, plan.seed)
        result = replace(result, metrics={**result.metrics, **more})
    return result


def _of_verdicts(
    shards: Path, tokenizer: "PreTrainedTokenizerBase", resamples: int, seed: int
) -> dict[str, Any]:
    """Return what is measured of a verifier next to the share of verdicts that agree."""
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
