"""The types of weights by name, and the one that this machine computes fastest in.

Not here: which type a model is trained in (`train.dtype`), and autocast.
"""

from collections.abc import Mapping
from typing import Any

import torch

CPU_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""What torch calls units for bfloat16: with one of them products are 3 to 6 times as fast as in
float32, and without any of them slower."""


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a recipe's type into torch's.

    `auto` is bfloat16 where the device has units for it, else float32. It is not float16, which
    overflows.
    """
    if name == "auto":
        name = "bfloat16" if _has_bfloat16(device) else "float32"
    found: torch.dtype = getattr(torch, name)
    return found


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # An older torch does not tell a CPU's units.
    told: Mapping[str, Any] = (
        getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    )
    return any(told.get(unit) for unit in CPU_UNITS)
