"""The processes that train one model together, and what they tell each other.

A thin layer over `torch.distributed`; alone, every call returns at once. Not here: who computes
which completions (`topr.training.ordering.shares`), and how weights are sharded (accelerate).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

from topr.errors import ToprError

T = TypeVar("T")

BUCKET = 2**25
"""Gradient numbers that are added up in one call: 128 MiB in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """One of `count` processes. All of them make the same calls in the same order."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the numbers that are exchanged lie."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Continue when all have come here."""
        if self.count > 1:
            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.count == 1:
            return value
        found = torch.tensor(value, device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process; the others don't call it.

        Raises:
            ToprError: what `make` raised, in all processes; another exception as one in the others.

        """
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        unforeseen: Exception | None = None
        if self.first:
            try:
                made[0] = make()
            except ToprError as error:
                made[1] = error
            except Exception as error:
                made[1], unforeseen = ToprError(f"process 0: {error!r}"), error
        distributed.broadcast_object_list(made, src=0)
        if unforeseen is not None:
            raise unforeseen
        if made[1] is not None:
            raise made[1]
        found: T = made[0]
        return found

    def all_of(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    @torch.no_grad()
    def same_weights(self, model: nn.Module) -> None:
        """Give all processes the first one's weights."""
        if self.count > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast(tensor.data, src=0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in each of them.

        A process that computed no gradient for a parameter adds zeros, so that all have one or
        none has.
        """
        trained = [p for p in parameters if p.requires_grad]
        if self.count == 1 or not trained:
            return
        there = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        wanted = [p for p, some in zip(trained, self.sum(there).tolist(), strict=True) if some > 0]
        for bucket in _buckets(wanted):
            parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([part.flatten() for part in parts])
            distributed.all_reduce(flat)
            sizes = [p.numel() for p in bucket]
            for p, part in zip(bucket, flat.split_with_sizes(sizes), strict=True):
                if p.grad is None:
                    p.grad = torch.empty_like(p)
                p.grad.copy_(part.view_as(p))


ALONE = Processes()
"""One process that trains by itself."""


def _buckets(parameters: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Yield runs of parameters of one type, of at most `BUCKET` numbers or one parameter."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        if bucket and (size + p.numel() > BUCKET or p.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket


def processes_of(args: TrainingArguments) -> Processes:
    """Return the processes that a launcher started; the first call connects them."""
    device = args.device
    return Processes(rank=args.process_index, count=args.world_size, device=device)
