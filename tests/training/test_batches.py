"""Layout and shuffling."""

import itertools
import random
from collections import Counter

import pytest
import torch

from rollouts_for_training import as_rows, made_rows
from topr.errors import TrainingError
from topr.training.batches import padded, shared, split_by_tokens, spread
from topr.training.ordering import ShuffledBatches, assign_to_ranks


def test_split_covers_every_row_once_within_the_budget():
    rows = as_rows(made_rows(prompts=5, per_prompt=3, logprobs=False))
    for share, layout in ((False, padded), (True, shared)):
        for budget in (1, 30, 60, 100, None):
            parts = split_by_tokens(rows, budget, share=share)
            assert sorted(i for part in parts for i in part) == list(range(15))
            for part in parts:
                size = layout([rows[i] for i in part]).input_ids.numel()
                assert budget is None or size <= budget or len(part) == 1


def test_a_prompts_completions_travel_together_where_it_is_shared():
    rows = as_rows(made_rows(prompts=6, per_prompt=3, logprobs=False))
    parts = split_by_tokens(rows, 120, share=True)
    assert 1 < len(parts) < 18
    assert sum(len({rows[i]["group"] for i in part}) for part in parts) < 6 + len(parts)


def test_what_all_prompts_begin_with_counts_once_in_a_budget():
    start = range(100, 120)
    rows = [
        {"group": g, "prompt_ids": [*start, g], "completion_ids": [s, 2], "temperature": 1.0}
        for g in range(6)
        for s in range(2)
    ]  # fmt: skip
    parts = split_by_tokens(rows, 30, share=True)  # the beginning, and two prompts of 1 + 2 * 2
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert {shared([rows[i] for i in part]).input_ids.numel() for part in parts} == {30}


def test_prompts_that_begin_alike_share_their_beginning_among_others():
    one, other = list(range(100, 120)), list(range(200, 230))
    prompts = [[*one, 1], [*other, 2], [3, 4, 5], [*other, 6], [*one, 7], [*one[:16], 8]]
    rows = [
        {"group": g, "prompt_ids": prompt, "completion_ids": [9, 2], "temperature": 1.0}
        for g, prompt in enumerate(prompts)
    ]
    batch = shared(rows)
    expected = [*one[:16], *one[16:], 1, 9, 2, *one[16:], 7, 9, 2, 8, 9, 2]
    expected += [*other, 2, 9, 2, 6, 9, 2, 3, 4, 5, 9, 2]
    assert batch.input_ids.tolist() == [expected]
    assert batch.tree.nodes == (
        (0, 16, 33), (16, 23, 23), (23, 30, 30), (30, 33, 33), (33, 63, 69), (63, 66, 66),
        (66, 69, 69), (69, 74, 74),
    )  # fmt: skip
    assert batch.predicts.tolist() == [20, 21, 63, 64, 71, 72, 66, 67, 27, 28, 30, 31]
    assert split_by_tokens(rows, 36, share=True) == [[1, 3], [0, 4, 5], [2]]
    assert split_by_tokens(rows, 33, share=True) == [[1], [3], [0, 4, 5], [2]]
    assert split_by_tokens(rows, None, share=True) == [[1, 3, 0, 4, 5, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_no_micro_batch_is_over_the_budget(seed):
    chance = random.Random(seed)
    starts = [[], list(range(100, 117)), list(range(200, 240))]
    rows = [
        {"group": g, "prompt_ids": prompt, "completion_ids": [0] * chance.randint(1, 9),
         "temperature": 1.0}
        for g in range(8)
        for prompt in [[*chance.choice(starts), *range(g, g + chance.randint(1, 5))]]
        for _ in range(chance.randint(1, 3))
    ]  # fmt: skip
    chance.shuffle(rows)
    for budget in (1, 30, 60, 100, 150):
        parts = split_by_tokens(rows, budget, share=True)
        assert sorted(i for part in parts for i in part) == list(range(len(rows)))
        for part in parts:
            chosen = [rows[i] for i in part]
            assert len(part) == 1 or shared(chosen).input_ids.numel() <= budget
            assert len(split_by_tokens(chosen, budget, share=True)) == 1


def test_a_prompt_with_one_completion_is_a_node_of_its_own():
    rows = [
        {"group": g, "prompt_ids": [g, 7, 8], "completion_ids": [s, 2], "temperature": 1.0}
        for g, s in ((5, 0), (6, 1), (6, 2))
    ]
    batch = shared(rows)
    assert batch.tree.nodes == ((0, 5, 5), (5, 8, 12), (8, 10, 10), (10, 12, 12))
    assert batch.predicts.tolist() == [2, 3, 7, 8, 7, 10]


def test_padded_rows_that_travel_together_are_alike_in_length():
    rows = as_rows(made_rows(prompts=5, per_prompt=3, logprobs=False))
    parts = split_by_tokens(rows, 100, share=False)
    lengths = [[len(rows[i]["prompt_ids"] + rows[i]["completion_ids"]) for i in p] for p in parts]
    assert all(min(a) >= max(b) for a, b in itertools.pairwise(lengths))


def test_a_shared_prompt_and_a_shared_beginning_are_there_once():
    start = list(range(100, 120))
    rows = [
        {"group": g, "prompt_ids": [*start, g, 7], "completion_ids": [s, 2], "temperature": 1.0}
        for s in range(3)
        for g in (5, 6)
    ]
    batch = shared(rows)
    assert batch.input_ids.tolist() == [[*start, 5, 7, 0, 2, 1, 2, 2, 2, 6, 7, 0, 2, 1, 2, 2, 2]]
    assert batch.tree.nodes == (
        (0, 20, 36), (20, 22, 28), (22, 24, 24), (24, 26, 26), (26, 28, 28),
        (28, 30, 36), (30, 32, 32), (32, 34, 34), (34, 36, 36),
    )  # fmt: skip
    assert batch.position_ids[0, 20:].tolist() == [20, 21, 22, 23, 22, 23, 22, 23] * 2
    # In the order of the rows: the first token of each from its prompt's last, the second from it.
    assert batch.predicts.tolist() == [21, 22, 29, 30, 21, 24, 29, 32, 21, 26, 29, 34]
    assert batch.targets.tolist() == [0, 2, 0, 2, 1, 2, 1, 2, 2, 2, 2, 2]


def test_a_prompt_that_begins_another_keeps_a_token_of_its_own():
    ids = list(range(30))
    rows = [
        {"group": 0, "prompt_ids": ids, "completion_ids": [1], "temperature": 1.0},
        {"group": 1, "prompt_ids": [*ids, 3], "completion_ids": [1], "temperature": 1.0},
    ]
    batch = shared(rows)
    assert batch.tree.nodes[0] == (0, 29, 34)
    assert batch.predicts.tolist() == [29, 32]


def test_numbers_per_token_come_back_as_they_went():
    values, mask = spread(torch.arange(6.0), (1, 3, 2))
    assert values.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 0]]
    assert values[mask].tolist() == [0, 1, 2, 3, 4, 5]


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


@pytest.mark.parametrize("seed", range(300))
def test_batches_of_whole_groups_never_exceed_what_was_asked_and_are_even(seed):
    chance = random.Random(seed)
    sizes = [chance.randint(1, 16) for _ in range(chance.randint(1, 60))]
    room = chance.randint(0, 60)
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    asked, largest = max(sizes) + room, max(sizes)
    found = [len(batch) for batch in ShuffledBatches(groups, asked, seed=0, whole_groups=True)]
    assert max(found) <= asked
    assert max(found) - min(found) <= largest
    count = len(found)
    assert len(groups) / count > (asked - largest) * (1 - 1 / count)


def test_which_prompts_meet_changes_from_epoch_to_epoch_and_not_how_many_steps_there_are():
    groups = [number for number, size in enumerate([3, 2] * 20) for _ in range(size)]
    batches = ShuffledBatches(groups, 10, seed=0, whole_groups=True)
    met = Counter()
    for epoch in range(400):
        batches.set_epoch(epoch)
        found = [{groups[i] for i in batch} for batch in batches]
        assert len(found) == len(batches) == 10
        met.update(0 in batch and 1 in batch for batch in found)
    assert 20 < met[True] < 60  # a chance of 2 in 20 each epoch


def test_equal_groups_fill_batches_exactly():
    batches = ShuffledBatches([g for g in range(8) for _ in range(4)], 8, seed=0, whole_groups=True)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8]


def test_a_group_larger_than_a_batch_is_refused():
    with pytest.raises(TrainingError, match="a prompt has 5 completions but a batch holds 4"):
        ShuffledBatches([0] * 5, 4, seed=0, whole_groups=True)


def sized(*groups):
    """Rows of the given completion lengths, in groups; prompts have 10 tokens."""
    return [
        {"group": g, "prompt_ids": [0] * 10, "completion_ids": [0] * n}
        for g, lengths in enumerate(groups)
        for n in lengths
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_row_of_a_step_is_one_processs(count, whole):
    rows = sized((5, 9, 2), (40,), (1, 1, 1, 1), (7, 30))
    dealt = assign_to_ranks(rows, count, whole_groups=whole)
    assert len(dealt) == count
    assert sorted(i for positions in dealt for i in positions) == list(range(10))
    homes = {(rows[i]["group"], k) for k, positions in enumerate(dealt) for i in positions}
    if whole:
        assert len(homes) == 4  # no group is in two places


def test_shares_have_as_many_tokens_as_each_other():
    rows = sized(*[(8,)] * 3, (90,), *[(20,)] * 3)  # 54 + 100 + 90
    tokens = [
        sum(10 + len(rows[i]["completion_ids"]) for i in positions)
        for positions in assign_to_ranks(rows, 2, whole_groups=False)
    ]
    assert sorted(tokens) == [118, 126]


def test_a_prompt_is_cut_only_where_it_is_more_than_a_fair_share():
    rows = sized((30, 30, 30, 30))
    halves = assign_to_ranks(rows, 2, whole_groups=False)
    assert all(halves)
    assert assign_to_ranks(rows, 2, whole_groups=True) == [[0, 1, 2, 3], []]
    assert assign_to_ranks(sized((30, 30), (30, 30)), 2, whole_groups=False) == [[0, 1], [2, 3]]


def test_shares_do_not_count_what_prompts_begin_with_together():
    rows = [
        {"group": g, "prompt_ids": [*range(790), *[g] * 110], "completion_ids": [0] * 150}
        for g in range(4)
        for _ in range(16)
    ]
    assert [len(share) for share in assign_to_ranks(rows, 8, whole_groups=False)] == [8] * 8
