"""Evaluation mode, where gradients are taken too: pi must be the model that is sampled from.

Train mode switches on whatever makes a model random: dropout, wherever it is written down, layers
that are left out, noise on a router, experts that are drawn. In evaluation mode no list of these is
needed. Gradients flow in both.

Not here: models that are random in evaluation mode as well (`topr.training.fitting` refuses them).
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


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
    forward = partial(type(layer).forward, layer, **kwargs)
    if not torch.is_grad_enabled():
        return forward(*args)
    return layer._gradient_checkpointing_func(forward, *args)
