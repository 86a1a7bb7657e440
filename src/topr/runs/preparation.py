"""What happens before a run: its starting model, its prompts, and checks that need its task, model
or engine. What the recipe alone tells is checked in `topr.runs.recipe_checks`.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from topr.config import CurateConfig, ModelConfig, PromptConfig, Recipe, TrainConfig, VerifierConfig
from topr.config.recipe import comparisons
from topr.curation import max_candidates
from topr.engines import Engine
from topr.errors import ConfigError
from topr.grading import GRADERS
from topr.grading.user import load_function
from topr.models.adapters import check_adapter
from topr.models.files import is_adapter
from topr.models.gguf import plain_model
from topr.models.loading import load_tokenizer
from topr.models.places import identity
from topr.progress import Advance, Progress, Silent
from topr.runs.directory import recipe_at_work
from topr.runs.recipe_checks import BUILTIN, own_base
from topr.stages.train_arguments import peft_config_of
from topr.tasks import Split, Task, load_task
from topr.tasks.prompts import check_prompts, resolve_prompt

logger = logging.getLogger(__name__)


def decide_prompt(recipe: Recipe, directory: Path | None, progress: Progress) -> Recipe:
    """Return a run's recipe with `task.prompt=auto` decided by the tokenizer of its starting model.

    Once: what the run in `directory` was begun with, it keeps.

    Raises:
        ConfigError: prompts become plain text, and there is a system prompt.
        ModelError: there is no such tokenizer.

    """
    task = recipe.task
    if not isinstance(task, PromptConfig) or not task.undecided:
        return recipe
    begun = recipe_at_work(directory) if directory else None
    there = (begun or {}).get("task", {})
    if there.get("prompt") in ("chat", "plain"):
        decided: PromptConfig = task.model_copy(update={"prompt": there["prompt"]})
    else:
        builtin = recipe.model.path == BUILTIN  # whose tokenizers have no chat template
        tokenizer = None if builtin else load_tokenizer(plain_model(recipe.model, progress))
        decided = resolve_prompt(task, tokenizer, logger.info if builtin else progress.say)
    return recipe.model_copy(update={"task": decided})


def starting_model(recipe: Recipe, progress: Progress) -> ModelConfig:
    """Return the model that a recipe starts from, as a directory or a hub name.

    The task's own is made, and a GGUF file is converted, or found in its cache.
    """
    if recipe.model.path != BUILTIN:
        return plain_model(recipe.model, progress)
    task = recipe.task
    if isinstance(task, VerifierConfig):
        from topr.tasks.arithmetic.checker import checker_base

        path = _made(lambda told: checker_base(task.warmup, progress=told), "verifier", progress)
    else:
        from topr.tasks.arithmetic.base import base_model

        path = _made(lambda told: base_model(own_base(recipe), progress=told), "base", progress)
    return recipe.model.at(str(path))


def _made(
    make: Callable[[Callable[[int, int, float], None]], Path], what: str, progress: Progress
) -> Path:
    """Return what `make` returns, with a bar where it has to be made first."""
    with ExitStack() as stack:
        bars: list[Advance] = []

        def told(done: int, total: int, loss: float) -> None:
            if not bars:
                title = f"warming up the {what} model"
                bars.append(stack.enter_context(progress.bar(title, total, "steps")))
            bars[0](1, note=f"loss {loss:.2f}")

        return make(told)


def check_start(recipe: Recipe) -> None:
    """Make all checks of `prepare`, and find the model's config; nothing is made or changed.

    Raises:
        ToprError: what a run of the recipe would be refused for.

    """
    recipe = decide_prompt(recipe, None, Silent())
    task = load_task(recipe.task)
    check_task(task, recipe)
    if recipe.model.path == BUILTIN:
        return
    start = plain_model(recipe.model)
    identity(start)
    check_adapters(recipe, start)
    check_prompts_of(task, recipe, start)


def prepare(recipe: Recipe, progress: Progress) -> tuple[Task, ModelConfig]:
    """Read the task and find the starting model, with every check that needs them.

    Raises:
        ToprError: what `check_task`, `starting_model` and the other checks raise.

    """
    task = load_task(recipe.task)
    check_task(task, recipe)
    start = starting_model(recipe, progress)
    check_adapters(recipe, start)
    check_prompts_of(task, recipe, start)
    return task, start


def check_task(task: Task, recipe: Recipe) -> None:
    """Read every problem and find the grader now: a wrong column must not cost hours of sampling.

    Raises:
        ToprError: problems cannot be read, or the user's reward function is not there.

    """
    task.problems(Split.TRAIN)
    task.problems(Split(recipe.evaluate.split))
    if recipe.loop.keep == "best" and not task.problems(Split.VALIDATION):
        raise ConfigError(
            "loop.keep=best chooses an iteration on validation problems, and the task has none: "
            "give it some (task.validation_problems), or set loop.keep=last"
        )
    if task.grader not in GRADERS:
        load_function(task.grader)


def check_prompts_of(task: Task, recipe: Recipe, start: ModelConfig) -> None:
    """Refuse prompts that the model's tokenizer has no way to render: see `check_prompts`."""
    if not isinstance(recipe.task, PromptConfig) or recipe.model.path == BUILTIN:
        return
    splits = (Split.TRAIN, Split(recipe.evaluate.split))
    check_prompts((p for split in splits for p in task.problems(split)), load_tokenizer(start))


def check_logprobs(engine: Engine, recipe: Recipe) -> None:
    """Refuse an open engine whose rollouts the recipe's training would refuse, hours later.

    Raises:
        ConfigError: it records no log-probabilities, and training takes log mu from the sampler.

    """
    trainings = _trainings(recipe).items()
    wanted = [where for where, train in trainings if train.behavior_logprobs == "sampler"]
    # Last, since it may cost the engine `ray` the start of a server.
    if wanted and not engine.records_logprobs:
        raise ConfigError(
            f"{wanted[0]}.behavior_logprobs=sampler, but engine {engine.name!r} gives no "
            "log-probabilities of what it draws (its warning says why): set "
            f"{wanted[0]}.behavior_logprobs=recompute, or draw with an engine that does"
        )


def check_adapters(recipe: Recipe, start: ModelConfig) -> None:
    """Refuse adapters that the starting model's layers cannot have.

    Raises:
        ModelError: a layer that is meant is tied to another, or there is none of that name.

    """
    for train in _trainings(recipe).values():
        if train.lora is not None and not is_adapter(Path(start.path).expanduser()):
            config = peft_config_of(train.lora, start.revision)
            check_adapter(start.path, start.revision, config, trust=start.trust_remote_code)


def _trainings(recipe: Recipe) -> dict[str, TrainConfig]:
    """Return the sections `train` that a run trains with, by their names in the recipe."""
    compared = {f"compare.{name}.train": train for name, (_, train) in comparisons(recipe).items()}
    return {"train": recipe.train} | compared


def quotas(recipe: Recipe, iteration: int) -> list[CurateConfig]:
    """Return the curations that say when a problem is full.

    The recipe's own and, where its comparisons train on the same rollouts, theirs: each gets what
    it would have got alone.
    """
    found = [recipe.curate]
    if iteration == 1:
        found += [curate for curate, _ in comparisons(recipe).values()]
    return [curate for curate in found if max_candidates(curate) is not None]
