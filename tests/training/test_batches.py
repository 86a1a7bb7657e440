"""Layout and shuffling."""

import itertools
from collections import Counter

import pytest
import torch
from rollouts_for_training import made_rows, plain_logprobs

from tiny import ARCHITECTURES, tiny_model
from topr.errors import TrainingError
from topr.training.batches import ShuffledBatches, pad, split_by_length
from topr.training.logprobs import token_logprobs


def as_rows(rows, temperature=1.0):
    return [{**row, "temperature": temperature} for row in rows]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_logprobs_are_those_of_single_sequences(architecture, temperature):
    model = tiny_model(architecture)
    rows = made_rows(prompts=3, per_prompt=2, logprobs=False)
    batch = pad(as_rows(rows, temperature))
    with torch.no_grad():
        ours = token_logprobs(model, batch)
        for i, row in enumerate(rows):
            plain = plain_logprobs(model, row, temperature)
            torch.testing.assert_close(ours[i, : len(plain)].double(), plain, atol=1e-4, rtol=0)
            assert (ours[i, len(plain) :] == 0).all()


def test_split_by_length_covers_every_row_once_and_keeps_alike_together():
    rows = made_rows(prompts=5, per_prompt=3, logprobs=False)
    parts = split_by_length(rows, 4)
    assert sorted(i for part in parts for i in part) == list(range(15))
    assert [len(part) for part in parts] == [4, 4, 4, 3]
    lengths = [[len(rows[i]["prompt_ids"] + rows[i]["completion_ids"]) for i in p] for p in parts]
    assert all(min(a) >= max(b) for a, b in itertools.pairwise(lengths))


def test_shuffling_depends_on_seed_and_epoch_alone():
    batches = ShuffledBatches([0] * 10, 4, seed=1, whole_groups=False)
    first = list(batches)
    assert list(batches) == first
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(i for batch in first for i in batch) == list(range(10))
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(ShuffledBatches([0] * 10, 4, seed=2, whole_groups=False)) != first


@pytest.mark.parametrize("sizes", [[4] * 8, [1, 16, 3, 2, 7, 16, 1, 1], [16, 1], [1, 16], [5]])
def test_whole_groups_stay_together_and_no_batch_is_empty(sizes):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    batches = ShuffledBatches(groups, 16, seed=0, whole_groups=True)
    for epoch in range(5):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(found)
        assert sorted(i for batch in found for i in batch) == list(range(len(groups)))
        homes = Counter()
        for batch in found:
            homes.update({groups[i] for i in batch})
        assert set(homes.values()) == {1}


def test_equal_groups_fill_batches_exactly():
    batches = ShuffledBatches([g for g in range(8) for _ in range(4)], 8, seed=0, whole_groups=True)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8]


def test_a_group_larger_than_a_batch_is_refused():
    with pytest.raises(TrainingError, match="a prompt has 5 completions but a batch holds 4"):
        ShuffledBatches([0] * 5, 4, seed=0, whole_groups=True)
