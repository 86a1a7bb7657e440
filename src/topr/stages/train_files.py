"""The files of a training other than its log: models, written atomically, and checkpoints."""

import json
import logging
import re
import shutil
from pathlib import Path

from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from topr.config import ModelConfig, TrainConfig
from topr.models.adapters import require_same, short_logits
from topr.models.loading import load_model
from topr.models.wrappers import without_autocast
from topr.stages.callbacks import COMPLETE
from topr.training import TOPRTrainer
from topr.training.last_good import LAST_GOOD

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Where an adapter lies that was merged, next to `model/`; a snapshot's is `adapter-step-N`."""


def save_model(trainer: TOPRTrainer, folder: Path, config: TrainConfig) -> None:
    """Write the model into a folder, atomically.

    All processes take part, for each may have a piece of the weights; the first one writes. Where
    an adapter is to be merged, it is written to its own folder, and then added to the model that it
    was put on.
    """
    distributed = trainer.distributed
    merge = config.lora is not None and config.lora.merge
    target = folder.with_name(ADAPTER if folder.name == "model" else f"{ADAPTER}-{folder.name}")
    trained = _temporary(target if merge else folder)
    distributed.run_on_rank0(lambda: shutil.rmtree(trained, ignore_errors=True))
    expected = _trained_logits(trainer, config) if merge and distributed.is_rank0 else None
    trainer.save_model(str(trained))
    distributed.barrier()

    def put() -> None:
        (trained / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use
        _put(trained, target if merge else folder)
        if merge:
            _write_merged(target, _temporary(folder), config, expected)
            trainer.tokenizer.save_pretrained(_temporary(folder))
            _put(_temporary(folder), folder)

    distributed.run_on_rank0(put)


def _trained_logits(trainer: TOPRTrainer, config: TrainConfig) -> Tensor | None:
    """Return what the merged model must give; None where this process has no such model: a piece of
    it, one whose frozen weights have fewer bits, or one that would be compiled once more.
    """
    quantized = config.lora is not None and config.lora.quantize is not None
    if trainer.sharded or quantized or trainer.args.torch_compile:
        return None
    model = trainer.accelerator.unwrap_model(trainer.model)
    with without_autocast(model):
        return short_logits(model)


def _write_merged(
    adapter: Path, folder: Path, config: TrainConfig, expected: Tensor | None
) -> None:
    """Write the model that an adapter makes, and see that it is the one that was trained.

    Raises:
        ModelError: it is not.

    """
    model = load_model(ModelConfig(path=str(adapter), dtype=config.dtype, device="cpu"))
    merged, dtype = short_logits(model), model.dtype
    if expected is not None:
        require_same(expected, merged, dtype, "the model as trained, and with its adapter added in")
    model.save_pretrained(folder)
    del model  # the next is as large
    again = load_model(ModelConfig(path=str(folder), dtype=config.dtype, device="cpu"))
    require_same(
        merged, short_logits(again), dtype, "the merged model, and what loads of its files"
    )


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _put(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed before its manifest
    temporary.replace(folder)


def drop_checkpoints(work: Path) -> None:
    """Remove the checkpoints of a training that is done, and its good weights."""
    for checkpoint in _checkpoints(work):
        shutil.rmtree(checkpoint)
    (work / LAST_GOOD).unlink(missing_ok=True)


def _checkpoints(work: Path) -> list[Path]:
    """Return the checkpoints, the oldest first: no copy of one that somebody named otherwise."""
    found = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in work.glob("*"))
    steps = {int(match[1]): path for match, path in found if match and path.is_dir()}
    return [steps[step] for step in sorted(steps)]


def _newest(work: Path) -> str | None:
    if not work.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(work))  # type: ignore[no-untyped-call]
    return found


def last_step(work: Path) -> str | None:
    """Return where a training continues, as "step 40 of 100"; None: from its beginning."""
    steps = [path for path in _checkpoints(work) if (path / COMPLETE).is_file()]
    if not steps:
        return None
    state = json.loads((steps[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    return f"step {state['global_step']} of {state['max_steps']}"


def last_complete(work: Path) -> Path | None:
    """Return the newest whole checkpoint; a broken one is removed."""
    while (last := _newest(work)) is not None:
        if (Path(last) / COMPLETE).is_file():
            return Path(last)
        logger.warning("%s is not complete (its writer was killed): removed", last)
        shutil.rmtree(last)
    return None
