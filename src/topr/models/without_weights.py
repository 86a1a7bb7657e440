"""A model as `topr.models.loading` makes it, but for its weights: another process of a distributed
training has read them and sends each its pieces. Until numbers are written they take no memory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def model_without_weights(
    path: str, revision: str | None, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Return a model in eval mode whose weights hold no numbers yet. Its computed buffers do."""
    config = AutoConfig.from_pretrained(path, revision=revision or "main")
    with torch.device("meta"):
        like: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with _as_second_of_node():
        model = type(like).from_pretrained(None, config=like.config, state_dict={}, dtype=dtype)

    def placed(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(placed)
    model.tie_weights()
    found: PreTrainedModel = model.eval()
    return found


@contextmanager
def _as_second_of_node() -> Iterator[None]:
    """Have transformers leave weights that are not given on the meta device, as it does for FSDP in
    processes that are not the first of their machine; elsewhere it makes random ones.
    """
    switches = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    before = {name: os.environ.get(name, "false") for name in switches}
    os.environ.update(dict.fromkeys(switches, "true"))
    try:
        yield
    finally:
        os.environ.update(before)
