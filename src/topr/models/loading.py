"""Loads a causal language model and its tokenizer. The only place that does.

Not here: sampling from a model (`topr.engines`), training it (`topr.training`), or making the
arithmetic task's own base model (`topr.tasks`).
"""

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.adapters import refuse_tied, require_same, short_logits
from topr.models.dtypes import resolve_dtype
from topr.models.files import ADAPTER, CONFIG_FILES, fingerprint, is_adapter, removed
from topr.models.lengths import positions_of
from topr.models.without_weights import model_without_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in eval mode on its device, its tokenizer, and what records say of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The path or hub name it was loaded from."""
    revision: str | None
    """Commit of a hub model; fingerprint of a local one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What an engine must know of a model whose weights lie elsewhere."""

    eos_ids: frozenset[int]
    """See `eos_ids`."""
    vocabulary: int
    """Token ids are below it."""
    positions: int | None
    """Tokens of prompt and completion at most; None: no limit is named."""


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
    path, device = _checked_path(config), resolve_device(config.device)
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
        raise ModelError(_cannot_load("model", config, error)) from error
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
    found = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
    base = {"path": found["base_model_name_or_path"], "revision": found.get("revision")}
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
    path = _checked_path(config, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_cannot_load("tokenizer", config, error)) from error
    return tokenizer


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token id that ends a text for this model.

    The generation config, the model config and the tokenizer may each name others (Llama 3's
    `<|eot_id|>` is in the first only): all of them count.
    """
    return _all_ids(model.generation_config, model.config.get_text_config(), tokenizer)


def model_facts(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
    """Read from a model's configs what its weights are not needed for.

    Raises:
        ModelError: there is no such model.

    """
    path, revision = _checked_path(config), config.revision or "main"
    try:
        found = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code
        ).get_text_config()
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_cannot_load("model", config, error)) from error
    try:
        generation = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # a model need not have one
        generation = None
    return ModelFacts(
        eos_ids=_all_ids(generation, found, tokenizer),
        vocabulary=int(found.vocab_size),
        positions=positions_of(found),
    )


def named_eos_ids(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return `eos_ids` of a model as far as its configs say it; they need not be there."""
    return _all_ids(tokenizer, *_named_configs(config))


def named_vocabulary(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many token ids a model knows, as far as its configs say it: a padded embedding has
    more than the tokenizer.
    """
    sizes = (getattr(owner, "vocab_size", None) for owner in _named_configs(config))
    return max(len(tokenizer), *(size for size in sizes if isinstance(size, int)), 0)


def _named_configs(config: ModelConfig) -> list[Any]:
    path, revision = _checked_path(config), config.revision or "main"
    if is_adapter(Path(path)):
        found = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
        path, revision = found["base_model_name_or_path"], found.get("revision") or "main"
    owners: list[Any] = []
    with suppress(OSError, ValueError):
        owners.append(GenerationConfig.from_pretrained(path, revision=revision))
    with suppress(OSError, ValueError, ImportError):
        named = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code
        )
        owners.append(named.get_text_config())
    return owners


def _all_ids(*owners: Any) -> frozenset[int]:
    ids: set[int] = set()
    for value in (getattr(owner, "eos_token_id", None) for owner in owners):
        ids.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return frozenset(ids)


def resolve_device(name: str) -> torch.device:
    """Turn a recipe's device into a torch device; `auto` is CUDA where there is one.

    Raises:
        ModelError: the name is not a device's, or this machine has none of that kind.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"device {name!r} is not a device's name; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": _mps_devices()}
    found = available.get(device.type)
    if found is not None and (device.index or 0) >= found:
        raise ModelError(
            f"device {name!r} is asked for, but this machine has {found} of type {device.type}; "
            "use auto or cpu, or look at `topr env` for what torch sees"
        )
    return device


def identity(config: ModelConfig) -> str | None:
    """Return what rollouts of a model carry as its `revision`, without loading its weights.

    The fingerprint of a local directory; the commit of a model on the hub.

    Raises:
        ModelError: there is no such model.

    """
    directory = Path(config.path).expanduser()
    if config.gguf_file is None and directory.is_dir():
        if removed(directory) is None:  # weights that are gone have their name still
            _checked_path(config)
        return fingerprint(config.path)
    try:
        found = AutoConfig.from_pretrained(
            _checked_path(config),
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_cannot_load("model", config, error)) from error
    return getattr(found, "_commit_hash", None) or config.revision


def _mps_devices() -> int:
    return int(torch.backends.mps.is_available())


def _checked_path(config: ModelConfig, *, weights: bool = True) -> str:
    """Return what transformers is given: a model directory, or a name that may be the hub's.

    Without `weights` they may have been deleted: the tokenizer stays (`topr.runs.retention`).
    """
    path = config.path
    directory = Path(path).expanduser()
    if config.gguf_file is not None:
        raise ModelError(
            f"model.gguf_file={config.gguf_file} of {path} is not converted yet: from Python, give "
            "what topr.models.gguf.plain_model returns"
        )
    if path == "builtin":
        raise ModelError(
            "the path is `builtin`, which only the arithmetic task makes; "
            "give `model.path` a directory or a hub name"
        )
    if directory.is_dir():
        if not any((directory / name).is_file() for name in CONFIG_FILES):
            raise ModelError(f"{directory} {_what_is_missing(directory)}")
        if weights and (gone := removed(directory)) is not None:
            raise ModelError(
                f"the weights of {directory} were deleted ({gone['why']}): give a model that the "
                "run kept, or make this one again with loop.keep_models=all in another directory"
            )
        return str(directory)
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ModelError(
            f"there is no directory {directory} (seen from {Path.cwd()}); "
            "check `model.path`, or give a hub name such as owner/name"
        )
    if "/" in path and directory.parent.is_dir():
        logger.warning(
            "there is no directory %s in %s: it is looked for on the hub", directory, Path.cwd()
        )
    return path


def _what_is_missing(directory: Path) -> str:
    files = sorted(file.name for file in directory.glob("*.gguf"))
    if files:
        return (
            f"has no config.json, but GGUF files ({', '.join(files)}): set "
            f"model.gguf_file={files[0]}, or give the path of the file, {directory / files[0]}"
        )
    return (
        "is a directory without config.json, so it holds no Hugging Face model; give the "
        "directory that `save_pretrained` wrote"
    )


def _cannot_load(what: str, config: ModelConfig, error: Exception) -> str:
    at = f" at revision {config.revision}" if config.revision else ""
    local = Path(config.path).expanduser().is_dir()
    where = "" if local else f" (no directory of that name is in {Path.cwd()})"
    return (
        f"cannot load the {what} {config.path!r}{at}{where}: {error}\n"
        "Expected a directory with config, tokenizer and safetensors, or the name of a causal "
        "language model on the hub (a GGUF file in it is named by model.gguf_file). Check the name "
        "and your access to it, or download it and give its path"
    )


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
