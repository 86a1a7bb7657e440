"""The iterations: generate, grade, curate, train, evaluate, again. The one module that knows every
stage, and none of what happens inside one.
"""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from topr.config import (
    Comparison,
    CurateConfig,
    EvaluateConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    VerifierConfig,
    verifier_recipe,
)
from topr.config.recipe import derived_sections
from topr.engines import Engine, open_engine
from topr.evaluation import RESULT_FILE, headline, read_evaluation
from topr.grading.survey import first_look
from topr.models.loading import identity, load_tokenizer
from topr.progress import Progress, Silent
from topr.records import EvalResult
from topr.report import write_report
from topr.runs.directory import claimed
from topr.runs.fingerprint import first_fingerprint, source_mark
from topr.runs.plan import brief, sizes_of
from topr.runs.preparation import check_logprobs, decide_prompt, prepare, quotas
from topr.runs.recipe_checks import BASE, check_recipe
from topr.runs.retention import needed_iterations, remove_weights
from topr.runs.summary import Evaluated, best_of, model_lines, write_metrics, write_summary
from topr.stages.callbacks import snapshot
from topr.stages.common import fingerprint
from topr.stages.curate import curate_rollouts, kept
from topr.stages.evaluate import evaluate, plan_evaluation
from topr.stages.generate import Quota, generate_rollouts, plan_rollouts, spent
from topr.stages.grade import grade_rollouts, refuse_none_right, warn_of_concerns
from topr.stages.probe import probe_source
from topr.stages.train import SNAPSHOTS, alarm_lines, train_model
from topr.stages.verify import vote_with, votes_line
from topr.store import begin, read_manifest
from topr.tasks import Task
from topr.verifier.task import note_prompt

logger = logging.getLogger(__name__)

SEEDS_APART = 100_003


def run(
    recipe: Recipe,
    directory: Path,
    progress: Progress | None = None,
    *,
    first: Path | None = None,
) -> dict[str, Any]:
    """Run a recipe, or resume it, and return the summary that is written.

    Started again on the same directory after an interruption anywhere, it continues, and ends with
    the numbers of an undisturbed run.

    Args:
        recipe: what to run.
        directory: of the run; made where it is not there.
        progress: where progress goes.
        first: what `draw_first` wrote for this recipe, or for one with the same
            `first_fingerprint`, to be used instead of drawing again. There is no report then.

    Raises:
        RunDirectoryError: the directory holds another recipe's run, or another process runs in it.
        ToprError: what the stages raise.

    """
    check_recipe(recipe)
    progress = progress or Silent()
    recipe = decide_prompt(recipe, directory, progress)
    with (
        claimed(recipe, directory),
        closing(_Run(recipe, directory, progress, first)) as started,
    ):
        return started.go()


def draw_first(
    recipe: Recipe, directory: Path, progress: Progress, *, rollouts: bool = True
) -> None:
    """Evaluate the starting model and, with `rollouts`, draw and grade the first iteration's.

    Not for two processes at once on one directory.
    """
    check_recipe(recipe)
    recipe = decide_prompt(recipe, directory, progress)
    with closing(_Run(recipe, directory, progress, directory)) as started:
        start = started.start()
        started.evaluate_base(start)
        if rollouts:
            started.draw_and_grade(start, 1)


class _Run:
    """One call of `run`: the recipe, where it writes, and the engine that is open."""

    def __init__(
        self, recipe: Recipe, directory: Path, progress: Progress, first: Path | None
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.progress = progress
        self.first = directory if first is None else first
        prepared = prepare(recipe, progress)
        self.task: Task = prepared.task
        self._start = prepared.start
        self.mark = fingerprint(recipe.fingerprint(), *source_mark(recipe))
        self.first_mark = first_fingerprint(recipe)
        self._engine: Engine | None = None
        self.results: list[Evaluated] = []
        self.validations: list[Evaluated] = []

    def start(self) -> ModelConfig:
        """Return the starting model."""
        start = self._start
        # Other weights under the same path, or a built-in base made by other code, are another run.
        self.mark = fingerprint(self.mark, identity(start))
        self.first_mark = fingerprint(self.first_mark, identity(start))
        return start

    def go(self) -> dict[str, Any]:
        recipe = self.recipe
        objective = recipe.train.objective
        start = self.start()
        self.progress.say(brief(recipe, sizes_of(recipe, self.task)))
        self.evaluate_base(start)
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
            self.progress.results(f"after iteration {iteration}", model_lines(self.results))
        for name, comparison in recipe.compare.items():
            self._compare(name, comparison, start, self.first / "iteration-01" / "graded")
        summary = write_summary(recipe, self.results, self.validations, self.directory)
        result = summary["kept"]["iteration"]
        if recipe.loop.keep == "best":
            self.progress.say(f"kept: iteration {result}, {models[result].path}")
        if recipe.verifier is not None:
            self._verifier(models[result], result)
        if self.first == self.directory:
            self.progress.say(f"report: {write_report(self.directory)}")
        return summary

    def evaluate_base(self, start: ModelConfig) -> None:
        """Measure the starting model."""
        mark = fingerprint(self.first_mark, BASE, 0)
        self._evaluate(start, BASE, 0, self.first / "iteration-00", mark=mark)

    def _compare(self, name: str, comparison: Comparison, start: ModelConfig, graded: Path) -> None:
        """Train the starting model in another way on the first iteration's rollouts."""
        folder = self.directory / "compare" / name
        curate, train = derived_sections(self.recipe, comparison, where=f"compare.{name}")
        dataset = self._curate(curate, 1, graded, folder)
        model = self._train(start, train, 1, [dataset], folder, [start])
        self._evaluate_snapshots(model, train, name, 1, folder)
        self._evaluate(model, name, 1, folder)
        self._remove_weights(folder)

    def _verifier(self, model: ModelConfig, iteration: int) -> None:
        """Train a verifier of what the result's model writes, and let its candidates vote."""
        home = self.directory / "verifier"
        candidates = self.draw_and_grade(
            model, self.recipe.iterations + 1, self.directory / "candidates"
        )
        tested = self.directory if iteration else self.first
        recipe = verifier_recipe(
            self.recipe,
            candidates=str(candidates),
            test_candidates=str(tested / f"iteration-{iteration:02d}" / "evaluation"),
            generator=model.path,
        )
        recipe = decide_prompt(recipe, home, self.progress)
        self.close()
        summary = run(recipe, home, self.progress)
        paths = {"base": summary["models"][0]["path"], "": summary["kept"]["path"]}
        for name, path in paths.items():
            verifier = recipe.model.at(path)
            self.progress.say(f"the {name or 'trained'} verifier scores the test candidates")
            votes = vote_with(
                recipe,
                verifier,
                home / name,
                mark=fingerprint(first_fingerprint(recipe), identity(verifier)),
                progress=self.progress,
            )
            self.progress.say(votes_line(votes))

    def draw_and_grade(
        self, model: ModelConfig, iteration: int, folder: Path | None = None
    ) -> Path:
        """Return the graded rollouts of an iteration's model."""
        recipe = self.recipe
        where = self.first if iteration == 1 else self.directory
        folder = folder or where / f"iteration-{iteration:02d}"
        mark = fingerprint(self.first_mark if iteration == 1 else self.mark, iteration)
        if read_manifest(folder / "rollouts") is None:
            self._draw(model, iteration, folder, mark)
        is_new = read_manifest(folder / "graded") is None
        graded = grade_rollouts(
            folder / "rollouts",
            self.task.grader,
            recipe.grade,
            folder / "graded",
            mark=mark,
            progress=self.progress,
            tokenizer=lambda: load_tokenizer(model),
        )
        counts = ", ".join(f"{n} {name}" for name, n in graded.details["outcomes"].items())
        self._say(iteration, f"graded {graded.rows} completions: {counts}")
        # Later on a model that was ruined is a result: it is evaluated and reported.
        if iteration == 1 and read_manifest(folder / "training") is None:
            refuse_none_right(folder / "graded", self.task.grader, recipe.grade)
        if is_new:
            warn_of_concerns(folder / "graded")
        return folder / "graded"

    def _draw(self, model: ModelConfig, iteration: int, folder: Path, mark: str) -> None:
        recipe, engine = self.recipe, self._open(model)
        # With the same random numbers a model that changed little would write again what it wrote
        # before.
        seed = recipe.seed + SEEDS_APART * iteration
        curations = quotas(recipe, iteration)
        quota = Quota(
            curations=curations,
            grader=self.task.grader,
            grade=recipe.grade,
            graded=folder / "graded",
        )
        drawn = generate_rollouts(
            plan_rollouts(recipe, self.task, iteration=iteration, seed=seed),
            engine,
            folder / "rollouts",
            fingerprint=mark,
            progress=self.progress,
            quota=quota if curations else None,
            look=first_look(self.task.grader, recipe.grade, engine.tokenizer),
        )
        if curations:
            self._say(iteration, spent(drawn.details))

    def _curate(self, curate: CurateConfig, iteration: int, graded: Path, folder: Path) -> Path:
        mark = fingerprint(self.mark, iteration, curate)
        curated = curate_rollouts(graded, curate, folder / "dataset", mark=mark)
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
        mark = fingerprint(self.mark, iteration, train, folder.name)
        if read_manifest(folder / "training") is None:
            self.close()
            self._say(iteration, f"train with {train.objective}")
        trained = train_model(
            model,
            datasets,
            train,
            folder,
            seed=self.recipe.seed + iteration,
            mark=mark,
            progress=self.progress,
            writers=writers,
            probe=probe_source(self.recipe, self.task),
        )
        if isinstance(self.recipe.task, VerifierConfig):
            note_prompt(self.recipe.task, folder / "model")
        found = trained.details
        self._say(
            iteration,
            f"trained {found['objective']}: {found['steps']} steps on {found['rows']} completions",
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
        mark: str | None = None, step: int | None = None,
    ) -> None:  # fmt: skip
        mark = mark or fingerprint(self.mark, name, iteration, identity(model))
        found = self._measure(model, name, iteration, folder, mark, self.recipe.evaluate)
        self.results.append(Evaluated(result=found, path=Path(model.path), step=step))
        self._say(iteration, headline(found))
        write_metrics(self.directory, self.results)

    def _validate(self, model: ModelConfig, name: str, iteration: int, folder: Path) -> None:
        """Measure a model on validation problems, where the best one is to be kept."""
        if self.recipe.loop.keep != "best":
            return
        config = self.recipe.evaluate.model_copy(update={"split": "validation"})
        folder, mark = folder / "validation", fingerprint(self.mark, identity(model), config)
        found = self._measure(model, name, iteration, folder, mark, config)
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
        self, model: ModelConfig, name: str, iteration: int, folder: Path, mark: str,
        config: EvaluateConfig,
    ) -> EvalResult:  # fmt: skip
        with begin(folder / "evaluation", "evaluate", mark) as done:
            if done is not None:  # no engine is opened for it
                return read_evaluation(folder / RESULT_FILE)
        recipe = self.recipe
        plan = plan_evaluation(
            self.task, config, recipe.generate, recipe.grade, seed=recipe.seed, iteration=iteration
        )
        return evaluate(
            plan, self._open(model), folder, name=name, fingerprint=mark, progress=self.progress
        )

    def _open(self, model: ModelConfig) -> Engine:
        if self._engine is None or self._engine.model_name != model.path:
            self.close()
            self._engine = open_engine(model, self.recipe.generate)
            check_logprobs(self._engine, self.recipe)
        return self._engine

    def close(self) -> None:
        """Let go of the engine's model: training needs the room for its own copy."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _say(self, iteration: int, text: str) -> None:
        self.progress.say(f"[iteration {iteration}] {text}")
