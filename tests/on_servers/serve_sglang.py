"""Serve a model by SGLang on a CPU, without its packages for CUDA.

    python serve_sglang.py MODEL HOST PORT

There is no CPU build of these packages that fits. SGLang imports them, and calls nothing of them
where a small language model reads and writes text on a CPU: here they are empty. Attention,
sampling and all numbers are torch's.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

EMPTY = ("torchvision", "torchaudio", "sgl_kernel")


class Anything(type):
    """Of classes that have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(MetaPathFinder, Loader):
    """Finds the missing packages, with everything in them and nothing behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] not in EMPTY:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

        module.__version__ = "0.28.0"
        module.__getattr__ = get  # type: ignore[method-assign]


sys.meta_path.insert(0, Empty())  # Also in SGLang's own processes, which read this file again.

if __name__ == "__main__":
    model, host, port = sys.argv[1:]
    flags = "--device cpu --dtype float32 --attention-backend torch_native"
    flags += " --sampling-backend pytorch --grammar-backend none --disable-overlap-schedule"
    flags += " --disable-cuda-graph --mem-fraction-static 0.1 --max-total-tokens 16384"
    sys.argv = ["sglang", "--model-path", model, "--host", host, "--port", port, *flags.split()]
    runpy.run_module("sglang.launch_server", run_name="__main__")
