"""The last good weights of a training, in one file next to its checkpoints.

Only what is trained is in it: an adapter's weights are small, a whole model's are as large as it
is. When weights are good is for `topr.training.watch` to say.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from topr.errors import TrainingError
from topr.store import atomic_path
from topr.training.distributed import DistributedContext

LAST_GOOD = "last-good.safetensors"


class LastGood:
    """Writes trained weights to a file, and puts them back. Each process has them whole."""

    def __init__(self, directory: Path, distributed: DistributedContext) -> None:
        self._path = directory / LAST_GOOD
        self._distributed = distributed
        self._step: int | None = None

    @property
    def step(self) -> int | None:
        """Optimizer steps that the weights in the file had taken; None: there is no file."""
        if self._step is None and self._path.is_file():
            with safe_open(self._path, framework="pt") as file:
                self._step = int(file.metadata()["step"])
        return self._step

    def keep(self, model: nn.Module, step: int) -> None:
        """Replace the file by the weights as they are."""
        if self._distributed.is_rank0:
            weights = {name: p.detach().contiguous() for name, p in _trained(model).items()}
            with atomic_path(self._path, overwrite=True) as path:
                save_file(weights, path, metadata={"step": str(step)})
        self._distributed.barrier()
        self._step = step

    def restore(self, model: nn.Module) -> None:
        """Put the weights of the file into the model.

        Raises:
            TrainingError: there is no file, or it is of another model.

        """
        self._distributed.run_on_rank0(lambda: self._load(model))
        self._distributed.broadcast_weights(model)

    @torch.no_grad()
    def _load(self, model: nn.Module) -> None:
        trained = _trained(model)
        kept = load_file(self._path) if self._path.is_file() else {}
        if kept.keys() != trained.keys():
            raise TrainingError(
                f"{self._path} should hold the last good weights, {len(trained)} tensors, and "
                f"holds {len(kept)}: they cannot be put back. Resume from a "
                "checkpoint in the same directory"
            )
        for name, parameter in trained.items():
            parameter.copy_(kept[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
