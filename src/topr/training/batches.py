"""The layout of sequences in a forward pass, and which sequences travel together.

Axes: B sequences, T completion tokens, S prompt and completion tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from topr.errors import TrainingError

Row = Mapping[str, Any]
"""One row of `topr.training.data.ROW_SCHEMA`, with `behavior_logprobs` once they are known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedBatch:
    """Sequences padded on the right: prompt, completion, padding."""

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64, 0 at padding
    predicts: Tensor  # [B, T] int64: the position in S whose logits predict the completion token
    targets: Tensor  # [B, T] int64: the completion tokens
    mask: Tensor  # [B, T] bool: true at completion tokens
    temperature: Tensor  # [B] float32

    def to(self, device: torch.device) -> "PaddedBatch":
        """Return the same batch on a device."""
        return PaddedBatch(
            **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__}
        )


def pad(rows: Sequence[Row]) -> PaddedBatch:
    """Lay rows out as a padded batch.

    Padding is token 0 behind an attention mask of 0; it takes part in nothing.
    """
    prompts = [len(row["prompt_ids"]) for row in rows]
    lengths = [len(row["completion_ids"]) for row in rows]
    n, width, longest = len(rows), max(map(sum, zip(prompts, lengths, strict=True))), max(lengths)
    input_ids = torch.zeros(n, width, dtype=torch.int64)
    attention_mask = torch.zeros(n, width, dtype=torch.int64)
    targets = torch.zeros(n, longest, dtype=torch.int64)
    for i, (row, p, t) in enumerate(zip(rows, prompts, lengths, strict=True)):
        input_ids[i, :p] = torch.as_tensor(row["prompt_ids"])
        input_ids[i, p : p + t] = torch.as_tensor(row["completion_ids"])
        attention_mask[i, : p + t] = 1
        targets[i, :t] = torch.as_tensor(row["completion_ids"])
    steps = torch.arange(longest)
    mask = steps < torch.tensor(lengths)[:, None]
    return PaddedBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        predicts=torch.where(mask, torch.tensor(prompts)[:, None] - 1 + steps, prompts[0] - 1),
        targets=targets,
        mask=mask,
        temperature=torch.tensor([row["temperature"] for row in rows], dtype=torch.float32),
    )


def pad_tokens(values: Sequence[Any], like: PaddedBatch) -> Tensor:
    """Lay numbers per completion token out as [B, T] float32, 0 at padding."""
    padded = torch.zeros(like.mask.shape, dtype=torch.float32)
    for i, value in enumerate(values):
        padded[i, : len(value)] = torch.as_tensor(value, dtype=torch.float32)
    return padded.to(like.mask.device)


def split_by_length(rows: Sequence[Row], size: int | None) -> list[list[int]]:
    """Split the rows of one step into micro-batches of at most `size`, alike in length.

    Returns the rows' positions. The order decides nothing but the padding.
    """
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    size = size or len(rows)
    return [order[start : start + size] for start in range(0, len(order), size)]


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
