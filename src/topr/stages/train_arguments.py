"""The section `train` to the trainer's arguments and peft's."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from topr.config import LoraConfig, ModelConfig, TrainConfig
from topr.errors import ConfigError
from topr.models import LoadedModel, is_adapter, resolve_device
from topr.training import TOPRConfig

CHECKPOINTING = next(
    field.name
    for field in fields(TOPRConfig)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""What the argument is called: transformers had it as `gradient_checkpointing` before 5.23."""


def adapter_of(lora: LoraConfig, loaded: LoadedModel, model: ModelConfig) -> Any:
    """Translate the section `train.lora` into peft's config, and name the model it is put on.

    Raises:
        ConfigError: the model is itself an adapter that was not merged.

    """
    from peft import prepare_model_for_kbit_training

    there = Path(model.path).expanduser()
    if is_adapter(there):
        raise ConfigError(
            f"{there} holds an adapter alone, and an adapter on an adapter is a model that other "
            "tools cannot load: start from a merged one (train.lora.merge), or leave train.lora out"
        )
    # Found again from everywhere: peft writes this name into the adapter.
    loaded.model.name_or_path = str(there.resolve()) if there.is_dir() else model.path
    if lora.quantize is not None:
        prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            loaded.model, use_gradient_checkpointing=False
        )
    return peft_config_of(lora, model.revision)


def peft_config_of(lora: LoraConfig, revision: str | None) -> Any:
    """Translate the section `train.lora` into peft's config."""
    from peft import LoraConfig as PeftLoraConfig

    modules = lora.target_modules
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_dropout=0.0,
        revision=revision,
    )


def training_arguments(
    config: TrainConfig, model: ModelConfig, output: Path, seed: int
) -> TOPRConfig:
    """Translate the section `train` into the trainer's arguments. The one place that does.

    Raises:
        ConfigError: `training_arguments` names no field, one that the section has itself, or one
            that uploads.

    """
    device = resolve_device(model.device)
    if device.index:
        raise ConfigError(
            f"model.device={model.device}: training runs on the first GPU that it sees; choose "
            "another with CUDA_VISIBLE_DEVICES and leave the device at auto"
        )
    taper = config.taper.model_dump() if config.taper else {}
    chosen: dict[str, Any] = {
        "output_dir": str(output),
        "objective": config.objective,
        "objective_args": {**config.objective_args, **taper},
        "loss_normalization": config.normalization,
        "normalization_constant": config.normalization_constant,
        "baseline": config.baseline,
        "effective_positive_share": config.effective_positive_share,
        "behavior_logprobs": config.behavior_logprobs,
        "max_length": config.max_length,
        "mask_truncated": config.mask_truncated,
        "micro_batch_tokens": config.micro_batch_tokens,
        "layout": config.layout,
        "shuffle_by": config.shuffle_by,
        "skip_negatives": config.skip_negatives,
        "global_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "optim": config.optim,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        CHECKPOINTING: config.gradient_checkpointing,
        "bf16": config.bf16,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_steps": config.logging_steps,
        "report_to": list(config.report_to) or "none",
        "seed": seed,
        "use_cpu": device.type == "cpu",
        "disable_tqdm": True,
    }
    known = {field.name for field in fields(TOPRConfig)}
    for name in config.training_arguments:
        if name.startswith(("push_to_hub", "hub_")):
            raise ConfigError(
                f"train.training_arguments.{name}: training uploads nothing (transformers would "
                "upload a pickle, training_args.bin, with the model): leave it out, and upload "
                "what was trained with `topr push`"
            )
        if name in chosen or name not in known:
            what = "is set by the section train itself" if name in chosen else "is unknown"
            raise ConfigError(
                f"train.training_arguments.{name} {what}; it takes fields of TOPRConfig that the "
                "section has no key for"
            )
    try:
        if config.report_to:
            get_reporting_integration_callbacks(list(config.report_to))  # type: ignore[no-untyped-call]
        return TOPRConfig(**chosen, **config.training_arguments)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"section train: {error}") from error
