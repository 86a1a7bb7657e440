"""What wrappers hide of a causal language model: adapters, DistributedDataParallel, accelerate."""

import inspect
from typing import Any

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
