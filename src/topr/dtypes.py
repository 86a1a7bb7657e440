"""The types of weights by name, and the one that this machine computes fastest in.

Not here: which type a model is trained in (`train.dtype`), and autocast.
"""

import time
from functools import cache

import torch
from torch.nn import functional

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
GAIN = 1.3
"""How much faster than float32 bfloat16 must be: with units for it, it is 3 to 6 times as fast."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a recipe's type into torch's.

    `auto` is bfloat16 where the device has units for it, else float32: on a CPU as measured on a
    small product, on CUDA as torch says. float16 is not among them: it overflows.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _gain() >= GAIN
    return torch.bfloat16 if fast else torch.float32


@cache
def _gain() -> float:
    """Return how much faster a CPU's products are in bfloat16."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """Return what the product of a model's layer with 64 rows takes, the fastest of several."""
    rows, weight = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        functional.linear(rows, weight)
        taken.append(time.perf_counter() - start)
    return min(taken)
