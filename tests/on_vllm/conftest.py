"""Tests on a real vLLM, run by `make test-vllm` in an environment of its own; skipped elsewhere.

The folder must not be called vllm: TRL would take it for the package.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# A CPU build reserves memory for the cache, in GiB; the models here need a fraction of one.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

WARNINGS = (
    # What vLLM imports says of itself.
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning",
    # It leaves its sockets' context to the garbage collector, which closes it.
    "ignore:Unclosed context <zmq:ResourceWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = find_spec("vllm") is None
    skip = pytest.mark.skip(reason="vllm is not installed here: `make test-vllm` has it")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip if missing else pytest.mark.filterwarnings(*WARNINGS))
