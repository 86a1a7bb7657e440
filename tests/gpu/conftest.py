"""Tests that need a CUDA device, and are skipped where there is none: `make test-gpu`."""

from pathlib import Path

import pytest
import torch

from tiny import tiny_model

# FlexAttention takes heads of 16 and more.
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.3}
HEADS_OF_16 = {"qwen3": {"head_dim": 16}, "gemma": {"head_dim": 16}}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def cuda():
    """The device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def model_on(cuda):
    """Makes a tiny model whose attention has heads of 16, on the device."""

    def make(architecture="llama", **overrides):
        wide = WIDE | HEADS_OF_16.get(architecture, {})
        return tiny_model(architecture, **(wide | overrides)).to(cuda)

    return make
