"""The layout of sequences in a forward pass, and which sequences travel together.

Axes: B sequences, T completion tokens (padded), N completion tokens of all sequences end to end;
R x S the tokens that the model is given.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from topr.errors import TrainingError
from topr.training.attention import Node, Tree

Row = Mapping[str, Any]
"""One row of `topr.training.data.ROW_SCHEMA`, with `behavior_logprobs` once they are known."""

CPU_TOKENS = 4096
"""Tokens of a forward pass on a CPU where nothing else is asked for. More were not faster."""
GPU_TOKENS = 16_384
"""Tokens of a forward pass without gradient elsewhere: by estimate 3 GB with 8B parameters in
bfloat16."""
SHARED_START = 16
"""Tokens that the prompts of one forward pass must share to be computed once: fewer do not pay for
another node of the tree."""


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

    What all prompts begin with (few-shot examples) is there once too. Nothing is padded.
    """
    members: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row["group"], []).append(i)
    prompts = [np.asarray(rows[indices[0]]["prompt_ids"]) for indices in members.values()]
    common = _common_start(prompts)
    ids, positions, nodes = [prompts[0][:common]], [np.arange(common)], list[Node]()
    end = common
    predicts: list[Any] = [None] * len(rows)
    for prompt, indices in zip(prompts, members.values(), strict=True):
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
        nodes += [(start, last + 1, end), *children] if len(indices) > 1 else [(start, end, end)]
    if common:
        nodes.insert(0, (0, common, end))
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids)).long()[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask=None,
        tree=Tree(nodes=tuple(nodes)),
        predicts=torch.from_numpy(np.concatenate(predicts)),
        **_completions(rows),
    )


def _common_start(prompts: Sequence[Any]) -> int:
    """Return how many tokens all prompts begin with, 0 where too few are worth a node."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1  # Each prompt keeps a token of its own.
    columns = np.stack([prompt[:shortest] for prompt in prompts])
    same = (columns == columns[0]).all(axis=0)
    common = int(shortest if same.all() else same.argmin())
    return common if common >= SHARED_START else 0


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
        share: the rows will be laid out by `shared`: a prompt counts once, as does what all prompts
            begin with, and a prompt's completions stay together where the budget allows. Otherwise
            by `padded`: rows alike in length travel together.

    Returns:
        The rows' positions. Which rows travel together changes memory and time, never the gradient.

    """
    sizes = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    groups = [row["group"] for row in rows]
    longest: dict[int, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        longest[group] = max(size, longest.get(group, 0))
    keys = [(-longest[g], g, -n) if share else (-n,) for g, n in zip(groups, sizes, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (keys[i], i))
    prompts = {row["group"]: row["prompt_ids"] for row in rows}
    common = _common_start(list(prompts.values())) if share else 0
    parts: list[list[int]] = []
    tokens, width, before = 0, 0, None
    for i in order:
        if share:
            known = groups[i] == before
            tokens += len(rows[i]["completion_ids"]) if known else sizes[i] - common
        else:
            width = max(width, sizes[i])
            tokens = width * (1 + (len(parts[-1]) if parts else 0))
        if not parts or (budget is not None and tokens > budget):
            parts.append([])
            tokens, width = sizes[i], sizes[i]
        parts[-1].append(i)
        before = groups[i]
    return parts


def shares(rows: Sequence[Row], count: int, *, whole_groups: bool) -> list[list[int]]:
    """Deal the rows of a step out to processes, the same way in each of them.

    A prompt's completions stay together, for the prompt is then computed once. What is more than a
    process's equal share of the tokens is cut, except with `whole_groups`. The largest is dealt
    first, always to the process that has the fewest tokens.

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
    fair = -(-(sum(sizes) + sum(len(rows[g[0]]["prompt_ids"]) for g in groups.values())) // count)
    pieces: list[tuple[int, list[int]]] = []
    for members in groups.values():
        prompt = len(rows[members[0]]["prompt_ids"])
        pieces.append((prompt, []))
        for i in members:
            if not whole_groups and pieces[-1][1] and pieces[-1][0] + sizes[i] > fair:
                pieces.append((prompt, []))
            tokens, piece = pieces[-1]
            pieces[-1] = (tokens + sizes[i], [*piece, i])
    dealt: list[list[int]] = [[] for _ in range(count)]
    tokens_of = [0] * count
    for tokens, piece in sorted(pieces, key=lambda each: -each[0]):
        least = tokens_of.index(min(tokens_of))
        tokens_of[least] += tokens
        dealt[least] += piece
    return [sorted(positions) for positions in dealt]


class ShuffledBatches(Sampler[list[int]]):
    """Batches of row numbers, in an order fixed by (seed, epoch).

    With `whole_groups` a prompt's completions are never split over batches: prompts are shuffled
    and laid end to end, and the line is cut into equal batches, each prompt going where it begins.
    Batches then differ in size by up to one prompt's completions.
    """

    def __init__(
        self, groups: Sequence[int], batch_size: int, *, seed: int, whole_groups: bool
    ) -> None:
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.whole_groups = whole_groups
        largest = int(np.bincount(self.groups).max())
        if whole_groups and largest > batch_size:
            raise TrainingError(
                f"a prompt has {largest} completions but a batch holds {batch_size}; this "
                "objective compares a prompt's completions with each other, so they must share a "
                f"batch: use a batch size of at least {largest}, or cap completions per problem"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.whole_groups:  # Rounded down: a batch no larger than a prompt could stay empty.
            return max(1, len(self.groups) // self.batch_size)
        return -(-len(self.groups) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        if not self.whole_groups:
            order = generator.permutation(len(self.groups))
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size].tolist()
            return
        shuffled = generator.permutation(self.groups.max() + 1)
        position = np.argsort(shuffled, kind="stable")[self.groups]
        order = np.argsort(position, kind="stable")
        _, starts, member = np.unique(position[order], return_index=True, return_inverse=True)
        batch = starts[member] * len(self) // len(order)
        for number in range(len(self)):
            yield order[batch == number].tolist()
