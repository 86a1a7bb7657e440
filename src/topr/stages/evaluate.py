"""A model and a recipe to an evaluation on disk."""

from contextlib import closing
from pathlib import Path

from topr.config import EvaluateConfig, ModelConfig, Recipe
from topr.engines import Engine, open_engine
from topr.evaluation import evaluate
from topr.progress import Progress
from topr.records import EvalResult, Split
from topr.stages.common import fingerprint, task_for
from topr.tasks import Task


def evaluate_model(
    recipe: Recipe, model: ModelConfig, directory: Path, *, name: str, progress: Progress
) -> EvalResult:
    """Measure one model as a recipe says; see `topr.evaluation.evaluate`."""
    section, task = task_for(model, recipe.task, Split(recipe.evaluate.split), progress)
    engine = open_engine(model, recipe.generate)
    sections = (section, recipe.generate, recipe.evaluate, recipe.grade)
    mark = fingerprint(*sections, model, engine.revision, recipe.seed, name)
    with closing(engine):
        return measure(recipe, recipe.evaluate, task, engine, directory, name, 0, mark, progress)


def measure(
    recipe: Recipe, config: EvaluateConfig, task: Task, engine: Engine, directory: Path,
    name: str, iteration: int, mark: str, progress: Progress,
) -> EvalResult:  # fmt: skip
    """Measure an engine's model, with a bar; see `topr.evaluation.evaluate`."""
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
