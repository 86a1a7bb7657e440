"""Graded rollouts to a training set on disk: the rows that curation kept, in the same schema."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from topr.config import CurateConfig
from topr.curation import curate
from topr.errors import DataError
from topr.store import Manifest, begin, read_table, shard_paths, write_manifest, write_shard


def curate_rollouts(graded: Path, config: CurateConfig, directory: Path, *, mark: str) -> Manifest:
    """Write the graded rows that the section `curate` keeps.

    Raises:
        DataError: the rows are not graded, or none is kept.

    """
    done = begin(directory, "curate", mark)
    if done is not None:
        return done
    table = read_table(graded)
    if table.column("grade").null_count == table.num_rows:
        raise DataError(
            f"{graded} holds {table.num_rows} rollouts and no grade: grade them first, "
            f"`topr grade {graded} --task NAME -o OUT`"
        )
    result = curate(
        table.column("reward").cast(pa.float64()).fill_null(np.nan).to_numpy(),
        table.column("problem_id").to_pylist(),
        table.column("sample").to_numpy(),
        config,
    )
    for leftover in shard_paths(directory):  # of a call that was killed before its manifest
        leftover.unlink()
    write_shard(directory, 0, table.filter(pa.array(result.keep)))
    manifest = Manifest(
        stage="curate",
        fingerprint=mark,
        rows=int(result.keep.sum()),
        files=tuple(path.name for path in shard_paths(directory)),
        details={"strategy": config.strategy, **result.report},
    )
    write_manifest(directory, manifest)
    return manifest
