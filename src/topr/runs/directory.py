"""A run's or a study's directory: locked by one process for one recipe, never overwritten."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from topr.config import dump_recipe
from topr.config.base import Section
from topr.errors import RunDirectoryError
from topr.evaluation.results import RESULT_FILE
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


def evaluation_file(path: Path) -> Path:
    """Return the evaluation that a path names: a file, what lies in a directory, or of a run that
    of the model that was kept, else of the newest one that was measured.

    Raises:
        RunDirectoryError: the directory holds none.

    """
    if not path.is_dir():
        return path
    kept = kept_of(path).get("iteration")
    measured = path if kept is None else path / f"iteration-{kept:02d}"
    newest = [folder / RESULT_FILE for folder in reversed(iterations(path))]
    places = [path / RESULT_FILE, measured / RESULT_FILE, *newest]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RunDirectoryError(
            f"{path} holds no {RESULT_FILE}: give what `topr run` or `topr eval` wrote"
        )
    return found


def kept_of(directory: Path) -> dict[str, Any]:
    """Return what `summary.json` says of the model that is a run's result; nothing until then."""
    summary = directory / "summary.json"
    if not summary.is_file():
        return {}
    return json.loads(summary.read_text(encoding="utf-8")).get("kept") or {}


def trainings(directory: Path) -> list[Path]:
    """Return the folders in which a run trained, sorted; a verifier's run has its own."""
    folders = [*iterations(directory), *directory.glob("compare/*")]
    return sorted(folder for folder in folders if (folder / "training").exists())


def iterations(directory: Path) -> list[Path]:
    """Return the folders of a run's iterations, in order; no copy of one that somebody made."""
    found = ((re.fullmatch(r"iteration-(\d{2,})", p.name), p) for p in directory.glob("*"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _has_work(directory: Path) -> bool:
    """Whether a run has left anything there that it would have to do again."""
    return any(
        path.is_file() and path.name not in _NO_WORK and path.suffix != TEMPORARY_SUFFIX
        for path in directory.rglob("*")
    )


def _refuse_other_recipe(recipe: Section, path: Path) -> None:
    there = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        stored = type(recipe).model_validate(there)
    except ValidationError:  # of a version with other keys
        old, new = _flat(there), _flat(recipe.model_dump(mode="json"))
        told = old, new
    else:  # without defaults, which are told all the same
        old, new = _flat(stored.fixed()), _flat(recipe.fixed())
        told = _flat(there) | old, _flat(recipe.model_dump(mode="json")) | new
    differing = [
        f"{key} ({told[0].get(key)!r} there, {told[1].get(key)!r} now)"
        for key in old | new
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise RunDirectoryError(
            f"{path.parent} holds a run of another recipe; it differs in "
            f"{'; '.join(differing[:5])}. Nothing is overwritten: give another output directory, "
            "the same recipe to resume, or --overwrite to move what is there aside"
        )


def _flat(values: Any, place: str = "") -> dict[str, Any]:
    """Return nested values by their dotted keys."""
    if not isinstance(values, dict) or not values:
        return {place: values}
    flat: dict[str, Any] = {}
    for key, each in values.items():
        flat |= _flat(each, f"{place}.{key}" if place else key)
    return flat
