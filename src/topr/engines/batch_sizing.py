"""How many completions memory has room for side by side: `generate.batch_size: auto`.

Not here: what one of them takes (`topr.engines.transformers`).
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

MOST = 256
"""Rows at most. On two cores and a model of 0.5 billion parameters half of a step of 128 rows goes
into reading weights, and a third of one of 256."""
SHARE = 0.5
"""Of the memory that is free, for all rows together: other things grow too."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def rows_that_fit(device: torch.device, row_bytes: int) -> int:
    """Return how many rows to decode side by side, 1 to `MOST`.

    Args:
        device: where the model is.
        row_bytes: what a row takes.

    """
    free = _FREE.get(device.type)
    return MOST if free is None else max(1, min(MOST, int(SHARE * free(device)) // row_bytes))


def _free_cpu(device: torch.device) -> int:
    free = int(psutil.virtual_memory().available)
    try:
        limit, used, stat = (
            (CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat")
        )
    except OSError:
        return free
    if limit.strip() == "max":
        return free
    # Files that were read count as used; Linux gives their memory back when it is needed.
    cached = dict(line.split() for line in stat.splitlines()).get("inactive_file", "0")
    return min(free, int(limit) - int(used) + int(cached))


def _free_cuda(device: torch.device) -> int:
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _free_mps(device: torch.device) -> int:
    return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()


_FREE: dict[str, Callable[[torch.device], int]] = {
    "cpu": _free_cpu,
    "cuda": _free_cuda,
    "mps": _free_mps,
}
