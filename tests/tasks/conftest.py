import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def python_modules_after() -> Callable[[str], set[str]]:
    """Return the modules that a fresh interpreter has loaded after some statements."""

    def run(statements: str) -> set[str]:
        code = f"{statements}\nimport sys\nprint(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    return run
