"""Seconds and peak memory of the curation stage on a large store of graded rollouts.

The store is synthetic: problems of 16 completions with text, token ids and log-probabilities of
about 30 tokens, in shards as the stages write them. It is made in a temporary directory, a part at
a time; the stage then runs in a process of its own, whose peak resident memory is what is printed,
beside that of a process that only imports the stage.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from topr.config import load_section
from topr.config.curation import CurateConfig
from topr.store import ROLLOUT_SCHEMA, write_shard

STEPS = (
    "curate.steps=[drop_duplicates, {rule: pass_rate, lowest: 0.05, highest: 0.95}, "
    "{rule: anna_karenina, per_problem: 12, max_positives: 4}, "
    "{rule: positive_share, share: 0.2}, drop_no_signal]"
)
COMPLETIONS = 16


def make_shard(directory: Path, index: int, rows: int, first_problem: int) -> None:
    rng = np.random.default_rng(index)
    problem = first_problem + np.arange(rows) // COMPLETIONS
    skill = np.random.default_rng(first_problem).beta(1, 2.5, rows // COMPLETIONS + 1)
    right = rng.random(rows) < skill[np.arange(rows) // COMPLETIONS]
    lengths = rng.integers(15, 46, rows)
    lengths[rng.random(rows) < 0.1] = 4  # guesses, of which many are alike
    ends = np.cumsum(lengths)
    ids = rng.integers(0, 128, ends[-1]).astype(np.int32)
    for row in np.flatnonzero(lengths == 4):
        ids[ends[row] - 4 : ends[row]] = (5, 6, 7, row % 3)
    words = np.array([f"{i % 60} + {i % 7} =" for i in range(128)])
    completions = [" ".join(words[part]) for part in np.split(ids, ends[:-1])]
    prompts = [
        f"Ann has {p % 97} pens . She buys {p % 11} more . How many pens now ?" for p in problem
    ]
    offsets = pa.array(np.r_[0, ends].astype(np.int32))
    prompt_ids = rng.integers(0, 128, 26 * rows).astype(np.int32)
    sampling = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 64,
        "stop": [],
        "seed": 0,
    }
    columns = {
        "problem_id": [f"problem-{p:07d}" for p in problem],
        "sample": np.arange(rows) % COMPLETIONS,
        "prompt": prompts,
        "prompt_ids": pa.ListArray.from_arrays(
            pa.array(np.arange(0, 26 * rows + 1, 26, dtype=np.int32)), pa.array(prompt_ids)
        ),
        "completion": completions,
        "completion_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
        "logprobs": pa.ListArray.from_arrays(
            offsets, pa.array(-rng.random(ends[-1], dtype=np.float32))
        ),
        "finish_reason": ["stop"] * rows,
        "sampling": pa.array([sampling] * rows, ROLLOUT_SCHEMA.field("sampling").type),
        "model": ["a-model"] * rows,
        "revision": [None] * rows,
        "engine": ["scripted"] * rows,
        "iteration": np.ones(rows, dtype=np.int32),
        "gold": ["18"] * rows,
        "grade": np.where(right, "correct", "wrong"),
        "reward": np.where(right, 1.0, -1.0).astype(np.float32),
        "answer": np.where(right, "18", "17"),
        "question": prompts,
    }
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, field.type)
        for field, value in ((field, columns[field.name]) for field in ROLLOUT_SCHEMA)
    ]
    write_shard(directory, index, pa.Table.from_arrays(arrays, schema=ROLLOUT_SCHEMA))


def child(graded: str, output: str, steps: str) -> None:
    from topr.stages.curate import curate_rollouts

    def peak() -> float:
        # Not ru_maxrss, which a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    imported, start = peak(), time.perf_counter()
    config = load_section(CurateConfig, "curate", None, [steps])
    manifest = curate_rollouts(Path(graded), config, Path(output))
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_mb": peak(),
                "imported_mb": imported,
                "details": manifest.details,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=16_384, help="rows of each shard")
    parser.add_argument("--steps", default=STEPS, help="curate.steps=[...]")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.steps)
        return
    size = max(COMPLETIONS, options.shard_rows // COMPLETIONS * COMPLETIONS)
    with tempfile.TemporaryDirectory() as folder:
        graded = Path(folder) / "graded"
        start = time.perf_counter()
        for index, first in enumerate(range(0, options.rows, size)):
            rows = min(size, options.rows - first)
            make_shard(graded, index, rows, first // COMPLETIONS)
        megabytes = sum(path.stat().st_size for path in graded.iterdir()) / 1e6
        print(
            f"store: {options.rows:,} rollouts, {megabytes:,.0f} MB of parquet, made in "
            f"{time.perf_counter() - start:.0f} s"
        )
        done = subprocess.run(
            [sys.executable, __file__, "--steps", options.steps, "--child", graded,
             Path(folder) / "dataset"],
            env={**os.environ, "OMP_NUM_THREADS": "2", "ARROW_NUM_THREADS": "2"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
    for step in found["details"]["steps"]:
        why = ", ".join(f"{n:,} {reason}" for reason, n in step["dropped"].items())
        print(f"{step['rule']:16} kept {step['kept']:>9,} of {step['rows']:>9,}   {why}")
    print(
        f"curated in {found['seconds']:.1f} s with a peak of {found['peak_mb']:,.0f} MB resident "
        f"({found['imported_mb']:,.0f} MB once imported)"
    )


if __name__ == "__main__":
    main()
