"""The layout of sequences in a forward pass, and which sequences travel together.

Axes: B sequences, T completion tokens (padded), N completion tokens of all sequences end to end;
R x S the tokens that the model is given.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from topr.errors import TrainingError
from topr.store import write_json_atomic
from topr.training.attention import Node, Tree

Row = Mapping[str, Any]
"""One row of `topr.training.data.ROW_SCHEMA`, with `behavior_logprobs` once they are known."""

CPU_TOKENS = 4096
"""Tokens of a forward pass on a CPU where nothing else is asked for. More were not faster."""
GPU_TOKENS = 16_384
"""Tokens of a forward pass without gradient elsewhere: by estimate 3 GB with 8B parameters in
bfloat16."""
SHARED_START = 16
"""Tokens that prompts of one forward pass must have in common at their beginning for it to be
computed once: fewer do not pay for another node of the tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences of one forward pass. However they are laid out, their completion tokens are
    numbered end to end, in the order of the rows given.
    """

    input_ids: Tensor  # [R, S] int64
    position_ids: Tensor | None  # [R, S] int64; None: counted from 0 in each of the R
    attention_mask: Tensor | None  # [R, S] int64, 0 at padding; None: there is none
    tree: Tree | None  # over the S tokens of the only row; None: each of the R is a sequence
    predicts: Tensor  # [N] int64: the token, of R x S, whose logits predict the completion token
    targets: Tensor  # [N] int64: the completion tokens
    temperature: Tensor  # [N] float32
    lengths: tuple[int, ...]  # [B]: completion tokens of each sequence

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def padded(rows: Sequence[Row]) -> Batch:
    """Lay each sequence out in a row of its own, padded on the right.

    Padding is token 0 behind an attention mask of 0; it takes part in nothing.
    """
    sequences = [[*row["prompt_ids"], *row["completion_ids"]] for row in rows]
    input_ids = pad_sequence([torch.as_tensor(ids) for ids in sequences], batch_first=True)
    lengths = torch.tensor([len(ids) for ids in sequences])
    width = input_ids.shape[1]
    starts = [i * width + len(row["prompt_ids"]) for i, row in enumerate(rows)]
    predicts = [
        np.arange(start, start + len(row["completion_ids"])) - 1
        for start, row in zip(starts, rows, strict=True)
    ]
    return Batch(
        input_ids=input_ids,
        position_ids=None,
        attention_mask=(torch.arange(width) < lengths[:, None]).long(),
        tree=None,
        predicts=torch.from_numpy(np.concatenate(predicts)),
        **_completions(rows),
    )


def shared(rows: Sequence[Row]) -> Batch:
    """Lay all sequences end to end in one row, each prompt once, before its completions.

    What prompts begin with together (few-shot examples) is there once too. Nothing is padded.
    """
    members: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row["group"], []).append(i)
    prompts = {group: np.asarray(rows[found[0]]["prompt_ids"]) for group, found in members.items()}
    ids, positions, nodes = list[Any](), list[Any](), list[Node]()
    end = 0
    predicts: list[Any] = [None] * len(rows)
    for groups, common in _alike(prompts):
        ids.append(prompts[groups[0]][:common])
        positions.append(np.arange(common))
        begin = end
        end += common
        below = list[Node]()
        for group in groups:
            prompt, indices = prompts[group], members[group]
            start, last = end, end + len(prompt) - common - 1
            end = last + 1
            ids.append(prompt[common:])
            positions.append(np.arange(common, len(prompt)))
            children = list[Node]()
            for i in indices:
                completion = np.asarray(rows[i]["completion_ids"])
                stop = end + len(completion)
                predicts[i] = np.arange(end - 1, stop - 1)
                predicts[i][0] = last  # The first token is predicted where the prompt ends.
                ids.append(completion)
                positions.append(len(prompt) + np.arange(len(completion)))
                children.append((end, stop, stop))
                end = stop
            # A prompt with one completion is a plain sequence.
            several = len(indices) > 1
            below += [(start, last + 1, end), *children] if several else [(start, end, end)]
        nodes += [(begin, begin + common, end), *below] if common else below
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids)).long()[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask=None,
        tree=Tree(nodes=tuple(nodes)),
        predicts=torch.from_numpy(np.concatenate(predicts)),
        **_completions(rows),
    )


def _alike(prompts: Mapping[int, Any]) -> list[tuple[list[int], int]]:
    """Gather prompts that begin with the same `SHARED_START` tokens.

    Returns the groups that do, those first seen first, and how many tokens they all begin with; 0
    for a prompt that is alone. Each prompt keeps a token of its own.
    """
    found: dict[Any, list[int]] = {}
    for group, prompt in prompts.items():
        start = tuple(prompt[:SHARED_START]) if len(prompt) > SHARED_START else group
        found.setdefault(start, []).append(group)
    return [(groups, _common_start([prompts[g] for g in groups])) for groups in found.values()]


def _common_start(prompts: Sequence[Any]) -> int:
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    columns = np.stack([prompt[:shortest] for prompt in prompts])
    same = (columns == columns[0]).all(axis=0)
    return int(shortest if same.all() else same.argmin())


def _completions(rows: Sequence[Row]) -> dict[str, Any]:
    lengths = tuple(len(row["completion_ids"]) for row in rows)
    temperatures = torch.tensor([row["temperature"] for row in rows], dtype=torch.float32)
    targets = np.concatenate([row["completion_ids"] for row in rows])
    return {
        "targets": torch.from_numpy(targets).long(),
        "temperature": temperatures.repeat_interleave(torch.tensor(lengths)),
        "lengths": lengths,
    }


def flat_tokens(values: Sequence[Any]) -> Tensor:
    """Lay numbers per completion token end to end, [N] float32, as a batch of the rows does."""
    return torch.from_numpy(np.concatenate([np.asarray(v, dtype=np.float32) for v in values]))


def spread(values: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Turn tokens end to end, [N], into [B, T] with zeros at padding, and the mask of [B, T]."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.to(values.device)
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values.float()), mask


def split_by_tokens(rows: Sequence[Row], budget: int | None, *, share: bool) -> list[list[int]]:
    """Split the rows of one step into micro-batches of at most `budget` tokens.

    Args:
        rows: with `prompt_ids`, `completion_ids` and `group`.
        budget: tokens that one forward pass is given, padding included. A single sequence that is
            longer has a micro-batch to itself. None: all rows in one.
        share: the rows will be laid out by `shared`: a prompt counts once, as does what prompts
            begin with together, and these and a prompt's completions stay together where the budget
            allows. Otherwise by `padded`: rows alike in length travel together.

    Returns:
        The rows' positions. Which rows travel together changes memory and time, never the gradient.

    """
    sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    if not share:
        return _split_padded(sizes, budget)
    groups = [row["group"] for row in rows]
    alike = _alike({row["group"]: row["prompt_ids"] for row in rows})
    kin = {group: number for number, (found, _) in enumerate(alike) for group in found}
    longest: dict[int, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        longest[group] = max(size, longest.get(group, 0))
    largest = [max(longest[group] for group in found) for found, _ in alike]

    def place(i: int) -> tuple[int, ...]:
        group = groups[i]
        return -largest[kin[group]], kin[group], -longest[group], group, -sizes[i], i

    parts: list[list[int]] = []
    tokens, before = 0, -1
    for i in sorted(range(len(rows)), key=place):
        added = sizes[i]
        if parts and groups[i] == groups[before]:
            added = len(rows[i]["completion_ids"])
        elif parts and kin[groups[i]] == kin[groups[before]]:
            added -= alike[kin[groups[i]]][1]
        tokens += added
        if not parts or (budget is not None and tokens > budget):
            parts.append([])
            tokens = sizes[i]
        parts[-1].append(i)
        before = i
    return parts


def _split_padded(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    parts: list[list[int]] = []
    width = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if not parts or (budget is not None and width * (len(parts[-1]) + 1) > budget):
            parts.append([])
            width = sizes[i]
        parts[-1].append(i)
    return parts


def longest_row(rows: Sequence[Row] | Dataset) -> Row:
    """Return the row with the most tokens, the first of several."""
    if not isinstance(rows, Dataset):
        return max(rows, key=lambda row: len(row["prompt_ids"]) + len(row["completion_ids"]))
    columns = rows.select_columns(["prompt_ids", "completion_ids"]).with_format("arrow")[:]
    sizes = sum(pc.list_value_length(column).to_numpy() for column in columns.columns)
    row: Row = rows[int(np.argmax(sizes))]
    return row


def shares(rows: Sequence[Row], count: int, *, whole_groups: bool) -> list[list[int]]:
    """Deal the rows of a step out to processes, the same way in each of them.

    A prompt's completions stay together, for the prompt is then computed once. What is more than a
    process's equal share of the tokens is cut evenly, except with `whole_groups`. The largest is
    dealt first, always to the process that has the fewest tokens.

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
    own = {g: len(prompts[g]) - common for found, common in _alike(prompts) for g in found}
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


SHUFFLED, DEALT = 1, 2
"""How rows become batches, as checkpoints know it. One that says nothing has the first: where
prompts stay whole, it is of a topr that dealt them in another way."""
ORDER_FILE = "batches.json"


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
        self, groups: Sequence[int], batch_size: int, *, seed: int, whole_groups: bool
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
        batch = self._batch_of_place[place[self.groups]]
        for number in generator.permutation(len(self)):
            rows = np.flatnonzero(batch == number)
            yield rows[np.argsort(place[self.groups[rows]], kind="stable")].tolist()


def write_order(batches: ShuffledBatches, checkpoint: Path) -> None:
    """Write into a checkpoint how rows became batches."""
    write_json_atomic(checkpoint / ORDER_FILE, {"order": batches.order})


def refuse_other_order(batches: ShuffledBatches, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint whose epoch has other batches.

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
    dealt = []
    for size in sizes.tolist():
        held, number = batches[0]
        heapreplace(batches, (held + size, number))
        dealt.append(number)
    return np.asarray(dealt), max(held for held, _ in batches)
