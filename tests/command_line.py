"""The command line as a stranger types it: one process for each command, in a folder of its own."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def topr(folder: Path, *arguments: object, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "topr", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else Path.open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def listens_to_interrupts() -> None:
    """Run in a child before it starts: a job that a shell put into the background ignores Ctrl-C,
    and so would its children.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
