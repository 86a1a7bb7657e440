"""The seed of a sample: fixed by (seed, problem, sample number), and different for each of them."""

import hashlib

from topr.engines.rng import request_seed, uniform_stream


def test_a_request_seed_is_the_head_of_the_digest_in_31_bits() -> None:
    digest = hashlib.sha256(b"7\x003\x00p1").digest()
    assert request_seed(7, "p1", 3) == int.from_bytes(digest[:4], "little") // 2


def test_request_seeds_differ_with_each_of_the_three() -> None:
    triples = [(s, p, i) for s in range(20) for p in ("p1", "p11", "") for i in range(20)]
    seeds = [request_seed(*triple) for triple in triples]
    assert len(set(seeds)) == len(triples)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_uniform_streams_are_what_they_were() -> None:
    """Stored rollouts are continued with them."""
    assert uniform_stream(0, "p1", 0).random() == 0.42448382149285935
