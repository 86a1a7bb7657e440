"""What a recipe alone tells would fail hours later: sections that do not agree with each other.

Checks that need the task, the model or an engine are in `topr.runs.preparation`.
"""

import logging
from pathlib import Path

import numpy as np

from topr.config import (
    ArithmeticConfig,
    CurateConfig,
    JsonlConfig,
    PositivesRule,
    ReasoningGymConfig,
    Recipe,
    TrainConfig,
    VerifierConfig,
)
from topr.config.recipe import comparisons, verifier_recipe
from topr.curation import max_candidates, most_per_problem, whole_draw_rule
from topr.engines import check_engine
from topr.errors import ConfigError
from topr.grading import GRADERS
from topr.models.gguf import plain_model
from topr.models.loading import check_quantization
from topr.models.places import identity
from topr.objectives import BaselineRole, Objective
from topr.records.distribution import distribution
from topr.stages.train_arguments import training_arguments
from topr.training.checks import any_weight, objective_of, validate_baseline, warn_idle_baseline

logger = logging.getLogger(__name__)

BASE = "base"
"""The starting model's name in results."""
BUILTIN = "builtin"
"""Path of the model that a task makes itself."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse what would fail hours later: objectives, arguments, devices, names.

    Raises:
        ConfigError: sections do not agree with each other.

    """
    if recipe.model.path == BUILTIN and not isinstance(recipe.task, VerifierConfig):
        own_base(recipe)
    check_engine(recipe.model, recipe.generate)
    if recipe.verifier is not None:
        _check_verifier(recipe)
    _check_names(recipe)
    _check_loop(recipe)
    pooled = min(recipe.loop.window or recipe.iterations, recipe.iterations)
    _check_training(recipe, recipe.curate, recipe.train, iterations=pooled)
    for curate, train in comparisons(recipe).values():
        _check_training(recipe, curate, train, iterations=1)


def _check_names(recipe: Recipe) -> None:
    taken = {BASE, recipe.train.objective}
    for name in recipe.compare:
        if name in taken or not name.isidentifier():
            raise ConfigError(
                f"compare.{name}: a comparison's name must be a plain word other than "
                f"{', '.join(sorted(taken))}, which name models of this run already"
            )


def _check_loop(recipe: Recipe) -> None:
    whole = whole_draw_rule(recipe.curate) if max_candidates(recipe.curate) is not None else None
    if whole is not None:
        logger.warning(
            "curate.steps: %s must see every candidate of a problem, so drawing in rounds saves "
            "nothing; put it after anna_karenina, if that is what you mean",
            whole,
        )
    if recipe.iterations == 1 and (recipe.loop.start, recipe.loop.window) != ("last", 1):
        logger.warning(
            "loop.start=%s and loop.window=%s do nothing with iterations=1",
            recipe.loop.start, recipe.loop.window,
        )  # fmt: skip
    if recipe.loop.keep_models not in ("all", recipe.loop.keep):
        raise ConfigError(
            f"loop.keep_models={recipe.loop.keep_models} with loop.keep={recipe.loop.keep}: the "
            "weights of the run's result would be deleted. Set both to last or both to best (which "
            "chooses on validation problems), or loop.keep_models=all"
        )
    lora = recipe.train.lora
    again = recipe.iterations > 1 and recipe.loop.start == "last"
    if lora is not None and not lora.merge and again:
        raise ConfigError(
            f"train.lora.merge=false with iterations={recipe.iterations}: the second iteration "
            "would put an adapter on an adapter; set train.lora.merge=true, or loop.start=base"
        )


def _check_training(
    recipe: Recipe, curate: CurateConfig, train: TrainConfig, *, iterations: int
) -> None:
    """Refuse what one training would be refused for; it trains on that many iterations' rows."""
    args = training_arguments(train, recipe.model, Path("unused"), recipe.seed)
    objective = objective_of(args)
    _check_sampling(recipe, train, objective)
    _check_baseline(recipe, curate, train, objective)
    known = _signed(recipe)
    warn_idle_baseline(args, objective, np.array([-1, 1], dtype=np.float32) if known else None)
    most = max_candidates(recipe.curate) or recipe.generate.n
    group = iterations * min(most, most_per_problem(curate, most))
    whole_groups = objective.needs_group or train.shuffle_by == "prompt"
    if whole_groups and train.global_batch_size < group:
        why = "shuffle_by=prompt keeps them together"
        if objective.needs_group:
            why = f"{train.objective} compares a prompt's completions with each other"
        raise ConfigError(
            f"train.global_batch_size={train.global_batch_size} with up to {group} completions of "
            f"a problem: {why}, so they must share a batch; set train.global_batch_size to at "
            f"least {group}, or keep "
            "fewer (curate.steps)"
        )
    if known:
        _check_gradient(curate, train, objective, group)
    _check_adapter(recipe, train)


def _check_gradient(
    curate: CurateConfig, train: TrainConfig, objective: Objective, group: int
) -> None:
    """Refuse rows of which none can have a weight, whatever the completions are.

    `group`: completions of a problem at most.
    """
    positives = any(isinstance(step, PositivesRule) for step in curate.steps)
    size = 2 if group > 1 else 1
    rewards = np.array([1, 1, 1, 1] if positives else [1, -1, -1, 1], dtype=np.float32)
    if any_weight(objective, rewards - (train.baseline or 0.0), np.arange(4) // size):
        return
    why = "the rule `positives` in curate.steps" if positives else "one completion of a problem"
    raise ConfigError(
        f"objective {train.objective} with {why}: it compares right completions of a problem with "
        "wrong ones, so no gradient would flow. "
        + ("Leave the rule out" if positives else "Set generate.n, or what is kept, to 2 or more")
        + ", or take another objective"
    )


def _check_sampling(recipe: Recipe, train: TrainConfig, objective: Objective) -> None:
    """Refuse to draw what training would refuse: see `topr.records.distribution`."""
    drawn = distribution(recipe.generate.model_dump(include={"temperature", "top_p", "top_k"}))
    if drawn.greedy and objective.uses.ratio:
        raise ConfigError(
            f"generate.temperature=0 with objective {train.objective}: nothing is sampled, so "
            "there is no log mu, and training would leave every completion out. Set a temperature "
            "above 0 (evaluate.greedy measures greedy answers)"
        )
    if train.behavior_logprobs == "sampler" and not drawn.scored:
        what = "temperature=0" if drawn.greedy else ", ".join(drawn.changes)
        raise ConfigError(
            f"generate.{what} with train.behavior_logprobs=sampler: recorded log-probabilities "
            "will be those of a part of the vocabulary, and training refuses them. Set "
            "train.behavior_logprobs=recompute, or draw from the whole vocabulary"
        )


def _check_baseline(
    recipe: Recipe, curate: CurateConfig, train: TrainConfig, objective: Objective
) -> None:
    """Refuse a baseline that rewards of +1 and -1 leave no room for."""
    if not _signed(recipe):
        if train.effective_positive_share is not None and isinstance(
            recipe.task, ReasoningGymConfig
        ):
            raise ConfigError(
                f"train.effective_positive_share={train.effective_positive_share} needs rewards of "
                "+1 and -1, and task.reward=linear gives others: set train.baseline, or "
                "task.reward=threshold"
            )
        return
    c, role = train.baseline, objective.uses.baseline
    validate_baseline(c, objective, "train.baseline")
    none_wrong = c == -1.0 or train.effective_positive_share == 1.0
    if none_wrong and role is BaselineRole.THRESHOLD:
        raise ConfigError(
            f"train.baseline=-1 with objective {train.objective}: every completion counts as "
            "right, there is no pair, and no gradient would flow; leave baseline out"
        )
    positives = any(isinstance(step, PositivesRule) for step in curate.steps)
    share = train.effective_positive_share
    if positives and (share is not None or role is BaselineRole.THRESHOLD):
        what = f"train.effective_positive_share={share}" if share else f"objective {objective}"
        raise ConfigError(
            f"{what} with the rule `positives` in curate.steps: there would be no negatives to "
            "weigh against; leave one of the two out"
        )


def _signed(recipe: Recipe) -> bool:
    """Whether all rewards are +1 and -1: a function of the user's own gives what it likes."""
    task = recipe.task
    if isinstance(task, ReasoningGymConfig):
        return task.reward == "threshold"
    return not isinstance(task, JsonlConfig) or task.grader in GRADERS


def _check_adapter(recipe: Recipe, train: TrainConfig) -> None:
    lora, drawn = train.lora, recipe.generate
    if lora is None:
        return
    if lora.quantize is not None:
        check_quantization(recipe.model, lora.quantize)
    engine = drawn.ray.engine if drawn.engine == "ray" else drawn.engine
    if not lora.merge and engine != "transformers":
        raise ConfigError(
            f"train.lora.merge=false with generate.engine={drawn.engine}: {engine} is given a "
            "whole model, and the evaluation would find an adapter alone; set "
            "train.lora.merge=true (the adapter is kept next to it), or "
            "generate.engine=transformers"
        )


def own_base(recipe: Recipe) -> ArithmeticConfig:
    """Return the task whose base model `model.path: builtin` is.

    Raises:
        ConfigError: the recipe's task makes no model.

    """
    if isinstance(recipe.task, ArithmeticConfig):
        return recipe.task
    raise ConfigError(
        f"model.path is {BUILTIN!r}, but task {recipe.task.name!r} makes no model of its own; "
        "set model.path to a directory or a hub name"
    )


def _check_verifier(recipe: Recipe) -> None:
    """Refuse now what the verifier's run would be refused for when the generator is trained."""
    inner = verifier_recipe(recipe, candidates="", test_candidates="", generator="")
    check_recipe(inner)
    task = inner.task
    assert isinstance(task, VerifierConfig)  # noqa: S101 - verifier_recipe makes one
    if inner.loop.keep == "best" and not task.validation_problems:
        raise ConfigError(
            "verifier.loop.keep=best chooses an iteration on validation questions, and there are "
            "none: set verifier.task.validation_problems, or verifier.loop.keep=last"
        )
    if inner.model.path != BUILTIN:
        identity(plain_model(inner.model))
    elif not isinstance(recipe.task, ArithmeticConfig):
        raise ConfigError(
            f"verifier.model.path is {BUILTIN!r}, which checks solutions of the arithmetic task, "
            f"but the task is {recipe.task.name!r}: set it to a directory or a hub name"
        )
