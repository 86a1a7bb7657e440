"""Where a file finds no room, a command says which one, and goes on when there is some."""

import os
import re
import resource
import subprocess
import sys

import pytest

from command_line import topr, write_jsonl
from tiny import save_tiny

ROWS = [
    {"prompt": f"{a} + 1 =", "completion": f" {a + wrong}", "gold": f"{a}", "reward": 1 - 2 * wrong}
    for a in range(8)
    for wrong in (0, 1)
]
TRAIN = (
    "train", "graded.jsonl", "-m", "model", "-o", "out", "train.global_batch_size=8",
    "train.save_steps=1", "train.behavior_logprobs=recompute",
)  # fmt: skip


def limited(folder, room, *arguments):
    """Run a command for which the kernel refuses what a file has beyond some bytes."""
    return subprocess.run(
        [sys.executable, "-B", "-m", "topr", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("room", "command", "what"),
    [
        (100, ("grade", "rows.jsonl", "--task", "gsm8k", "-o", "out.jsonl"), "out.jsonl"),
        (5000, TRAIN, "a file"),
        (250_000, (*TRAIN, "train.optim=adamw_torch"), "a file"),  # the model has room
    ],
    ids=["grade", "model", "optimizer"],
)
def test_it_is_one_message_and_the_same_command_goes_on(tmp_path, room, command, what):
    write_jsonl(tmp_path / "graded.jsonl", ROWS)
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "reward": None} for row in ROWS])
    save_tiny(tmp_path / "model")
    done = limited(tmp_path, room, *command)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(
        rf"error: {what} could not be written: (File too large|its writer stopped midway, as it "
        r"does where the disk is full). Make room, and the same command resumes\n\Z",
        done.stderr,
    )
    topr(tmp_path, *command)
