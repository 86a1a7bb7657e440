"""The iterations: generate, grade, curate, train, evaluate, again. The one module that knows every
stage, and none of what happens inside one.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from topr.config import (
    CurateConfig,
    EvaluateConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    VerifierConfig,
    verifier_recipe,
)
from topr.config.recipe import comparisons
from topr.engines.lazy import LazyEngine
from topr.evaluation import headline
from topr.grading.survey import first_look
from topr.progress import Progress, Silent
from topr.records import EvalResult
from topr.report import write_report
from topr.report.text import plural
from topr.runs.continuing import continues_from
from topr.runs.directory import lock_run_directory
from topr.runs.plan import brief
from topr.runs.preparation import check_logprobs, decide_prompt, prepare, quotas
from topr.runs.recipe_checks import BASE, check_recipe
from topr.runs.retention import needed_iterations, remove_weights
from topr.runs.summary import Evaluated, best_of, model_lines, write_metrics, write_summary
from topr.stages.callbacks import snapshot
from topr.stages.curate import curate_rollouts, kept
from topr.stages.evaluate import evaluate, plan_evaluation
from topr.stages.generate import Quota, generate_rollouts, plan_rollouts, spent
from topr.stages.grade import grade_rollouts, refuse_none_right, warn_of_concerns
from topr.stages.probe import probe_source
from topr.stages.train import SNAPSHOTS, alarm_lines, train_model
from topr.stages.verify import vote_with, votes_line
from topr.verifier.task import note_prompt

logger = logging.getLogger(__name__)

SEEDS_APART = 100_003


def run(
    recipe: Recipe,
    directory: Path,
    progress: Progress | None = None,
    *,
    report: bool = True,
) -> dict[str, Any]:
    """Run a recipe, or resume it, and return the summary that is written.

    Started again on the same directory after an interruption anywhere, it continues, and ends with
    the numbers of an undisturbed run.

    Args:
        recipe: what to run.
        directory: of the run; made where it is not there.
        progress: where progress goes.
        report: write `report.html` at the end.

    Raises:
        RunDirectoryError: the directory holds another recipe's run, or another process runs in it.
        ToprError: what the stages raise.

    """
    check_recipe(recipe)
    progress = progress or Silent()
    recipe = decide_prompt(recipe, directory, progress)
    with lock_run_directory(recipe, directory):
        if told := continues_from(directory):
            progress.say(told)
        with closing(_Run(recipe, directory, progress)) as started:
            summary = started.execute()
        if report:
            progress.say(f"report: {write_report(directory)}")
        return summary


def draw_first(
    recipe: Recipe, directory: Path, progress: Progress, *, rollouts: bool = True
) -> None:
    """Evaluate the starting model and, with `rollouts`, draw and grade the first iteration's.

    A run of the same recipe makes the same stages. Not for two processes at once on one directory.
    """
    check_recipe(recipe)
    recipe = decide_prompt(recipe, directory, progress)
    with closing(_Run(recipe, directory, progress)) as started:
        started.evaluate_base()
        if rollouts:
            started.draw_and_grade(started.start, 1)


class _Run:
    """One call of `run`: the recipe, where it writes, and the engine that is open."""

    def __init__(self, recipe: Recipe, directory: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.directory = directory
        self.progress = progress
        self.task, self.start = prepare(recipe, progress)
        self._engine: LazyEngine | None = None
        self.results: list[Evaluated] = []
        self.validations: list[Evaluated] = []

    def execute(self) -> dict[str, Any]:
        """Go through the iterations, and return the summary."""
        recipe, start = self.recipe, self.start
        objective = recipe.train.objective
        self.progress.say(brief(recipe, self.task))
        self.evaluate_base()
        self._validate(start, BASE, 0, self.directory / "iteration-00")
        models = [start]
        for iteration in range(1, recipe.iterations + 1):
            folder = self.directory / f"iteration-{iteration:02d}"
            graded = self.draw_and_grade(models[-1], iteration)
            datasets = self._earlier(iteration)
            datasets.append(self._curate(recipe.curate, iteration, graded, folder))
            origin = start if recipe.loop.start == "base" else models[-1]
            model = self._train(origin, recipe.train, iteration, datasets, folder, models)
            models.append(model)
            self._evaluate_snapshots(model, recipe.train, objective, iteration, folder)
            self._evaluate(model, objective, iteration, folder)
            self._validate(model, objective, iteration, folder)
            self._remove_unneeded(iteration)
            if iteration < recipe.iterations:
                self.progress.results(f"after iteration {iteration}", model_lines(self.results))
        for name, (curate, train) in comparisons(recipe).items():
            self._compare(name, curate, train, self.directory / "iteration-01" / "graded")
        summary = write_summary(recipe, self.results, self.validations, self.directory)
        self.progress.results(recipe.name, summary["models"])
        result = summary["kept"]["iteration"]
        if recipe.loop.keep == "best":
            self.progress.say(f"kept: iteration {result}, {models[result].path}")
        if recipe.verifier is not None:
            self._verifier(models[result], result)
        return summary

    def evaluate_base(self) -> None:
        """Measure the starting model."""
        self._evaluate(self.start, BASE, 0, self.directory / "iteration-00")

    def _compare(self, name: str, curate: CurateConfig, train: TrainConfig, graded: Path) -> None:
        """Train the starting model in another way on the first iteration's rollouts."""
        folder = self.directory / "compare" / name
        dataset = self._curate(curate, 1, graded, folder)
        model = self._train(self.start, train, 1, [dataset], folder, [self.start])
        self._evaluate_snapshots(model, train, name, 1, folder)
        self._evaluate(model, name, 1, folder)
        self._remove_weights(folder)

    def _verifier(self, model: ModelConfig, iteration: int) -> None:
        """Train a verifier of what the result's model writes, and let its candidates vote."""
        home = self.directory / "verifier"
        candidates = self.draw_and_grade(
            model, self.recipe.iterations + 1, self.directory / "candidates"
        )
        tested = self.directory / f"iteration-{iteration:02d}" / "evaluation"
        recipe = verifier_recipe(
            self.recipe,
            candidates=str(candidates),
            test_candidates=str(tested),
            generator=model.path,
        )
        recipe = decide_prompt(recipe, home, self.progress)
        self.close()
        summary = run(recipe, home, self.progress)
        paths = {"base": summary["models"][0]["path"], "": summary["kept"]["path"]}
        for name, path in paths.items():
            verifier = recipe.model.at(path)
            self.progress.say(f"the {name or 'trained'} verifier scores the test candidates")
            votes = vote_with(recipe, verifier, home / name, progress=self.progress)
            self.progress.say(votes_line(votes))

    def draw_and_grade(
        self, model: ModelConfig, iteration: int, folder: Path | None = None
    ) -> Path:
        """Return the graded rollouts of an iteration's model."""
        recipe, engine, grader = self.recipe, self._engine_of(model), self.task.grader
        folder = folder or self.directory / f"iteration-{iteration:02d}"
        rollouts, graded = folder / "rollouts", folder / "graded"
        # With the same random numbers a model that changed little would write again what it wrote
        # before.
        seed = recipe.seed + SEEDS_APART * iteration
        curations = quotas(recipe, iteration)
        quota = Quota(curations=curations, grader=grader, grade=recipe.grade, graded=graded)
        drawn = generate_rollouts(
            plan_rollouts(recipe, self.task, model, iteration=iteration, seed=seed),
            engine,
            rollouts,
            progress=self.progress,
            quota=quota if curations else None,
            look=partial(first_look, grader, recipe.grade),
        )
        if curations:
            self._say(iteration, spent(drawn.details))

        def check(directory: Path) -> None:
            if iteration == 1:  # a model that was ruined later is a result, and is evaluated
                refuse_none_right(directory, grader, recipe.grade)
            warn_of_concerns(directory)

        found = grade_rollouts(
            rollouts, grader, recipe.grade, graded, progress=self.progress,
            tokenizer=lambda: engine.tokenizer, check=check,
        )  # fmt: skip
        counts = ", ".join(f"{n} {name}" for name, n in found.details["outcomes"].items())
        self._say(iteration, f"graded {found.rows} completions: {counts}")
        return graded

    def _curate(self, curate: CurateConfig, iteration: int, graded: Path, folder: Path) -> Path:
        curated = curate_rollouts(graded, curate, folder / "dataset")
        self._say(iteration, kept(curated.details))
        return folder / "dataset"

    def _earlier(self, iteration: int) -> list[Path]:
        """Return the datasets of earlier iterations that an iteration trains on too."""
        window = self.recipe.loop.window or iteration
        first = max(1, iteration - window + 1)
        return [self.directory / f"iteration-{i:02d}" / "dataset" for i in range(first, iteration)]

    def _train(
        self, model: ModelConfig, train: TrainConfig, iteration: int, datasets: Sequence[Path],
        folder: Path, writers: Sequence[ModelConfig],
    ) -> ModelConfig:  # fmt: skip
        """Train a model on what `writers` wrote; return the trained model."""
        self.close()
        trained = train_model(
            model,
            datasets,
            train,
            folder,
            seed=self.recipe.seed + iteration,
            progress=self.progress,
            writers=writers,
            probe=probe_source(self.recipe, self.task),
        )
        if isinstance(self.recipe.task, VerifierConfig):
            note_prompt(self.recipe.task, folder / "model")
        found = trained.details
        self._say(
            iteration,
            f"trained {found['objective']}: {plural(found['steps'], 'step')} on "
            f"{plural(found['rows'], 'completion')}",
        )
        for line in alarm_lines(found.get("watch") or {}):
            self._say(iteration, line)
        write_metrics(self.directory, self.results)
        return model.at(str(folder / "model"))

    def _evaluate_snapshots(
        self, model: ModelConfig, train: TrainConfig, name: str, iteration: int, folder: Path
    ) -> None:
        for step in sorted(train.snapshots):
            path = snapshot(folder / SNAPSHOTS, step)
            if not path.is_dir():
                logger.warning("training ended before step %d: no snapshot of it", step)
                continue
            there = model.at(str(path))
            self._evaluate(there, f"{name}@{step}", iteration, path, step=step)

    def _evaluate(
        self, model: ModelConfig, name: str, iteration: int, folder: Path, *,
        step: int | None = None,
    ) -> None:  # fmt: skip
        found = self._measure(model, name, iteration, folder, self.recipe.evaluate)
        self.results.append(Evaluated(result=found, path=Path(model.path), step=step))
        self._say(iteration, headline(found))
        write_metrics(self.directory, self.results)

    def _validate(self, model: ModelConfig, name: str, iteration: int, folder: Path) -> None:
        """Measure a model on validation problems, where the best one is to be kept."""
        if self.recipe.loop.keep != "best":
            return
        config = self.recipe.evaluate.model_copy(update={"split": "validation"})
        found = self._measure(model, name, iteration, folder / "validation", config)
        self.validations.append(Evaluated(result=found, path=Path(model.path), step=None))
        self._say(iteration, headline(found))

    def _remove_unneeded(self, iteration: int) -> None:
        """Delete the weights of iterations that nothing is made from any more."""
        if self.recipe.loop.keep_models == "all":
            return
        best = best_of(self.validations).result.iteration if self.validations else 0
        needed = needed_iterations(self.recipe, iteration, best)
        for done in range(1, iteration + 1):
            folder = self.directory / f"iteration-{done:02d}"
            self._remove_weights(folder, snapshots_only=done in needed)

    def _remove_weights(self, folder: Path, *, snapshots_only: bool = False) -> None:
        """Delete the weights of an iteration or a comparison, unless all are kept."""
        why = f"loop.keep_models={self.recipe.loop.keep_models}"
        if self.recipe.loop.keep_models == "all":
            return
        held = self._engine is not None and Path(self._engine.model_name).is_relative_to(folder)
        if held and not snapshots_only:
            self.close()
        freed = remove_weights(folder, why, snapshots_only=snapshots_only)
        if freed:
            what = "snapshots" if snapshots_only else "weights"
            place = folder.relative_to(self.directory)
            self.progress.say(f"deleted {what} of {place} ({freed / 2**20:.0f} MiB): {why}")

    def _measure(
        self, model: ModelConfig, name: str, iteration: int, folder: Path, config: EvaluateConfig
    ) -> EvalResult:
        recipe = self.recipe
        plan = plan_evaluation(
            self.task, config, recipe.generate, recipe.grade, model=model, seed=recipe.seed,
            iteration=iteration,
        )  # fmt: skip
        return evaluate(plan, self._engine_of(model), folder, name=name, progress=self.progress)

    def _engine_of(self, model: ModelConfig) -> LazyEngine:
        """Return the one engine of the run, of another model than before if need be."""
        if self._engine is None or self._engine.model_name != model.path:
            self.close()
            self._engine = LazyEngine(
                model,
                self.recipe.generate,
                check=lambda engine: check_logprobs(engine, self.recipe),
            )
        return self._engine

    def close(self) -> None:
        """Let go of the engine's model: training needs the room for its own copy."""
        if self._engine is not None:
            self._engine.close()

    def _say(self, iteration: int, text: str) -> None:
        self.progress.say(f"[iteration {iteration}] {text}")
