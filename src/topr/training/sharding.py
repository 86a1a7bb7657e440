"""Weights sharded over processes, by FSDP2 or DeepSpeed: what accelerate leaves to do.

Not here: the passes through a sharded model (`topr.training.passes`).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from topr.errors import TrainingError
from topr.training.arguments import TOPRConfig
from topr.training.distributed import DistributedContext

SAVED_WHOLE = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def shards_weights(args: TOPRConfig) -> bool:
    """Whether arguments or launcher ask for weights that no process has whole."""
    return _wants_fsdp(args) or bool(args.deepspeed) or _launched_with("DEEPSPEED")


def _wants_fsdp(args: TOPRConfig) -> bool:
    return bool(args.fsdp) or _launched_with("FSDP")


def _launched_with(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def validate_sharding_size(args: TOPRConfig) -> None:
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


def reads_weights(args: TOPRConfig) -> bool:
    """Whether this process reads the weights that are trained. Those that FSDP shards are read by
    the first process alone, and `broadcast_weights` gives the others their pieces.
    """
    return args.process_index == 0 or not _wants_fsdp(args)


def broadcast_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Give each process its pieces of the first one's weights. The others give none."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(weights), options=options)


def keep_unwrapped(
    model: nn.Module, accelerator: Accelerator, distributed: DistributedContext
) -> None:
    """Keep accelerate from wrapping a model that each process has whole.

    A wrapper would add up gradients after every micro-batch that went through it, wait for
    processes that have fewer, and hold a second copy of all gradients. `TOPRTrainer.training_step`
    adds them up once.
    """
    distributed.broadcast_weights(model)
    accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)


def shard_on_cpu(accelerator: Accelerator, args: TOPRConfig) -> None:
    """Let accelerate shard a model on CPUs as it does on GPUs, where FSDP is asked for.

    On CPUs it ignores FSDP, gives no warning, and trains on whole weights.
    """
    state: Any = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and _wants_fsdp(args):
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def validate_sharding(accelerator: Accelerator, args: TOPRConfig) -> None:
    """Refuse to train other than sharded where that was asked for, or to fail in the first step."""
    zero = stage_of_zero(accelerator)
    if zero and "optimizer" in _config_of_zero(accelerator).config:
        raise TrainingError(
            "DeepSpeed's configuration names an optimizer, and what was trained with is recorded "
            "from optim: leave it out there, and set train.optim and train.learning_rate"
        )
    if args.optim == "adafactor" and (accelerator.is_fsdp2 or zero):
        raise TrainingError(
            "optim=adafactor, the default, does not work on weights that FSDP2 or ZeRO shard: it "
            "looks at the rows and columns of whole matrices, and there are pieces. Set "
            "optim=adamw_torch and a learning rate for it (train.optim, train.learning_rate), or "
            "train on whole weights"
        )
    if zero == 3 and not _config_of_zero(accelerator).is_true(SAVED_WHOLE):
        raise TrainingError(
            f"DeepSpeed's configuration shards weights (stage 3), and without {SAVED_WHOLE} the "
            "trained model would not be written: set that to true"
        )
    if args.torch_compile and (accelerator.is_fsdp2 or zero):
        raise TrainingError(
            "torch_compile with sharded weights was never tried: leave one of the two out"
        )
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if shards_weights(args) and not (accelerator.is_fsdp2 or deepspeed):
        raise TrainingError(
            "sharded weights are asked for (fsdp, deepspeed or the launcher's configuration), and "
            f"accelerate set up {accelerator.distributed_type.value} instead; with FSDP, choose "
            "version 2"
        )


def stage_of_zero(accelerator: Accelerator) -> int:
    """Return what DeepSpeed shards: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing.

    0 as well where DeepSpeed does not run.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return int(_config_of_zero(accelerator).get_value("zero_optimization.stage", 0))


def _config_of_zero(accelerator: Accelerator) -> Any:
    return accelerator.state.deepspeed_plugin.hf_ds_config


@contextmanager
def gathered_parameter(parameter: Tensor) -> Iterator[Tensor]:
    """Give a weight whole for a while, also where each process has a piece of it.

    All processes take part.
    """
    if not hasattr(parameter, "ds_id"):  # ZeRO-3's
        yield (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield parameter.detach()
