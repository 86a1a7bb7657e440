"""What wrappers hide of a causal language model: adapters, DistributedDataParallel, accelerate."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def causal_lm(model: nn.Module) -> Any:
    """Return the causal language model inside its wrappers."""
    inner: Any = model
    while (wrapped := getattr(inner, "module", None)) is not None:
        inner = wrapped
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def logits_to_keep(model: nn.Module, keep: int | Tensor) -> dict[str, Any]:
    """Return the argument that spares the head all other positions; none where there is no such.

    A wrapper's own forward takes anything: the model inside says what it knows.

    Args:
        model: a causal language model, wrapped or not.
        keep: how many of the last positions, or which columns.

    """
    known = inspect.signature(causal_lm(model).forward).parameters
    return {"logits_to_keep": keep} if "logits_to_keep" in known else {}


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Run a model for a while in the type of its weights: accelerate puts autocast into `forward`.

    Under autocast two ways of computing the same logits differ by 0.1 nats, which of float32
    weights would be a fault.
    """
    device = next(model.parameters()).device.type
    wrapped: dict[str, Any] = vars(model)
    forward = wrapped.pop("forward", None)
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if forward is not None:
            wrapped["forward"] = forward
