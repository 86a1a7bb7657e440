"""The processes that train one model together, and what they exchange.

A thin layer over `torch.distributed`; with a single process every call returns at once. Not here:
which process computes which completions (`topr.training.ordering.assign_to_ranks`), and how weights
are sharded (accelerate).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

from topr.errors import ToprError

T = TypeVar("T")

BUCKET = 2**25
"""Gradient numbers that are added up in one call: 128 MiB in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """One of `world_size` processes. All of them make the same calls in the same order."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the numbers that are exchanged lie."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self.world_size > 1:
            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.world_size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def max(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.world_size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, value)
        return found

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process; the others do not call it.

        Raises:
            ToprError: what `make` raised, in all processes; another exception as one in the others.

        """
        return self._run_on(0, make)

    def run_once_per_node(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process of this machine; see `run_on_rank0`."""
        return self._run_on(self.rank - self.local_rank, make)

    def _run_on(self, rank: int, make: Callable[[], T]) -> T:
        if self.world_size == 1:
            return make()
        made: T | None = None
        error: ToprError | None = None
        unexpected: Exception | None = None
        if self.rank == rank:
            try:
                made = make()
            except ToprError as raised:
                error = raised
            except Exception as raised:
                error, unexpected = ToprError(f"process {rank}: {raised!r}"), raised
        results = self.gather((made, error))
        for failed in (unexpected, error, *(each for _, each in results)):
            if failed is not None:
                raise failed
        return cast("T", results[rank][0])

    @torch.no_grad()
    def broadcast_weights(self, model: nn.Module) -> None:
        """Give all processes the first one's weights."""
        if self.world_size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast(tensor.data, src=0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in each of them.

        A process that computed no gradient for a parameter adds zeros, so that all have one or
        none has.
        """
        trained = [p for p in parameters if p.requires_grad]
        if self.world_size == 1 or not trained:
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


SINGLE_PROCESS = DistributedContext()
"""A training in one process."""


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


def distributed_context(args: TrainingArguments) -> DistributedContext:
    """Return the processes that a launcher started; the first call connects them."""
    device = args.device
    return DistributedContext(
        rank=args.process_index,
        world_size=args.world_size,
        local_rank=args.local_process_index,
        device=device,
    )
