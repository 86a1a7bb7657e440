"""What a run ran on: versions, devices, seeds, commit. For `environment.json` and bug reports."""

import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from topr._version import __version__

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "datasets", "pyarrow", "math-verify",
    "pydantic", "typer", "numpy", "trl", "vllm", "gguf", "reasoning-gym",
)  # fmt: skip


def prepare_process() -> None:
    """Set this process up for tensors on a CPU. Call it before torch is imported.

    Threads that wait for each other give the core up soon: where other programs run, a step is
    several times faster for it. And glibc keeps freed memory instead of giving it back to the
    system after every tensor, which costs page faults. Elsewhere than on glibc the latter does
    nothing; a GOMP_SPINCOUNT or OMP_WAIT_POLICY of the user's own is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def launched() -> tuple[int, int]:
    """Return this process's number and how many a launcher started (torchrun, accelerate)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def environment() -> dict[str, Any]:
    """Return versions and devices. Imports torch."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "topr": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": {"count": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that topr is imported from, where it is one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
