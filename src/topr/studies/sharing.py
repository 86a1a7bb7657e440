"""What cells of a study share: evaluation and first rollouts of one starting model, made once.

A cell's run makes the stages of any run. It finds these done under the fingerprints that it would
give them itself, since they are there as links to the files of the one job that made them. Not
here: which job that is, and who waits for it (`topr.studies.run`).
"""

import os
import shutil
from pathlib import Path

from topr import hub
from topr.config import Recipe, VerifierConfig
from topr.progress import Silent
from topr.runs.directory import lock_run_directory
from topr.runs.preparation import decide_prompt, quotas
from topr.stages.common import data_fingerprint, fingerprint, grading_version
from topr.store import atomic_path
from topr.store.lock import LOCK_FILE

SHARED = ("iteration-00", "iteration-01")
"""Where the stages lie that are shared, in the run's directory."""


def draws_fingerprint(recipe: Recipe) -> str:
    """Return a hash of what the first iteration's rollouts and the base's evaluation depend on, as
    far as the recipe says. Recipes with the same one may share them.

    Raises:
        ConfigError: reasoning_gym is not installed.

    """
    task, sources = recipe.task, []
    if isinstance(task, VerifierConfig):  # what its candidates are counts, not where they lie
        places = (place for place in (task.rollouts, task.test_rollouts) if place is not None)
        sources = [data_fingerprint(hub.local(place)) for place in places]
    elif (version := grading_version(getattr(task, "grader", task.name))) is not None:
        sources = [version]
    sections = (task, recipe.model, recipe.generate, recipe.grade, recipe.evaluate)
    return fingerprint(*sections, *sources, *quotas(recipe, 1), recipe.seed)


def share_stages(recipe: Recipe, made: Path, directory: Path) -> None:
    """Put the stages that lie in `made` into the directory of a recipe's run.

    Files are linked, or copied where the file system has no links. What is there is left alone, and
    manifests come last, so that a call that was killed is made again.
    """
    recipe = decide_prompt(recipe, directory, Silent())
    with lock_run_directory(recipe, directory):
        files = [path for place in SHARED for path in (made / place).rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "manifest.json"):
            target = directory / path.relative_to(made)
            if path.name == LOCK_FILE or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                with atomic_path(target, overwrite=False) as temporary:
                    shutil.copy2(path, temporary)
