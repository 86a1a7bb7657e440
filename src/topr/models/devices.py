"""The device that a recipe names."""

import torch

from topr.errors import ModelError


def resolve_device(name: str) -> torch.device:
    """Turn a recipe's device into a torch device; `auto` is CUDA where there is one.

    Raises:
        ModelError: the name is not a device's, or this machine has none of that kind.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"device {name!r} is not a device's name; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    mps = int(torch.backends.mps.is_available())
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}
    found = available.get(device.type)
    if found is not None and (device.index or 0) >= found:
        raise ModelError(
            f"device {name!r} is asked for, but this machine has {found} of type {device.type}; "
            "use auto or cpu, or look at `topr env` for what torch sees"
        )
    return device
