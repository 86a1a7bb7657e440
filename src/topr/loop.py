"""The iterations: generate, grade, curate, train, evaluate, again. The one module that knows every
stage, and none of what happens inside one.
"""

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from topr.config import ArithmeticConfig, Comparison, CurateConfig, ModelConfig, Recipe, TrainConfig
from topr.config.recipe import derived_sections
from topr.errors import ConfigError
from topr.evaluation import RESULT_FILE, compare, evaluate, headline, read_evaluation
from topr.grading import GRADERS
from topr.grading.user import load_function
from topr.models import LoadedModel, identity, load
from topr.objectives import make_objective
from topr.progress import Progress, Silent
from topr.records import EvalResult
from topr.report import write_report
from topr.run_directory import claimed
from topr.stages.common import fingerprint
from topr.stages.curate import curate_rollouts
from topr.stages.generate import generate_rollouts, make_engine
from topr.stages.grade import grade_rollouts
from topr.stages.train import train_model, training_arguments
from topr.store import begin, read_manifest, write_json_atomic, write_text_atomic
from topr.tasks import Split, Task, load_task

BASE = "base"
BUILTIN = "builtin"
SEEDS_APART = 100_003


def run(recipe: Recipe, directory: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run a recipe, or go on with it, and return the summary that is written.

    Started again on the same directory after an interruption anywhere, it continues, and ends with
    the numbers of an undisturbed run.

    Args:
        recipe: what to run.
        directory: of the run; made where it is not there.
        progress: where progress goes.

    Raises:
        RunDirectoryError: the directory holds another recipe's run, or another process runs in it.
        ToprError: what the stages raise.

    """
    _check(recipe)
    with claimed(recipe, directory):
        return _Run(recipe, directory, progress or Silent()).go()


class _Run:
    """One call of `run`: the recipe, where it writes, and the model that is in memory."""

    def __init__(self, recipe: Recipe, directory: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.directory = directory
        self.progress = progress
        self.task: Task = load_task(recipe.task)
        check_task(self.task, recipe)
        self.mark = recipe.fingerprint()
        self._loaded: LoadedModel | None = None
        self.results: list[tuple[EvalResult, Path]] = []

    def go(self) -> dict[str, Any]:
        recipe = self.recipe
        start = starting_model(recipe, self.progress)
        # Other weights under the same path, or a built-in base made by other code, are another run.
        self.mark = fingerprint(self.mark, identity(start.path))
        self._evaluate(start, BASE, 0, self.directory / "iteration-00")
        model = start
        for iteration in range(1, recipe.iterations + 1):
            folder = self.directory / f"iteration-{iteration:02d}"
            self._draw_and_grade(model, iteration, folder)
            model = self._train(
                model, recipe.curate, recipe.train, iteration, folder / "graded", folder
            )
            self._evaluate(model, recipe.train.objective, iteration, folder)
            self.progress.results(f"after iteration {iteration}", self._models())
        graded = self.directory / "iteration-01" / "graded"
        for name, comparison in recipe.compare.items():
            self._compare(name, comparison, start, graded)
        summary = self._summarise()
        self.progress.say(f"report: {write_report(self.directory)}")
        return summary

    def _compare(self, name: str, comparison: Comparison, start: ModelConfig, graded: Path) -> None:
        """Train the starting model in another way on the first iteration's rollouts."""
        folder = self.directory / "compare" / name
        curate, train = derived_sections(self.recipe, comparison, where=f"compare.{name}")
        self._evaluate(self._train(start, curate, train, 1, graded, folder), name, 1, folder)

    def _draw_and_grade(self, model: ModelConfig, iteration: int, folder: Path) -> None:
        recipe = self.recipe
        mark = fingerprint(self.mark, iteration)
        if read_manifest(folder / "rollouts") is None:
            self._say(iteration, f"draw {recipe.generate.n} completions per problem")
            generate_rollouts(
                self.task.problems(Split.TRAIN),
                self._load(model),
                recipe.generate,
                folder / "rollouts",
                stop=self.task.stop,
                keep_columns=self.task.grader not in GRADERS,
                # With the same random numbers a model that changed little would write again what
                # it wrote before.
                seed=recipe.seed + SEEDS_APART * iteration,
                iteration=iteration,
                mark=mark,
                progress=self.progress,
            )
        graded = grade_rollouts(
            folder / "rollouts",
            self.task.grader,
            recipe.grade,
            folder / "graded",
            mark=mark,
            progress=self.progress,
        )
        counts = ", ".join(f"{n} {name}" for name, n in graded.details["outcomes"].items())
        self._say(iteration, f"graded {graded.rows} completions: {counts}")

    def _train(
        self, model: ModelConfig, curate: CurateConfig, train: TrainConfig,
        iteration: int, graded: Path, folder: Path,
    ) -> ModelConfig:  # fmt: skip
        """Curate and train; return the trained model."""
        mark = fingerprint(self.mark, iteration, curate, train)
        curated = curate_rollouts(graded, curate, folder / "dataset", mark=mark)
        report = curated.details
        self._say(
            iteration,
            f"curated ({report['strategy']}): {report['kept']} of {report['rows']} completions, "
            f"{report['positive_share']:.1%} positive",
        )
        if read_manifest(folder / "training") is None:
            self._release()
            self._say(iteration, f"train with {train.objective}")
        trained = train_model(
            model,
            folder / "dataset",
            train,
            folder,
            seed=self.recipe.seed + iteration,
            mark=mark,
            progress=self.progress,
        )
        found = trained.details
        self._say(
            iteration,
            f"trained {found['objective']}: {found['steps']} steps on {found['rows']} completions; "
            f"share of positives {found['positive_share']:.1%}, baseline {found['baseline']:+.2f}, "
            f"effective share {found['effective_positive_share']:.1%}",
        )
        self._write_metrics()
        return model.model_copy(update={"path": str(folder / "model"), "revision": None})

    def _evaluate(self, model: ModelConfig, name: str, iteration: int, folder: Path) -> None:
        mark = fingerprint(self.mark, name, iteration)
        if begin(folder / "evaluation", "evaluate", mark) is not None:
            result = read_evaluation(folder / RESULT_FILE)
        else:
            result = _evaluate(
                self.recipe, self.task, self._load(model), folder, name, iteration, mark,
                self.progress,
            )  # fmt: skip
        self.results.append((result, Path(model.path)))
        self._say(iteration, headline(result))
        self._write_metrics()

    def _load(self, model: ModelConfig) -> LoadedModel:
        if self._loaded is None or self._loaded.name != model.path:
            self._release()
            self._loaded = load(model)
        return self._loaded

    def _release(self) -> None:
        """Let go of the model in memory: training needs the room for its own copy."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _say(self, iteration: int, text: str) -> None:
        self.progress.say(f"[iteration {iteration}] {text}")

    def _write_metrics(self) -> None:
        """Write metrics.jsonl anew from what the stages left: a resumed run repeats no line."""
        lines: list[dict[str, Any]] = []
        for result, _ in self.results:
            lines.append(
                {"kind": "evaluation", "name": result.name, "iteration": result.iteration}
                | {"split": result.split, **result.metrics}
            )
        for log in sorted(self.directory.glob("*/**/training/log.jsonl")):
            where = str(log.parent.parent.relative_to(self.directory))
            for line in log.read_text(encoding="utf-8").splitlines():
                lines.append({"kind": "training", "where": where} | json.loads(line))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text_atomic(self.directory / "metrics.jsonl", text)

    def _models(self) -> list[dict[str, Any]]:
        return [
            {"name": result.name, "iteration": result.iteration, "path": str(path)}
            | dict(result.metrics)
            for result, path in self.results
        ]

    def _summarise(self) -> dict[str, Any]:
        # The last iteration's model, against the base and against what shared its rollouts.
        by_name = {(r.name, r.iteration): r for r, _ in self.results}
        main = self.recipe.train.objective
        last = by_name[main, self.recipe.iterations]
        pairs = [(last, by_name[BASE, 0])]
        pairs += [(by_name[main, 1], by_name[name, 1]) for name in self.recipe.compare]
        comparisons = [
            asdict(difference) | {"a_iteration": a.iteration, "b_iteration": b.iteration}
            for a, b in pairs
            for difference in compare(a, b)
        ]
        summary = {
            "schema": 1,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "models": self._models(),
            "comparisons": comparisons,
        }
        write_json_atomic(self.directory / "summary.json", summary)
        return summary


def check_task(task: Task, recipe: Recipe) -> None:
    """Read every problem and find the grader now: a wrong column must not cost hours of drawing.

    Raises:
        ToprError: problems cannot be read, or the user's reward function is not there.

    """
    task.problems(Split.TRAIN)
    task.problems(Split(recipe.evaluate.split))
    if task.grader not in GRADERS:
        load_function(task.grader)


def starting_model(recipe: Recipe, progress: Progress) -> ModelConfig:
    """Return the model that a recipe starts from; the task's own is made, or found in its cache."""
    if recipe.model.path != BUILTIN:
        return recipe.model
    from topr.tasks.arithmetic.base import base_model, is_made

    task = _own_base(recipe)
    if is_made(task):
        return recipe.model.model_copy(update={"path": str(base_model(task))})
    with progress.bar("warming up the base model", task.warmup.steps, "steps") as advance:
        path = base_model(
            task, progress=lambda done, total, loss: advance(1, note=f"loss {loss:.2f}")
        )
    return recipe.model.model_copy(update={"path": str(path)})


def _own_base(recipe: Recipe) -> ArithmeticConfig:
    if not isinstance(recipe.task, ArithmeticConfig):
        raise ConfigError(
            f"model.path is {BUILTIN!r}, but task {recipe.task.name!r} makes no model of its own; "
            "set model.path to a directory or a hub name"
        )
    return recipe.task


def evaluate_model(
    recipe: Recipe, model: ModelConfig, directory: Path, *, name: str, progress: Progress
) -> EvalResult:
    """Measure one model as a recipe says; see `topr.evaluation.evaluate`."""
    task, loaded = load_task(recipe.task), load(model)
    sections = (recipe.task, recipe.generate, recipe.evaluate, recipe.grade)
    mark = fingerprint(*sections, model, loaded.revision, recipe.seed, name)
    return _evaluate(recipe, task, loaded, directory, name, 0, mark, progress)


def _evaluate(
    recipe: Recipe, task: Task, loaded: LoadedModel, directory: Path, name: str, iteration: int,
    mark: str, progress: Progress,
) -> EvalResult:  # fmt: skip
    config = recipe.evaluate
    problems = len(task.problems(Split(config.split))[: config.problems])
    total = problems * (config.n + int(config.greedy))
    with progress.bar(f"evaluating {name}", total, "completions") as advance:
        return evaluate(
            task,
            make_engine(loaded, recipe.generate),
            loaded.tokenizer,
            config=config,
            grade=recipe.grade,
            directory=directory,
            name=name,
            model=loaded.name,
            iteration=iteration,
            seed=recipe.seed,
            max_tokens=recipe.generate.max_tokens,
            stop=recipe.generate.stop,
            shard_problems=recipe.generate.shard_problems,
            fingerprint=mark,
            on_draw=lambda n, tokens: advance(n, tokens=tokens),
        )


def _check(recipe: Recipe) -> None:
    """Refuse what would fail hours later: objectives, arguments, devices, names."""
    if recipe.model.path == BUILTIN:
        _own_base(recipe)
    taken = {BASE, recipe.train.objective}
    for name in recipe.compare:
        if name in taken or not name.isidentifier():
            raise ConfigError(
                f"compare.{name}: a comparison's name must be a plain word other than "
                f"{', '.join(sorted(taken))}, which name models of this run already"
            )
    trains = [recipe.train]
    for name, comparison in recipe.compare.items():
        trains.append(derived_sections(recipe, comparison, where=f"compare.{name}")[1])
    drawn = recipe.generate
    for train in trains:
        if train.behavior_logprobs == "sampler" and (drawn.top_k or drawn.top_p < 1.0):
            raise ConfigError(
                f"generate.top_k={drawn.top_k}, top_p={drawn.top_p} with "
                "train.behavior_logprobs=sampler: recorded log-probabilities will be those of a "
                "part of the vocabulary, and training refuses them. Set "
                "train.behavior_logprobs=recompute, or draw from the whole vocabulary"
            )
        taper = train.taper.model_dump() if train.taper else {}
        objective = make_objective(train.objective, **{**train.objective_args, **taper})
        if objective.coupled and train.batch_size < drawn.n and recipe.curate.per_problem is None:
            raise ConfigError(
                f"train.batch_size={train.batch_size} with generate.n={drawn.n}: "
                f"{train.objective} compares a prompt's completions with each other, so they must "
                f"share a batch; set train.batch_size to at least {drawn.n}"
            )
        training_arguments(train, recipe.model, Path("unused"), recipe.seed)
