"""From the arguments and a model to what a trainer runs with; what cannot work is refused here,
before any compute is spent.
"""

import json
import logging

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from topr.errors import ConfigError, TrainingError
from topr.objectives import Objective, Taper, make_objective, resolve_baseline
from topr.training.arguments import TOPRConfig
from topr.training.compiling import refuse_unfit_compiling
from topr.training.data import Composition
from topr.training.step import Skip

logger = logging.getLogger(__name__)


def objective_of(args: TOPRConfig) -> Objective:
    """Return the objective that the arguments name."""
    arguments = args.objective_args or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return make_objective(args.objective, **arguments)


def skip_of(args: TOPRConfig, objective: Objective) -> Skip:
    """Return which negatives are spared their backward pass."""
    rule = args.skip_negatives
    if isinstance(rule, str) and rule != "sample":
        raise ConfigError(f"skip_negatives={rule!r}: expected a number from 0 to 1, or 'sample'")
    if rule is not None and not isinstance(objective, Taper):
        raise ConfigError(
            f"skip_negatives={rule} with objective {args.objective!r}: only a taper says which "
            "negatives can be spared; leave the key out, or train with topr, tis, is or taper"
        )
    return Skip(rule=rule, seed=args.seed)


def refuse_unfit(args: TOPRConfig, model: nn.Module) -> None:
    """Refuse what would train wrongly without a word."""
    if args.parallelism_config is not None:
        raise TrainingError(
            "parallelism_config asks for tensor, sequence or context parallelism, which splits "
            "single sequences or weights in a way that the forward pass here does not know; shard "
            "weights with fsdp instead"
        )
    refuse_unfit_compiling(args)
    if args.neftune_noise_alpha is not None:
        raise ConfigError(
            f"neftune_noise_alpha={args.neftune_noise_alpha} adds noise to the embeddings, and the "
            "ratio pi/mu needs the model as it samples: leave it out"
        )
    names = ("activation_checkpointing", "gradient_checkpointing")  # the second up to 5.22
    if any(getattr(args, name, False) for name in names) and not any(
        isinstance(module, GradientCheckpointingLayer) for module in model.modules()
    ):
        raise TrainingError(
            f"gradient checkpointing: {type(model).__name__} has no layers that are known to "
            "repeat; leave it out, or train an adapter, or set micro_batch_tokens"
        )
    if args.use_liger_kernel and args.device.type == "cpu":
        raise TrainingError("use_liger_kernel: Liger's kernels need a GPU, and this is a CPU")
    if args.n_gpu > 1:
        args._n_gpu = 1  # Else transformers would split each batch over all GPUs it sees.
        logger.warning("training uses the first of the visible GPUs only")
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if torch.float16 in trained:
        raise TrainingError(
            "the trained weights are float16, whose range small updates and gradients leave; load "
            "the model in float32 (and set bf16 for speed)"
        )
    if torch.bfloat16 in trained:
        logger.warning(
            "the trained weights are bfloat16: an update below 0.4 % of a weight is rounded away, "
            "which at small learning rates is nearly every update; train float32 weights with "
            "bf16 autocast instead"
        )


def baseline_of(args: TOPRConfig, composition: Composition) -> tuple[float, float | None]:
    """Return c and p~; p~ only where all rewards are +1 and -1, for which it is defined."""
    share = args.effective_positive_share
    if args.baseline is not None and share is not None:
        raise ConfigError(
            f"both baseline={args.baseline} and effective_positive_share={share} are set: each "
            "fixes the other, so set one"
        )
    if composition.signed:
        return resolve_baseline(composition.positive_share, args.baseline, share)
    if share is not None:
        raise ConfigError(
            f"effective_positive_share={share} needs rewards of +1 and -1, and these lie from "
            f"{composition.lowest:g} to {composition.highest:g}: set baseline instead"
        )
    return args.baseline or 0.0, None
