"""Runs a model with an attention function of our own, registered with transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def attention_of(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model attend by a registered function for a while.

    Args:
        model: of transformers, whose layers read the function's name from its config.
        name: in `transformers.AttentionInterface` and `AttentionMaskInterface`.

    """
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
