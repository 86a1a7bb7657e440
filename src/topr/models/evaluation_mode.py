"""Evaluation mode, where gradients are taken too: pi must be the model that is sampled from.

Train mode switches on whatever makes a model random: dropout, wherever it is written down, layers
that are left out, noise on a router, experts that are drawn. In evaluation mode no list of these is
needed. Gradients flow in both.

Not here: models that are random in evaluation mode as well (`topr.training.fitting` refuses them).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def evaluate(model: nn.Module) -> None:
    """Switch a model to evaluation mode, with gradient checkpointing where that is enabled.

    The layers of transformers checkpoint in train mode alone; here they do from now on whenever a
    gradient is taken. Inside wrappers that hang hooks onto a layer, as theirs do.
    """
    model.eval()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.forward = partial(_checkpointed, layer)


def _checkpointed(layer: Any, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if not (layer.gradient_checkpointing and torch.is_grad_enabled()):
        return forward(layer, *args, **kwargs)
    # The backward pass runs the layer again, and a cache must not be filled twice.
    kwargs |= {name: None for name in ("past_key_values", "layer_past") if name in kwargs}
    if "use_cache" in kwargs:
        kwargs["use_cache"] = False
    return layer._gradient_checkpointing_func(partial(forward, layer, **kwargs), *args)


def evaluate_when_run(model: nn.Module) -> None:
    """Have all forward passes of a model in evaluation mode, whatever mode others switch it to.

    For trainers of others, which call `model.train()` and tell by `model.training` what they are
    doing: that comes back after each pass. What is inside stays in evaluation mode for the backward
    pass, which may run layers again.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    for module in {outer, inner}:  # of an adapter, the inner one generates
        modes: list[bool] = []
        module.register_forward_pre_hook(partial(_enter, modes))
        module.register_forward_hook(partial(_leave, modes), always_call=True)


def _enter(modes: list[bool], module: nn.Module, _: Any) -> None:
    modes.append(module.training)
    evaluate(module)


def _leave(modes: list[bool], module: nn.Module, *_: Any) -> None:
    module.training = modes.pop()
