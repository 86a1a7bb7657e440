"""A run's or a study's directory: locked by one process for one recipe, never overwritten."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from topr.config import dump_recipe
from topr.config.base import Section, present_name
from topr.config.training import STORED
from topr.errors import RunDirectoryError
from topr.runs.environment import environment
from topr.store import locked, write_json_atomic, write_text_atomic
from topr.store.atomic import TEMPORARY_SUFFIX
from topr.store.lock import LOCK_FILE
from topr.store.manifest import STARTED_FILE
from topr.tokenization.prompts import TODAY

_NO_WORK = frozenset({"recipe.yaml", "environment.json", LOCK_FILE, STARTED_FILE})
"""What a run writes before it has made anything."""


@contextmanager
def lock_run_directory(recipe: Section, directory: Path) -> Iterator[None]:
    """Hold a directory for this process and this recipe or study.

    A recipe is frozen once something was made by it: one that failed before that is replaced.
    """
    found = directory / "recipe.yaml"
    _refuse_no_run(directory)
    with locked(directory):
        if not holds_run(recipe, directory):
            for started in directory.rglob(STARTED_FILE):  # by a run that then made nothing
                started.unlink()
            write_text_atomic(found, dump_recipe(recipe))
            told = {"chat_template_date": f"{TODAY:%Y-%m-%d}"}
            write_json_atomic(directory / "environment.json", environment() | told)
        yield


def holds_run(recipe: Section, directory: Path) -> bool:
    """Return whether a directory holds a run of this recipe that would resume. Nothing is written.

    Raises:
        RunDirectoryError: it holds something else, or the run of another recipe.

    """
    _refuse_no_run(directory)
    found = directory / "recipe.yaml"
    if not found.is_file() or not _has_work(directory):
        return False
    _refuse_other_recipe(recipe, found)
    return True


def _refuse_no_run(directory: Path) -> None:
    """Refuse a file, and a directory with anything but a run in it."""
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file: give a directory for the run")
    if directory.is_dir() and not (directory / "recipe.yaml").is_file():
        # A claim that was killed may have left the lock and a temporary recipe.
        names = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
        if names:
            raise RunDirectoryError(
                f"{directory} is not empty ({', '.join(names[:5])}) and holds no run: give a new "
                "directory"
            )


def recipe_at_work(directory: Path) -> dict[str, Any] | None:
    """Return the values of the recipe by which something was made there; None: nothing was."""
    path = directory / "recipe.yaml"
    if not path.is_file() or not _has_work(directory):
        return None
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def _has_work(directory: Path) -> bool:
    """Whether a run has left anything there that it would have to do again."""
    return any(
        path.is_file() and path.name not in _NO_WORK and path.suffix != TEMPORARY_SUFFIX
        for path in directory.rglob("*")
    )


def _refuse_other_recipe(recipe: Section, path: Path) -> None:
    there, here = yaml.safe_load(path.read_text(encoding="utf-8")), recipe.fixed()
    with suppress(ValidationError):  # a key that has come since has its default there
        there = type(recipe).model_validate(there, context=STORED).fixed()
    differing = [
        f"{present_name(key)} ({old!r} there, {new!r} now)"
        for key, (old, new) in _differences(there, here).items()
        if not any(fnmatch(key, shown) for shown in recipe.SHOWN)
    ]
    if differing:
        raise RunDirectoryError(
            f"{path.parent} holds a run of another recipe; it differs in "
            f"{'; '.join(differing[:5])}. Nothing is overwritten: give another output directory, "
            "or the same recipe to resume"
        )


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {} if a == b else {prefix: (a, b)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*a, *(k for k in b if k not in a)]:
        found |= _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    return found
