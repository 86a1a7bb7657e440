"""Memory of training on many rows: does a process's own memory grow with their number?

    python benchmarks/training_memory.py --rows 100000 1000000

Rows of 100 prompt and 200 completion tokens, 16 of a prompt, are written to parquet files, a part
at a time: 1.1 GB a million, in a temporary folder, and twice that while they are trained on. A
process of its own trains a tiny model on them for a few steps, as `topr train` does. What is
printed is its anonymous memory (private, and what the kernel cannot give back) beyond that of the
model and its libraries, at its peak while rows are read and while it trains, its peak resident
memory (which counts mapped pages of the rows as well, that are given back when others need them),
and the time until the first step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PROMPT, COMPLETION, GROUP = 100, 200, 16
PART = 10_000
VOCABULARY = 270
TRAIN = "max_steps=5 global_batch_size=32 save_steps=1000 optim=adamw_torch watch=off"


def make_rows(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index, first in enumerate(range(0, rows, PART)):
        count = min(PART, rows - first)
        problem = first // GROUP + np.arange(count) // GROUP
        prompts = rng.integers(3, VOCABULARY, (count // GROUP + 1, PROMPT), dtype=np.int32)
        lengths = rng.integers(COMPLETION - 50, COMPLETION + 51, count)
        offsets = pa.array(np.r_[0, lengths.cumsum()].astype(np.int32))
        tokens = int(lengths.sum())
        table = pa.table(
            {
                "problem_id": [f"p{p}" for p in problem],
                "sample": pa.array(np.arange(count) % GROUP, pa.int32()),
                "prompt_ids": pa.FixedSizeListArray.from_arrays(
                    pa.array(prompts[np.arange(count) // GROUP].ravel()), PROMPT
                ).cast(pa.list_(pa.int32())),
                "completion_ids": pa.ListArray.from_arrays(
                    offsets, pa.array(rng.integers(3, VOCABULARY, tokens, dtype=np.int32))
                ),
                "logprobs": pa.ListArray.from_arrays(
                    offsets, pa.array(-rng.random(tokens, dtype=np.float32))
                ),
                "reward": rng.choice([-1.0, 1.0], count),
                "revision": ["sha256:" + "0" * 64] * count,
            }
        )
        pq.write_table(table, folder / f"part-{index:05d}.parquet")


def anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def resident_peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def child(path: str, output: str, behavior: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from transformers import TrainerCallback

    from tiny import save_tiny
    from topr.config import ModelConfig, load_section
    from topr.config.training import TrainConfig
    from topr.progress import Silent
    from topr.stages import train
    from topr.training.trainer import TOPRTrainer

    model = save_tiny(Path(output) / "start")
    settings = [f"train.{each}" for each in f"{TRAIN} behavior_logprobs={behavior}".split()]
    config = load_section(TrainConfig, "train", None, settings)
    before = anonymous_mb()
    peaks, done, first_step = [before], threading.Event(), []

    def watch() -> None:
        while not done.wait(0.02):
            peaks[-1] = max(peaks[-1], anonymous_mb())

    class FirstStep(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            first_step.append(time.perf_counter())
            if len(peaks) == 1:
                peaks.append(anonymous_mb())

    class Timed(TOPRTrainer):
        def __init__(self, *args: object, **given: object) -> None:
            super().__init__(*args, **given)
            self.add_callback(FirstStep())

    train.TOPRTrainer = Timed
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    train.train_model(
        ModelConfig(path=str(model), device="cpu"), [Path(path)], config, Path(output) / "out",
        seed=0, progress=Silent(),
    )  # fmt: skip
    done.set()
    print(
        json.dumps(
            {
                "reading_mb": peaks[0] - before,
                "training_mb": peaks[1] - before,
                "resident_mb": resident_peak_mb(),
                "prepared_s": first_step[0] - start,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--behavior", default="sampler", choices=("sampler", "recompute"))
    parser.add_argument(
        "--folder", type=Path, help="where the rows lie; by default a temporary one"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.behavior)
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_rows(Path(folder) / "rows", rows)
            done = subprocess.run(
                [sys.executable, __file__, "--behavior", options.behavior,
                 "--child", Path(folder) / "rows", folder],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{rows:>9,} rows: {found['reading_mb']:,.0f} MB of its own while they are read and "
            f"{found['training_mb']:,.0f} MB while it trains, {found['resident_mb']:,.0f} MB "
            f"resident at the peak, first step after {found['prepared_s']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
