"""All that recomputed log-probabilities depend on, as one name for the file that keeps them.

The model by its weights' bytes, its buffers' and its settings, the way and the types in which it is
run, the tokens, and the versions of the code. Not here: the file (`topr.training.behavior`).
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import transformers
import xxhash
from datasets import Dataset
from torch import Tensor, nn

from topr.models.wrappers import causal_lm
from topr.store import SCHEMA_VERSION
from topr.training.logprobs import Forward
from topr.training.mapped_rows import column_parts, numbers_of
from topr.training.sharding import gathered_parameter

NAMES = ("_name_or_path", "name_or_path", "architectures", "transformers_version", "dtype")
"""Of a config or a module: where it comes from. Types are those of the weights."""
MODES = ("training", "gradient_checkpointing")
"""Of a module: they change time and memory."""
OF_ADAPTERS = ("_active_adapter", "_disable_adapters")
"""All that counts among the private attributes of modules."""
OF_DEEPSPEED = ("ds_", "applied_pre_backward", "pre_bwd_fn")
"""How attributes begin that are hung onto modules where weights are sharded."""


def cache_key(model: nn.Module, rows: Dataset, forward: Forward, numerics: str) -> str:
    """Return a name that is another one wherever a log-probability may be.

    All processes that share a model's weights take part.

    Args:
        model: possibly wrapped by peft.
        rows: of `topr.training.data.ROW_SCHEMA`.
        forward: how the model is run.
        numerics: name of the autocast that is on.

    """
    digest = xxhash.xxh3_128()
    device = next(model.parameters()).device.type
    versions = [SCHEMA_VERSION, torch.__version__, transformers.__version__]
    causal = causal_lm(model)
    settings = [versions, device, numerics, asdict(forward), causal.config._attn_implementation]
    configs = [causal.config, *getattr(model, "peft_config", {}).values()]
    digest.update(_text([settings, [config.to_dict() for config in configs]]))
    for name, module in model.named_modules():
        digest.update(_text([name, type(module).__name__.removeprefix("FSDP"), _plain(module)]))
    for name, parameter in model.named_parameters():
        with gathered_parameter(parameter) as values:
            _add(digest, name, values)
    for name, buffer in model.named_buffers():
        _add(digest, name, buffer)
    for name in ("prompt_ids", "completion_ids"):
        for lists in column_parts(rows, name):
            digest.update(np.asarray(lists.value_lengths()).tobytes())
        for lists in column_parts(rows, name):
            digest.update(np.asarray(lists.flatten()).tobytes())
    digest.update(numbers_of(rows, "temperature").tobytes())
    return digest.hexdigest()[:16]


def _add(digest: Any, name: str, values: Tensor) -> None:
    digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
    flat = values.detach().reshape(-1).contiguous().cpu()
    digest.update(flat.view(torch.uint8).numpy())


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return the numbers and words that a module keeps next to its tensors, such as the scale of an
    adapter, whether it is on, and the epsilon of a normalisation.
    """
    kept = {
        name: value
        for name, value in vars(module).items()
        if name in OF_ADAPTERS or not name.startswith(("_", *OF_DEEPSPEED))
    }
    return {k: v for k, v in kept.items() if k not in (*NAMES, *MODES) and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _text(value: Any) -> bytes:
    """Return the value as text that is the same for equal values."""
    return json.dumps(_named(value), sort_keys=True, default=str).encode()


def _named(value: Any) -> Any:
    """Return the value without what only names a model."""
    if isinstance(value, dict):
        return {str(k): _named(v) for k, v in value.items() if k not in NAMES}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [_named(each) for each in value] if isinstance(value, list | tuple) else value
