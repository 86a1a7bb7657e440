"""Where the run in a directory continues, in words, by what lies on disk. Nothing is changed."""

import json
from pathlib import Path

from topr.runs.directory import recipe_at_work
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
    if (directory / "summary.json").is_file():
        return f"{directory} is finished: nothing is computed again"
    begun, done = (_newest(directory, name) for name in (STARTED_FILE, "manifest.json"))
    found = begun or done
    if found is None:
        return f"continues from {directory}"
    stage = json.loads(found.read_text(encoding="utf-8"))["stage"]
    doing = _DOING.get(stage, stage)
    where = [_place(found, directory), doing if begun else f"after {doing}"]
    if begun and (step := last_step(begun.parent)):
        where.append(step)
    return f"continues from {directory}: {', '.join(where)}"


def _newest(directory: Path, name: str) -> Path | None:
    return max(directory.rglob(name), key=lambda path: path.stat().st_mtime_ns, default=None)


def _place(path: Path, directory: Path) -> str:
    """Return whose stage a file belongs to: an iteration's, a comparison's, the verifier's."""
    parts = path.relative_to(directory).parts
    first = parts[0]
    name, _, number = first.partition("-")
    if name == "iteration":
        return f"iteration {int(number)}" if int(number) else "the starting model"
    return f"comparison {parts[1]}" if first == "compare" else f"the {first}"
