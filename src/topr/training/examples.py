"""Some trained completions with log pi before and after, for people to look at."""

from collections.abc import Callable

import pyarrow as pa

from topr.training.behavior import looked_at
from topr.training.mapped_rows import numbers_of
from topr.training.recompute import recompute
from topr.training.trainer import TOPRTrainer

PER_PROBLEM = 8


def examples_table(trainer: TOPRTrainer, take: Callable[[list[int]], pa.Table]) -> pa.Table:
    """Return some rows of the dataset as it was given, with columns added.

    `take` returns the rows of these numbers.

    They are the first `PER_PROBLEM` rows at most of each of the first problems, until there are
    `looked_at` many.

    `tokens`: the completion's tokens as text, list<string>; `behavior_logprobs` and
    `policy_logprobs`: log mu as used and log pi after training, per token, list<float32>.
    """
    taken: dict[int, int] = {}
    chosen: list[int] = []
    most = looked_at(len(trainer.rows))
    for position, group in enumerate(map(int, numbers_of(trainer.rows, "group"))):
        if len(chosen) == most:
            break
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= PER_PROBLEM:
            chosen.append(position)
    rows = trainer.rows.select(chosen)
    with trainer.accelerator.autocast():
        model = trainer.accelerator.unwrap_model(trainer.model)
        forward, distributed = trainer.forward, trainer.distributed
        policy = list(recompute(model, rows, forward=forward, distributed=distributed))
    pieces = [trainer.tokenizer.batch_decode([[i] for i in ids]) for ids in rows["completion_ids"]]
    floats = pa.list_(pa.float32())
    added = {
        "tokens": pa.array(pieces, pa.list_(pa.string())),
        "behavior_logprobs": pa.array(rows["behavior_logprobs"], floats),
        "policy_logprobs": pa.array(policy, floats),
    }
    table = take(list(rows["row"]))
    for name, column in added.items():
        table = table.append_column(name, column)
    return table
