"""The section `train` to the trainer's arguments and peft's."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from topr.config import LoraConfig, ModelConfig, TrainConfig
from topr.errors import ConfigError
from topr.models.devices import resolve_device
from topr.models.files import is_adapter
from topr.models.loading import LoadedModel
from topr.training import TOPRConfig
from topr.training.arguments import NOT_GIVEN, SETTINGS
from topr.training.checks import check_arguments
from topr.training.inherited import NOT_IN_RECIPES

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
            that does nothing or is not a recipe's; or a value cannot work (see `check_arguments`).

    """
    device = resolve_device(model.device)
    if device.index:
        raise ConfigError(
            f"model.device={model.device}: training runs on the first GPU that it sees; choose "
            "another with CUDA_VISIBLE_DEVICES and leave the device at auto"
        )
    given = {name: getattr(config, name) for name in SETTINGS}
    given["objective_args"] = config.objective_args | (
        config.taper.model_dump() if config.taper else {}
    )
    for name, not_given in NOT_GIVEN.items():
        given[name] = given[name] or not_given
    chosen: dict[str, Any] = {
        **given,
        "output_dir": str(output),
        CHECKPOINTING: config.gradient_checkpointing,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "seed": seed,
        "use_cpu": device.type == "cpu",
        "disable_tqdm": True,
    }
    for name in config.training_arguments:
        _refuse_further(name, chosen)
    try:
        args = TOPRConfig(**chosen, **config.training_arguments)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"section train: {error}") from error
    check_arguments(args)
    return args


def _refuse_further(name: str, chosen: Mapping[str, Any]) -> None:
    """Refuse a key of `training_arguments` that is not for it."""
    where, known = f"train.training_arguments.{name}", [each.name for each in fields(TOPRConfig)]
    if name in NOT_IN_RECIPES:
        raise ConfigError(f"{where}: {NOT_IN_RECIPES[name]}")
    if name in chosen:
        raise ConfigError(
            f"{where} is set by the section train itself; training_arguments takes fields of "
            "TOPRConfig that the section has no key for"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "it takes fields of TOPRConfig"
        raise ConfigError(f"{where} is unknown; {hint}")
