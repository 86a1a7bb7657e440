"""Which models of a run stay on disk, and how the weights of others go: `loop.keep_models`.

Not here: when an iteration is over (`topr.runs.loop`), and checkpoints, which a training removes.
"""

from dataclasses import replace
from pathlib import Path

from topr.config import Recipe
from topr.models.files import REMOVED_FILE, fingerprint
from topr.stages.train import SNAPSHOTS
from topr.store import read_manifest, write_json_atomic, write_manifest

WEIGHTS = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "adapter_model.safetensors",
)  # fmt: skip
"""Names of the files that trainings write weights into. Nothing else is deleted."""


def needed_iterations(recipe: Recipe, iteration: int, best: int) -> set[int]:
    """Return the iterations whose weights stay when one has been evaluated; 0 is the base.

    Those are the run's result and, while iterations follow, the newest model, which writes the next
    rollouts. Where log mu is recomputed, so are the models that wrote the rest of the window: the
    rollouts of iteration i are written by the model of iteration i - 1.

    Args:
        recipe: of the run; `loop.keep_models` is not `all`.
        iteration: that was evaluated.
        best: the best iteration so far, where the best one is kept.

    """
    result = best if recipe.loop.keep_models == "best" else iteration
    if iteration == recipe.iterations:
        return {result}
    window = recipe.loop.window or recipe.iterations
    recomputed = recipe.train.behavior_logprobs == "recompute"
    oldest = iteration + 1 - window if recomputed else iteration
    return {result, *range(max(0, oldest), iteration + 1)}


def remove_weights(folder: Path, why: str, *, snapshots_only: bool = False) -> int:
    """Delete the weights that a training wrote into an iteration's or a comparison's directory.

    Configs and tokenizers stay, with a note that has the fingerprint of the weights, so that a
    resumed run knows which they were; the training's manifest says that they are gone.

    Args:
        folder: with `model/`, `snapshots/` and `training/`.
        why: the setting that wants it.
        snapshots_only: leave `model/` as it is.

    Returns:
        How many bytes were deleted.

    """
    snapshots = sorted((folder / SNAPSHOTS).glob("step-*"))
    freed = sum(_remove(snapshot, why) for snapshot in snapshots)
    if snapshots_only:
        return freed
    freed += _remove(folder / "model", why)
    manifest = read_manifest(folder / "training")
    if manifest is not None and "weights_removed" not in manifest.details:
        details = manifest.details | {"weights_removed": why}
        write_manifest(folder / "training", replace(manifest, details=details))
    return freed


def _remove(directory: Path, why: str) -> int:
    files = [path for name in WEIGHTS for path in directory.glob(name)]
    if not files:
        return 0
    if not (directory / REMOVED_FILE).is_file():  # else a call was killed midway
        note = {"fingerprint": fingerprint(directory), "why": why}
        write_json_atomic(directory / REMOVED_FILE, note)
    freed = 0
    for path in files:
        freed += path.stat().st_size
        path.unlink()
    return freed
