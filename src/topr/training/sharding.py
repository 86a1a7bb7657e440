"""Weights sharded over processes by FSDP2: what accelerate leaves to do.

Not here: the passes through a sharded model (`topr.training.passes`).
"""

import os
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from topr.errors import TrainingError
from topr.training.arguments import TOPRConfig


def shards_weights(args: TOPRConfig) -> bool:
    """Whether arguments or launcher ask for weights that no process has whole."""
    return _wants_fsdp(args) or bool(args.deepspeed) or _launched_with("DEEPSPEED")


def _wants_fsdp(args: TOPRConfig) -> bool:
    return bool(args.fsdp) or _launched_with("FSDP")


def _launched_with(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def refuse_sharding_alone(args: TOPRConfig) -> None:
    """Refuse weights that FSDP is to shard over one process.

    Before accelerate knows: it would leave its wish for FSDP to all later trainings of the process.
    """
    if args.world_size == 1 and _wants_fsdp(args):
        raise TrainingError(
            "sharded weights are asked for (fsdp, or the launcher's configuration) over one "
            "process: start several (torchrun, accelerate launch), or leave it out"
        )


def checkpoint_in_pieces(args: TOPRConfig) -> None:
    """Write checkpoints of sharded weights in pieces, which any number of processes reads.

    A whole one, the default of transformers, is written but cannot be loaded into FSDP2 again.
    """
    if args.fsdp_plugin_args is not None:
        args.fsdp_plugin_args["state_dict_type"] = "SHARDED_STATE_DICT"


def shard_on_cpu(accelerator: Accelerator, args: TOPRConfig) -> None:
    """Let accelerate shard a model on CPUs as it does on GPUs, where FSDP is asked for.

    On CPUs it passes the wish over, and trains on whole weights without a word.
    """
    state: Any = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and _wants_fsdp(args):
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def refuse_unfit_sharding(accelerator: Accelerator, args: TOPRConfig) -> None:
    """Refuse to train other than sharded where that was asked for, or to fail in the first step."""
    if accelerator.is_fsdp2 and args.optim == "adafactor":
        raise TrainingError(
            "optim=adafactor, the default, does not work on weights that FSDP2 shards: that of "
            "transformers mixes whole and sharded tensors. Set optim=adamw_torch and a learning "
            "rate for it (train.optim, train.learning_rate), or train on whole weights"
        )
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if shards_weights(args) and not (accelerator.is_fsdp2 or deepspeed):
        raise TrainingError(
            "sharded weights are asked for (fsdp, deepspeed or the launcher's configuration), and "
            f"accelerate set up {accelerator.distributed_type.value} instead; with FSDP, choose "
            "version 2"
        )
