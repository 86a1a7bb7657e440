"""Where the run in a directory continues, in words, by what lies on disk. Nothing is changed."""

import json
from collections.abc import Iterator
from pathlib import Path

from topr.runs.directory import iterations, recipe_at_work
from topr.stages.train_files import last_step
from topr.store.manifest import STARTED_FILE

_DOING = {
    "generate": "generating", "grade": "grading", "curate": "curation", "train": "training",
    "evaluate": "evaluation", "verify": "verification",
}  # fmt: skip


def continues_from(directory: Path) -> str | None:
    """Return the first line of a run that is started again; None where nothing was made yet.

    `continues from runs/mine: iteration 2, training, step 40 of 100`
    """
    if recipe_at_work(directory) is None:
        return None
    begun, done = (dict(_stages(directory, name)) for name in (STARTED_FILE, "manifest.json"))
    if not begun and (directory / "summary.json").is_file():
        return f"continues from {directory}, which has a summary: only what is missing is computed"
    if not (begun or done):
        return f"continues from {directory}"
    stages = begun or done
    newest = max(stages, key=lambda path: path.stat().st_mtime_ns)
    doing = _DOING[stages[newest]]
    where = [_place(newest, directory), doing if begun else f"after {doing}"]
    if begun and (step := last_step(newest.parent)):
        where.append(step)
    return f"continues from {directory}: {', '.join(where)}"


def _stages(directory: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a name that are a stage's, with the stage; other tools' have none."""
    places = [
        *iterations(directory),
        *(directory / p for p in ("compare", "candidates", "verifier")),
    ]
    for path in (path for place in places for path in place.glob(f"**/{name}")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        stage = found.get("stage") if isinstance(found, dict) else None
        if stage in _DOING:
            yield path, stage


def _place(path: Path, directory: Path) -> str:
    """Return whose stage a file belongs to: an iteration's, a comparison's, the verifier's."""
    first, second = path.relative_to(directory).parts[:2]
    name, _, number = first.partition("-")
    if name == "iteration":
        return f"iteration {int(number)}" if int(number) else "the starting model"
    return f"comparison {second}" if first == "compare" else f"the {first}"
