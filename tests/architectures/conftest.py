"""What both sweeps share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Trainers collect garbage as they end, and need not look through all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
