"""What a training leaves on disk beside its log: models, whole or not at all, and checkpoints."""

import logging
import shutil
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from topr.config import ModelConfig, TrainConfig
from topr.models import load_model
from topr.stages.callbacks import COMPLETE
from topr.training import TOPRTrainer

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Where an adapter lies that was merged, beside `model/`; a snapshot's is `adapter-step-N`."""


def save_model(trainer: TOPRTrainer, folder: Path, config: TrainConfig) -> None:
    """Write the model into a folder that is there whole or not at all.

    All processes take part, for each may have a piece of the weights; the first one writes. Where
    an adapter is to be merged, it is written beside, and then added to the model it was put on.
    """
    processes = trainer.processes
    merge = config.lora is not None and config.lora.merge
    target = folder.with_name(ADAPTER if folder.name == "model" else f"{ADAPTER}-{folder.name}")
    trained = _temporary(target if merge else folder)
    processes.from_first(lambda: shutil.rmtree(trained, ignore_errors=True))
    trainer.save_model(str(trained))
    processes.wait()

    def put() -> None:
        (trained / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use
        _put(trained, target if merge else folder)
        if merge:
            whole = ModelConfig(path=str(target), dtype=config.dtype, device="cpu")
            load_model(whole).save_pretrained(_temporary(folder))
            trainer.tokenizer.save_pretrained(_temporary(folder))
            _put(_temporary(folder), folder)

    processes.from_first(put)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _put(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed before its manifest
    temporary.replace(folder)


def drop_checkpoints(work: Path) -> None:
    """Remove the checkpoints of a training that is done."""
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _newest(work: Path) -> str | None:
    if not work.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(work))  # type: ignore[no-untyped-call]
    return found


def last_complete(work: Path) -> Path | None:
    """Return the newest whole checkpoint; a broken one is removed."""
    while (last := _newest(work)) is not None:
        if (Path(last) / COMPLETE).is_file():
            return Path(last)
        logger.warning("%s is not complete (its writer was killed): removed", last)
        shutil.rmtree(last)
    return None
