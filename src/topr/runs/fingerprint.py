"""What tells the first iteration of one run from that of another."""

from pathlib import Path
from typing import Any

from topr import hub
from topr.config import ReasoningGymConfig, Recipe, VerifierConfig
from topr.runs.preparation import quotas
from topr.stages.common import content, fingerprint


def first_fingerprint(recipe: Recipe) -> str:
    """Return a hash of what the first iteration's rollouts and the base's evaluation depend on."""
    task = recipe.task
    if isinstance(task, VerifierConfig):  # what its candidates are counts, not where they lie
        warmup = task.warmup.model_copy(update={"generator": None})
        update = {"rollouts": None, "test_rollouts": None, "warmup": warmup}
        task = task.model_copy(update=update)
    sections = (task, recipe.model, recipe.generate, recipe.grade, recipe.evaluate)
    return fingerprint(*sections, *source_mark(recipe), *quotas(recipe, 1), recipe.seed)


def source_mark(recipe: Recipe) -> list[Any]:
    """Return what a task's problems depend on beside its section: the candidates of a verifier, the
    version of reasoning_gym; nothing for another task.

    Raises:
        ConfigError: reasoning_gym is not installed.

    """
    task = recipe.task
    if isinstance(task, ReasoningGymConfig):
        from topr.grading.gym_datasets import version

        return [version()]
    if not isinstance(task, VerifierConfig):
        return []
    places = [place for place in (task.rollouts, task.test_rollouts) if place is not None]
    return [_of_candidates(hub.local(place)) for place in places]


def _of_candidates(path: Path) -> list[Any]:
    commit = hub.commit_of(path)
    if commit is not None and path.is_file():  # Downloaded again, the file has another time.
        return [commit, path.name]
    return content(path)[1:]
