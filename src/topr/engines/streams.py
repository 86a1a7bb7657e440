"""The random numbers of a sample: one counter-based stream per (seed, problem, sample number).

Not here: what is done with them (`topr.engines.sampling`). No torch.
"""

import hashlib

import numpy as np


def uniform_stream(seed: int, problem_id: str, sample: int) -> np.random.Generator:
    """Return the stream that fixes one sample: its t-th `random()` chooses its t-th token.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with a 128-bit key
    from the sha256 of the triple. Streams of different triples are independent, so a sample does
    not depend on which others are drawn, when, or beside it.
    """
    # Lengths cannot be confused: the two numbers hold no separator, and the id comes last.
    digest = hashlib.sha256(f"{seed}\0{sample}\0{problem_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
