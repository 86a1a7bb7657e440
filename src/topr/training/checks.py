"""From the arguments and a model to what a trainer runs with; what cannot work is refused here,
before any compute is spent.

`check_arguments` is all that arguments alone can tell, for whoever is about to spend hours on what
comes before training.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from topr.errors import ConfigError, TrainingError
from topr.objectives import (
    BaselineRole,
    Objective,
    ScoredBatch,
    make_objective,
    resolve_baseline,
)
from topr.training.arguments import TOPRConfig
from topr.training.compiling import validate_compiling
from topr.training.data import Composition
from topr.training.sharding import shards_weights, validate_sharding_size
from topr.training.step import BackwardSkipping

logger = logging.getLogger(__name__)

ROWS_TOGETHER = 1024
"""Rows whose weights are probed at a time: an objective may compare all pairs of them."""
MANY_STEPS = 10**6
WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
"""Schedules to which transformers hands no arguments."""
PROBES = (0.0, 0.1, -0.1)
"""log rho at which weights are probed: PPO and its kin clip beyond."""


def check_arguments(args: TOPRConfig) -> Objective:
    """Refuse what arguments alone show cannot work, here and on this machine.

    Raises:
        ToprError: the first such thing.

    """
    args.validate()
    objective = objective_of(args)
    skipping_of(args, objective)
    _check_baseline(args, objective)
    if args.parallelism_config is not None:  # the launcher's, since an argument is refused
        raise TrainingError(
            "parallelism_config asks for tensor, sequence or context parallelism, which splits "
            "single sequences or weights in a way that the forward pass here does not know; shard "
            "weights with fsdp instead"
        )
    validate_compiling(args)
    validate_sharding_size(args)
    if args.watch == "stop" and shards_weights(args):
        raise TrainingError(
            "watch=stop keeps the last good weights, and where weights are sharded no process has "
            "them whole: set watch=warn"
        )
    if args.device.type == "cpu":
        for name, why in _NEEDS_GPU.items():
            if getattr(args, name):
                raise TrainingError(f"{name}: {why}, and this is a CPU")
    _check_optimizer(args)
    _check_schedule(args)
    try:
        trackers = get_reporting_integration_callbacks(list(args.report_to or ()))  # type: ignore[no-untyped-call]
        for tracker in trackers:
            tracker()  # which looks for its package
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"report_to={args.report_to}: {error}") from error
    return objective


_NEEDS_GPU: Mapping[str, str] = {
    "use_liger_kernel": "Liger's kernels need a GPU",
    "fp16": "float16 autocast needs a GPU (bf16 works everywhere)",
}


def objective_of(args: TOPRConfig) -> Objective:
    """Return the objective that the arguments name."""
    assert not isinstance(args.objective_args, str)  # noqa: S101 - `validate` has parsed it
    if args.objective == "taper" and not args.objective_args:
        raise ConfigError(
            "objective=taper without objective_args: give its limits, positive and negative, or "
            "train with topr"
        )
    return make_objective(args.objective, **(args.objective_args or {}))


def skipping_of(args: TOPRConfig, objective: Objective) -> BackwardSkipping:
    """Return which negatives get no backward pass."""
    rule, taper = args.skip_negatives, objective.uses.taper
    if rule is None:
        return BackwardSkipping(rule=None, seed=args.seed)
    where = f"skip_negatives={rule} with objective {args.objective!r}"
    if taper is None:
        raise ConfigError(
            f"{where}: only a taper says which negatives need no backward pass; leave the key out, "
            "or train with topr, tis, is or taper"
        )
    low, high = taper
    never = low >= 1.0 if isinstance(rule, str) else low > rule
    if never:
        raise ConfigError(
            f"{where} does nothing: no negative's taper falls below {low:g}; leave the key out"
        )
    if not isinstance(rule, str) and 0.0 < high <= rule:
        raise ConfigError(
            f"{where} would drop every negative: no taper exceeds {high:g}; set a number below "
            "that, or train with objective sft to leave negatives out"
        )
    return BackwardSkipping(rule=rule, seed=args.seed)


def _check_baseline(args: TOPRConfig, objective: Objective) -> None:
    share, role = args.effective_positive_share, objective.uses.baseline
    if share is None or (role is BaselineRole.SUBTRACTED and objective.uses.negatives):
        return
    why = {
        BaselineRole.SUBTRACTED: "it gives negatives no weight",
        BaselineRole.THRESHOLD: "it only compares right completions with wrong ones",
        BaselineRole.CANCELS: "it subtracts the mean reward of each prompt",
    }[role]
    raise ConfigError(
        f"effective_positive_share={share} does not hold with objective {args.objective!r}: {why}. "
        "Leave it out (in a comparison that inherits it: baseline=0)"
    )


def warn_idle_baseline(
    args: TOPRConfig, objective: Objective, rewards: NDArray[np.float32] | None = None
) -> None:
    """Say so where a baseline is set that does nothing, as far as rewards are known."""
    c, role = args.baseline, objective.uses.baseline
    why = None
    if role is BaselineRole.CANCELS:
        why = "the mean reward of each prompt is subtracted"
    elif role is BaselineRole.THRESHOLD and c and rewards is not None:
        idle = bool(((rewards >= c) == (rewards >= 0)).all())
        why = "it only tells right completions from wrong ones, which 0 does" if idle else None
    if c and why:
        logger.warning("baseline=%s does nothing with objective %r: %s", c, args.objective, why)


def validate_baseline(c: float | None, objective: Objective, key: str = "baseline") -> None:
    """Refuse a baseline that rewards of +1 and -1 leave no room for."""
    if c is None or objective.uses.baseline is BaselineRole.CANCELS or -1.0 <= c < 1.0:
        return
    raise ConfigError(
        f"{key}={c:g} with rewards of +1 and -1: expected -1 or more, and less than 1, or no "
        "completion is better than it"
    )


def _check_optimizer(args: TOPRConfig) -> None:
    """Make the optimizer's arguments now, and refuse what it does not read."""
    name = OptimizerNames(args.optim).value
    low_rank = name.startswith(("galore", "apollo"))
    keyed: dict[str, Any] = {}
    if not low_rank:  # Those need the model.
        try:
            kind, keyed = _optimizer(args)
            if getattr(kind, "__module__", "").startswith("torch.optim"):
                kind([torch.zeros(1, requires_grad=True)], **keyed)  # which looks at its numbers
            idle_args = [part for part in _parts(args) if _is_idle(args, part)]
        except (ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
            given = f" with optim_args={args.optim_args}" if args.optim_args else ""
            raise ConfigError(f"optim={name}{given}: {error}") from error
        if idle_args:
            raise ConfigError(
                f"optim_args={idle_args[0]} does nothing with optim={name}, which reads no such "
                "argument: leave it out (learning_rate, weight_decay and the Adams' numbers are "
                "settings of their own)"
            )
    idle = {
        "adam_beta1": (0.9, low_rank or "betas" in keyed),
        "adam_beta2": (0.999, low_rank or "betas" in keyed),
        "adam_epsilon": (1e-8, low_rank or "eps" in keyed),
        "optim_target_modules": (None, low_rank),
    }
    for key, (default, used) in idle.items():
        if getattr(args, key) != default and not used:
            raise ConfigError(
                f"{key}={getattr(args, key)} does nothing with optim={name}: leave it out, "
                "or take an optimizer that has it"
            )


def _optimizer(args: TOPRConfig) -> tuple[Any, dict[str, Any]]:
    """Return its class and arguments, without those that the trainer's groups of weights set."""
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
    return kind, {key: value for key, value in arguments.items() if key != "weight_decay"}


def _parts(args: TOPRConfig) -> list[str]:
    return (args.optim_args or "").replace(" ", "").split(",") if args.optim_args else []


def _is_idle(args: TOPRConfig, part: str) -> bool:
    """Whether the optimizer is the same without that one of its arguments."""
    without = copy.copy(args)
    without.optim_args = ",".join(other for other in _parts(args) if other != part) or None
    return _optimizer(without) == _optimizer(args)


def _check_schedule(args: TOPRConfig) -> None:
    """Make a schedule now, and refuse arguments that it does not read."""
    name, kwargs = SchedulerType(args.lr_scheduler_type).value, args.lr_scheduler_kwargs or {}
    where = f"lr_scheduler_type={name} with lr_scheduler_kwargs={args.lr_scheduler_kwargs}"
    if not isinstance(kwargs, dict) or (kwargs and name in WITHOUT_ARGUMENTS):
        raise ConfigError(f"{where}: the schedule reads none of that; leave it out")
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(MANY_STEPS),
            num_training_steps=MANY_STEPS,
            scheduler_specific_kwargs=kwargs,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: {error}") from error


def validate_model(args: TOPRConfig, model: nn.Module) -> None:
    """Refuse a model that would be trained wrongly, with no sign of it."""
    names = ("activation_checkpointing", "gradient_checkpointing")  # the second up to 5.22
    if any(getattr(args, name, False) for name in names) and not any(
        isinstance(module, GradientCheckpointingLayer) for module in model.modules()
    ):
        raise TrainingError(
            f"gradient checkpointing: {type(model).__name__} has no layers that are known to "
            "repeat; leave it out, or train an adapter, or set micro_batch_tokens"
        )
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


def baseline_of(
    args: TOPRConfig, composition: Composition, objective: Objective
) -> tuple[float, float | None]:
    """Return c and p~; p~ only where it is defined and holds: all rewards are +1 and -1, and the
    objective subtracts the baseline and weighs negatives.
    """
    share = args.effective_positive_share
    if objective.uses.baseline is BaselineRole.CANCELS:
        return 0.0, None
    if composition.from_verdicts and 0 < (args.baseline or 0) < 1:
        raise ConfigError(
            f"baseline={args.baseline:g} lies between the rewards 1 and 0, but where every reward "
            "is one of them they are verdicts, taken as +1 and -1: leave baseline out, or write "
            "+1 and -1 as rewards if it is meant for those"
        )
    if composition.signed:
        validate_baseline(args.baseline, objective)
        c, found = resolve_baseline(composition.positive_share, args.baseline, share)
        holds = objective.uses.baseline is BaselineRole.SUBTRACTED and objective.uses.negatives
        return c, found if holds else None
    if share is not None:
        raise ConfigError(
            f"effective_positive_share={share} needs rewards of +1 and -1, and these lie from "
            f"{composition.lowest:g} to {composition.highest:g}: set baseline instead"
        )
    return args.baseline or 0.0, None


def check_gradient(
    name: str,
    objective: Objective,
    rewards: NDArray[np.float32],
    groups: NDArray[np.int64],
    baseline: float,
) -> None:
    """Refuse a baseline that leaves no completion a weight, whatever the model becomes.

    Where rewards and prompts leave none with any baseline, that is data, and a warning.

    Args:
        name: of the objective.
        objective: gives the weights.
        rewards: R of each row, [N].
        groups: number of each row's prompt, [N].
        baseline: c in A = R - c.

    Raises:
        ConfigError: every weight is 0, and would not be with another baseline.

    """
    if any_weight(objective, rewards - baseline, groups):
        return
    between = float(rewards.min() + rewards.max()) / 2
    threshold = objective.uses.baseline is BaselineRole.THRESHOLD
    better = between if threshold else 0.0
    found = (
        f"none of the {len(rewards)} completions has a weight under {name} "
        f"with baseline {baseline:g} (rewards from {rewards.min():g} to {rewards.max():g})"
    )
    if better != baseline and any_weight(objective, rewards - better, groups):
        raise ConfigError(f"{found}: no gradient would flow. Set baseline={better:g}")
    logger.warning(
        "%s: no gradient will flow, and the model stays as it is. Train on prompts that have right "
        "and wrong completions",
        found,
    )


def any_weight(
    objective: Objective, advantages: NDArray[np.float32], groups: NDArray[np.int64]
) -> bool:
    """Return whether any row has a weight at any of `PROBES`; a group is looked at as a whole."""
    order = np.argsort(groups, kind="stable")
    start = 0
    while start < len(order):
        end = min(start + ROWS_TOGETHER, len(order))
        while end < len(order) and groups[order[end]] == groups[order[end - 1]]:
            end += 1
        chosen = order[start:end]
        for log_rho in PROBES:
            batch = ScoredBatch(
                log_ratio=torch.full((len(chosen), 1), log_rho),
                advantage=torch.from_numpy(advantages[chosen]).float(),
                mask=torch.ones(len(chosen), 1, dtype=torch.bool),
                group=torch.from_numpy(groups[chosen]),
                behavior_logprobs=torch.full((len(chosen), 1), -1.0),
            )
            if objective.weights(batch).any():
                return True
        start = end
    return False
