"""The loader of a training: the rows of one optimizer step's batch at a time.

Not here: their order (`topr.training.ordering`), and what becomes of a batch
(`topr.training.batches`).
"""

from collections import UserList
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from topr.training.arguments import TOPRConfig
from topr.training.batches import Row
from topr.training.ordering import ShuffledBatches


class BatchRows(UserList[Row]):
    """The rows of one batch. Not a list: accelerate looks for tensors in those, item by item."""


def loader_of(
    rows_of: Callable[[list[int]], Sequence[Row]], batches: ShuffledBatches, args: TOPRConfig
) -> DataLoader[Any]:
    """Return a loader of `{"rows": BatchRows}` that every process reads whole: each takes its share
    of a batch later.

    Args:
        rows_of: fetches rows by number, as they are then: log mu may be known later than this call.
        batches: row numbers of each batch.
        args: of the trainer.

    """
    loader: DataLoader[Any] = DataLoader(
        range(len(batches.groups)),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=lambda numbers: {"rows": BatchRows(rows_of(numbers))},
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
    )
    prepared: DataLoader[Any] = prepare_data_loader(loader, num_processes=1, process_index=0)
    return prepared
