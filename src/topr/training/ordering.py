"""Which rows make an optimizer step, in which order, and which process has which of them. Not here:
how they are laid out for a forward pass (`topr.training.batches`).
"""

import json
from collections.abc import Iterator, Sequence
from heapq import heapreplace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from topr.errors import TrainingError
from topr.store import write_json_atomic
from topr.training.batches import Row, alike_prompts

SHUFFLED, DEALT = 1, 2
"""How rows become batches, as checkpoints know it. One that says nothing has the first: where
prompts stay whole, it is of a topr that dealt them in another way."""
ORDER_FILE = "batches.json"


def assign_to_ranks(rows: Sequence[Row], count: int, *, whole_groups: bool) -> list[list[int]]:
    """Deal the rows of a step out to processes, the same way in each of them.

    A prompt's completions stay together, for the prompt is then computed once. What is more than a
    process's equal share of the tokens is cut evenly, except with `whole_groups`. The largest is
    dealt first, always to the process that has the fewest tokens.

    Of prompts of one token, the first with completions of 6 and 2 tokens, the second with one of 4,
    two processes should have 7 tokens each. The first prompt has 9 and is cut: pieces of 7, 3 and 5
    tokens, prompts included, are dealt to [[0], [1, 2]].

    Args:
        rows: of one loader batch.
        count: of processes.
        whole_groups: weights depend on the other completions of a prompt.

    Returns:
        The positions of each process, [count] lists; some are empty where there is too little.

    """
    sizes = [len(row["completion_ids"]) for row in rows]
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["group"], []).append(i)
    prompts = {group: rows[members[0]]["prompt_ids"] for group, members in groups.items()}
    # What prompts begin with together is about the same for each process, and not counted.
    own = {g: len(prompts[g]) - common for found, common in alike_prompts(prompts) for g in found}
    fair = -(-(sum(sizes) + sum(own.values())) // count)
    pieces: list[tuple[int, list[int]]] = []
    for group, members in groups.items():
        total, before = sum(sizes[i] for i in members), 0
        parts = 1 if whole_groups else min(len(members), -(-(own[group] + total) // fair))
        cut: dict[int, list[int]] = {}
        for i in members:  # A piece holds those whose middle lies in its part of the tokens.
            cut.setdefault((2 * before + sizes[i]) * parts // (2 * total), []).append(i)
            before += sizes[i]
        pieces += [(own[group] + sum(sizes[i] for i in piece), piece) for piece in cut.values()]
    dealt: list[list[int]] = [[] for _ in range(count)]
    tokens_of = [0] * count
    for tokens, piece in sorted(pieces, key=lambda each: -each[0]):
        least = tokens_of.index(min(tokens_of))
        tokens_of[least] += tokens
        dealt[least] += piece
    return [sorted(positions) for positions in dealt]


class ShuffledBatches(Sampler[list[int]]):
    """Batches of row numbers, in an order fixed by (seed, epoch).

    With `whole_groups` a prompt's completions are never split over batches. No batch then exceeds
    `batch_size`, and sizes differ by one prompt's completions at most: prompts are dealt, those
    with most completions first, to the batch that has the fewest, into as few batches as that
    allows. With prompts of m completions at most, the K batches hold more than
    (batch_size - m) (1 - 1/K) on average.

    >>> sizes = [5, 4, 4, 3, 3, 3]  # of 6 prompts
    >>> groups = [g for g, size in enumerate(sizes) for _ in range(size)]
    >>> sorted(map(len, ShuffledBatches(groups, 12, seed=0, whole_groups=True)))
    [11, 11]
    """

    def __init__(
        self,
        groups: Sequence[int] | NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        whole_groups: bool,
    ) -> None:
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.whole_groups = whole_groups
        self.order = DEALT if whole_groups else SHUFFLED
        if not whole_groups:
            return
        self._sizes = np.bincount(self.groups)
        largest = int(self._sizes.max())
        if largest > batch_size:
            raise TrainingError(
                f"a prompt has {largest} completions but a batch holds {batch_size}; this "
                "objective compares a prompt's completions with each other, so they must share a "
                f"batch: use a batch size of at least {largest}, or cap completions per problem"
            )
        self._batch_of_place = _dealt(np.sort(self._sizes[self._sizes > 0])[::-1], batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.whole_groups:  # The same in each epoch: sizes alone decide.
            return int(self._batch_of_place.max()) + 1
        return -(-len(self.groups) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        if not self.whole_groups:
            order = generator.permutation(len(self.groups))
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size].tolist()
            return
        # Which prompts of a size take which of its places, and the order of batches, are random.
        prompts = generator.permutation(np.flatnonzero(self._sizes))
        prompts = prompts[np.argsort(-self._sizes[prompts], kind="stable")]
        place = np.empty(len(self._sizes), dtype=np.int64)
        place[prompts] = np.arange(len(prompts))
        place_of_row = place[self.groups]
        batch = self._batch_of_place[place_of_row]
        batches = np.split(np.lexsort((place_of_row, batch)), np.bincount(batch).cumsum()[:-1])
        for number in generator.permutation(len(self)):
            yield batches[number].tolist()


def write_order(batches: ShuffledBatches, checkpoint: Path) -> None:
    """Write into a checkpoint how rows became batches."""
    write_json_atomic(checkpoint / ORDER_FILE, {"order": batches.order})


def validate_order(batches: ShuffledBatches, checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint whose epoch has other batches.

    Raises:
        TrainingError: it has.

    """
    found = checkpoint / ORDER_FILE
    there = json.loads(found.read_text(encoding="utf-8"))["order"] if found.is_file() else SHUFFLED
    if there != batches.order:
        raise TrainingError(
            f"{checkpoint} was written with another order of batches (number {there}, expected "
            f"{batches.order}), by an earlier topr or with another shuffle_by or objective: to go "
            "on from it would train on some rows twice and on others never. Remove "
            f"{checkpoint.parent} to begin this training anew, or end it with the topr that began "
            "it"
        )


def _dealt(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Deal things of these sizes, largest first, into as few batches as `_deal` can.

    Returns the number of each one's batch. No batch holds more than `capacity`.
    """
    too_few, enough = -(-int(sizes.sum()) // capacity) - 1, len(sizes)
    found = np.arange(len(sizes))
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        dealt, fullest = _deal(sizes, count)
        if fullest <= capacity:
            enough, found = count, dealt
        else:
            too_few = count
    return found


def _deal(sizes: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], int]:
    """Deal each thing to the batch that holds the least; return these, and the fullest's size."""
    batches = [(0, number) for number in range(count)]  # a heap
    dealt = np.empty(len(sizes), dtype=np.int64)
    for place, size in enumerate(map(int, sizes)):
        held, number = batches[0]
        heapreplace(batches, (held + size, number))
        dealt[place] = number
    return dealt, max(held for held, _ in batches)
