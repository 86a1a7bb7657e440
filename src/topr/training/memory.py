"""What is done about memory: fewer tokens at a time where it runs out in a forward or backward
pass, and freed memory given back.

A budget of tokens changes memory and time, never a number.
"""

import ctypes
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainerCallback

from topr.errors import TrainingError
from topr.training.batches import Row
from topr.training.logprobs import Forward

logger = logging.getLogger(__name__)


TRIM_SECONDS = 10.0
"""Between calls. The next passes take the memory anew, page by page: a quarter of a short step."""


class TrimMemory(TrainerCallback):
    """Gives freed memory back to the system, now and then: on Linux with glibc, of CPU tensors.

    Activations differ in size from step to step, and glibc keeps what they leave between others:
    the process of a model of 0.5 billion parameters, whose steps take longer than `TRIM_SECONDS`,
    grew from 13 to 19 GB in six steps.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Do it where the last time was long ago."""
        if time.monotonic() - self._last < TRIM_SECONDS or sys.platform != "linux":
            return
        self._last = time.monotonic()
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def ran_out(error: RuntimeError) -> bool:
    """Say whether it was memory, on any device, that an error is about."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def halved(
    forward: Forward, rows: Sequence[Row], tokens: int | None, error: RuntimeError, *, sharded: bool
) -> int:
    """Return half of the tokens of the largest forward pass over some rows, for which there was no
    memory.

    Args:
        forward: how the model is run.
        rows: of the passes.
        tokens: of a pass at most, so far; None: all rows were in one.
        error: what was raised.
        sharded: whether weights are, so that other processes are in the middle of the pass.

    Raises:
        TrainingError: there is nothing to halve, or weights are sharded.

    """
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    parts = forward.split(rows, tokens)
    size = max(forward.batch([rows[k] for k in part]).input_ids.numel() for part in parts)
    if size <= longest:
        raise TrainingError(
            f"memory ran out on a single sequence of {longest} tokens: {error}. Set "
            "max_length or bf16, in training gradient_checkpointing, or train an adapter"
        ) from error
    if sharded:
        raise TrainingError(
            f"memory ran out in a forward pass of {size} tokens, and the other processes are "
            f"in the middle of it: {error}. Set micro_batch_tokens to {size // 2} or less"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "memory ran out in a forward pass of %d tokens: it is done again, with %d at most from "
        "here on. To begin with that, set micro_batch_tokens", size, size // 2,
    )  # fmt: skip
    return size // 2
