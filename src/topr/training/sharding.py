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
    named = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    launched = any(os.environ.get(name, "false").lower() == "true" for name in named)
    return bool(args.fsdp or args.deepspeed) or launched


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
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if state.distributed_type == DistributedType.MULTI_CPU and (args.fsdp or launched):
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
            f"accelerate set up {accelerator.distributed_type.value} with "
            f"{accelerator.num_processes} processes instead; start several processes (torchrun, "
            "accelerate launch), and with FSDP choose version 2"
        )
