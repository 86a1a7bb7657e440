"""`torch.compile` of a model's layers, each for all lengths at once.

accelerate would compile the whole model, which runs in other ways here than its own; and again for
each step, since steps have other lengths.
"""

import os

from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from topr.errors import TrainingError
from topr.training.arguments import TOPRConfig


def validate_compiling(args: TOPRConfig) -> None:
    """Refuse what would be compiled again in each step, or by accelerate."""
    if args.torch_compile and args.layout != "padded":
        raise TrainingError(
            f"torch_compile with layout={args.layout}: a step whose prompts are shared is another "
            "tree of prompts and completions, for each of which all layers would be compiled "
            "again. Set layout=padded, or leave torch_compile out; on CUDA attention over trees is "
            "compiled by itself"
        )
    launched = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()
    if not args.torch_compile and launched != "NO":
        raise TrainingError(
            f"accelerate's configuration asks for the dynamo backend {launched.lower()}, which "
            "would compile the whole model again for each step: set it to no, and torch_compile "
            "and layout=padded to compile the layers"
        )


def leave_compiling_to_us(accelerator: Accelerator) -> None:
    """Keep accelerate from compiling the whole model."""
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO


def compile_layers(model: nn.Module, args: TOPRConfig) -> None:
    """Let each layer be compiled when it is first run, in place, for sequences of any length.

    Raises:
        TrainingError: the model has no layers of transformers.

    """
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise TrainingError(
            f"torch_compile: {type(model).__name__} has no layers that are known to repeat; leave "
            "it out"
        )
    for layer in layers:
        layer.compile(
            dynamic=True, backend=args.torch_compile_backend, mode=args.torch_compile_mode
        )
