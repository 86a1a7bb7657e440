"""The random numbers of a sample: one counter-based stream per (seed, problem, sample number).

Engines that draw random numbers of their own are given a seed for each sample instead. Not here:
what is done with the numbers (`topr.engines.sampling`). No torch.
"""

import hashlib

import numpy as np


def uniform_stream(seed: int, problem_id: str, sample: int) -> np.random.Generator:
    """Return the stream that fixes one sample: its t-th `random()` chooses its t-th token.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with a 128-bit key
    from the sha256 of the triple. Streams of different triples are independent, so a sample does
    not depend on which others are sampled, when, or with it.
    """
    digest = _digest(seed, problem_id, sample)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def request_seed(seed: int, problem_id: str, sample: int) -> int:
    """Return the seed of one sample, 31 bits, for an engine that takes a seed with each request.

    Of the same sha256 as `uniform_stream`. Among a million samples some two hundred pairs share a
    seed: harmless where the prompts differ, and of one prompt's 16 it is one pair in 18 million.
    """
    return int.from_bytes(_digest(seed, problem_id, sample)[:4], "little") >> 1


def _digest(seed: int, problem_id: str, sample: int) -> bytes:
    # Lengths cannot be confused: the two numbers hold no separator, and the id comes last.
    return hashlib.sha256(f"{seed}\0{sample}\0{problem_id}".encode()).digest()
