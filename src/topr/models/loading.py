"""Loads a causal language model and its tokenizer. The only place that does.

Not here: what a path may be (`topr.models.places`), what configs say (`topr.models.facts`),
sampling (`topr.engines`), training (`topr.training`), and the arithmetic task's own base model
(`topr.tasks`).
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.adapters import refuse_tied, require_same, short_logits
from topr.models.devices import resolve_device
from topr.models.dtypes import resolve_dtype
from topr.models.files import base_of, fingerprint, is_adapter
from topr.models.places import cannot_load, checked_path
from topr.models.without_weights import model_without_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in eval mode on its device, its tokenizer, and what records say of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The path or hub name it was loaded from."""
    revision: str | None
    """Commit of a hub model; fingerprint of a local one."""


def load(
    config: ModelConfig, quantize: Literal["4bit", "8bit"] | None = None, *, read: bool = True
) -> LoadedModel:
    """Load the model and the tokenizer that a recipe's section names.

    Args:
        config: the section.
        quantize: keep the weights of linear layers in fewer bits, to train an adapter on them.
        read: see `load_model`.

    Raises:
        ModelError: there is no such model, its weights are incomplete, or the device is missing.

    """
    model, tokenizer = load_model(config, quantize, read=read), load_tokenizer(config)
    directory = Path(config.path).expanduser()
    commit = getattr(model.config, "_commit_hash", None)
    revision = fingerprint(directory) if directory.is_dir() else commit or config.revision
    return LoadedModel(model=model, tokenizer=tokenizer, name=config.path, revision=revision)


def load_model(
    config: ModelConfig, quantize: Literal["4bit", "8bit"] | None = None, *, read: bool = True
) -> PreTrainedModel:
    """Load the weights, in the section's dtype, onto its device, in eval mode.

    A directory that holds an adapter alone is loaded as the model it belongs to, the adapter added
    into its weights.

    Args:
        config: the section.
        quantize: see `load`.
        read: False: another process of a distributed training sends the weights, so they need not
            be read. They are all the same in fewer bits, with an adapter, and for a model's code of
            its own.

    Raises:
        ModelError: as `load`.

    """
    path, device = checked_path(config), resolve_device(config.device)
    if is_adapter(Path(path)):
        return _load_adapted(config, Path(path), quantize)
    dtype = resolve_dtype(config.dtype, device)
    further: dict[str, Any] = {}
    if quantize is None and not read and not config.trust_remote_code:
        return model_without_weights(path, config.revision, dtype, device)
    if quantize is not None:
        further = {"quantization_config": _quantization(config, quantize), "device_map": device}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision or "main",
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,  # a pickle runs whatever code is in it
            output_loading_info=True,
            **further,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(cannot_load("model", config, error)) from error
    weights, report = loaded
    refuse_incomplete(config.path, report)
    model: PreTrainedModel = (weights if quantize else weights.to(device)).eval()
    return model


def _load_adapted(
    config: ModelConfig, directory: Path, quantize: Literal["4bit", "8bit"] | None
) -> PreTrainedModel:
    """Load the model that an adapter belongs to, and add the adapter into its weights."""
    from peft import PeftModel

    if quantize is not None:
        raise ModelError(
            f"{directory} holds an adapter alone, which cannot be added into weights of "
            f"{quantize}: train with lora.merge, and start from what that wrote"
        )
    base = base_of(directory)
    try:
        model = load_model(config.model_copy(update=base))
    except ModelError as error:
        raise ModelError(
            f"{directory} holds an adapter alone, of the model {base['path']}: {error}"
        ) from error
    adapted = PeftModel.from_pretrained(model, directory, use_safetensors=True).eval()
    refuse_tied(adapted)
    expected = short_logits(adapted)
    merged: PreTrainedModel = adapted.merge_and_unload().eval().requires_grad_(True)
    what = f"the adapter {directory} added into its model, and kept apart"
    require_same(expected, short_logits(merged), merged.dtype, what)
    return merged


def check_quantization(config: ModelConfig, bits: Literal["4bit", "8bit"]) -> None:
    """Refuse weights in fewer bits where they cannot be had.

    Raises:
        ModelError: this machine cannot.

    """
    installed = find_spec("bitsandbytes") is not None
    if not installed or resolve_device(config.device).type != "cuda":
        raise ModelError(
            f"lora.quantize={bits} needs the package bitsandbytes and a CUDA device; found "
            f"{'the package' if installed else 'no package'} and device "
            f"{resolve_device(config.device)}. Install it (pip install bitsandbytes), or leave "
            "quantize out"
        )


def _quantization(config: ModelConfig, bits: Literal["4bit", "8bit"]) -> BitsAndBytesConfig:
    """Return how bitsandbytes is to keep the weights: as QLoRA does (arXiv 2305.14314), or int8."""
    check_quantization(config, bits)
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that the section names.

    Raises:
        ModelError: there is none.

    """
    path = checked_path(config, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(cannot_load("tokenizer", config, error)) from error
    return tokenizer


def refuse_incomplete(path: str, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would fill up with random numbers."""
    missing = [str(key) for key in report.get("missing_keys", ())]
    missing += [str(key) for key in report.get("mismatched_keys", ())]
    if missing:
        raise ModelError(
            f"the weights of {path!r} lack {len(missing)} tensors that the model needs (such as "
            f"{sorted(missing)[0]}), or hold them in another shape; expected a causal language "
            "model with its head. Check that the directory is complete and of this architecture"
        )
