"""Graded rollouts to a training set on disk: the numbers of the rows that curation kept.

The rows stay where they are (`topr.store.references`). In memory are the columns that rules look
at, some 100 bytes a row.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from topr.config import CurateConfig
from topr.curation import Columns, curate, hash_lists
from topr.errors import DataError
from topr.stages.common import data_fingerprint, open_stage
from topr.store import Manifest, shard_paths, stream_tables, write_choice

READ_ROWS = 8192
"""Rows whose columns are decoded at a time."""
COLUMNS = ("problem_id", "sample", "reward", "grade", "completion_ids")
"""What is read to decide."""


def curate_rollouts(graded: Path, config: CurateConfig, directory: Path) -> Manifest:
    """Write which graded rows the section `curate` keeps, by problem and sample number.

    Args:
        graded: a directory of shards, or one parquet file.
        config: the section `curate`.
        directory: where the dataset goes.

    Raises:
        DataError: the rows are not graded, or none is kept.

    """
    with open_stage(directory, "curate", data_fingerprint(graded), config) as stage:
        if stage.done is not None:
            return stage.done
        columns = read_columns(graded)
        result = curate(columns, config)
        for leftover in shard_paths(directory):  # of a call that was killed before its manifest
            leftover.unlink()
        order_N = columns.order_N[result.keep[columns.order_N]]
        keys = pa.table(
            {
                "problem_id": pa.array(columns.names).take(columns.problems_N[order_N]),
                "sample": columns.samples_N[order_N],
                "reward": columns.rewards_N[order_N],
            }
        )
        write_choice(directory, graded, keys, order_N)
        tokens_N = columns.tokens_N
        assert tokens_N is not None  # noqa: S101 - read_columns counts them
        return stage.finish(
            rows=len(order_N),
            details={
                **result.report,
                "tokens": int(tokens_N.sum()),
                "tokens_kept": int(tokens_N[result.keep].sum()),
                "steps": [asdict(step) for step in result.steps],
            },
        )


def kept(details: Mapping[str, Any]) -> str:
    """Say in one line what the manifest's details tell."""
    why = [f"{n} {reason}" for step in details["steps"] for reason, n in step["dropped"].items()]
    rules = [step["rule"] for step in details["steps"][1:]]
    return (
        f"curated ({', '.join(rules) or 'all'}): {details['kept']} of {details['rows']} "
        f"completions, {details['tokens_kept']} of {details['tokens']} tokens, "
        f"{details['positive_share']:.1%} positive; dropped {', '.join(why) or 'none'}"
    )


def read_columns(graded: Path, *, shards: int | None = None) -> Columns:
    """Return what curation looks at, of all rows of a store or of its first shards.

    Raises:
        DataError: there is nothing, no row is graded, or a reward is infinite.

    """
    numbers: dict[str, int] = {}
    parts: list[dict[str, np.ndarray]] = []
    rows = ungraded = 0
    for table in stream_tables(_sources(graded)[:shards], COLUMNS, rows=READ_ROWS):
        rows, ungraded = rows + len(table), ungraded + table["grade"].null_count
        parts.append(_numpy(table, numbers))
    if ungraded == rows:
        raise DataError(
            f"{graded} holds {rows} rollouts and no grade: grade them first, "
            f"`topr grade {graded} --task NAME -o OUT`"
        )
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Columns(names=list(numbers), **whole)


def _sources(graded: Path) -> list[Path]:
    sources = shard_paths(graded) if graded.is_dir() else [graded]
    if not sources:
        raise DataError(
            f"{graded} holds no shards (part-*.parquet): give a directory that `topr grade` or "
            "`topr import` wrote"
        )
    return sources


def _numpy(table: pa.Table, numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the columns of a part's rows; problems that are new get the next numbers."""
    problem = table["problem_id"].combine_chunks().dictionary_encode()
    known = np.array(
        [numbers.setdefault(name, len(numbers)) for name in problem.dictionary.to_pylist()],
        dtype=np.int64,
    )
    ids = table["completion_ids"].combine_chunks()
    lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    return {
        "rewards_N": table["reward"].cast(pa.float64()).fill_null(np.nan).to_numpy(),
        "problems_N": known[problem.indices.to_numpy(zero_copy_only=False)],
        "samples_N": table["sample"].to_numpy().astype(np.int64),
        "completions_N": hash_lists(ids.flatten().to_numpy(zero_copy_only=False), lengths),
        "tokens_N": lengths,
    }
