"""How the training benchmarks start what they time, and what they say of the machine."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Settings of glibc that keep freed memory: topr's commands set their like by themselves.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
SCRIPTS = {"topr": "ours.py", "trl": "peer_trl.py"}
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Of a processor, that decide how fast its products are and whether bfloat16 is emulated."""


def environment(peer: str, arguments: Sequence[str]) -> dict[str, str]:
    """The environment of a process: each peer's best, unless TRL's defaults are what is asked."""
    result = dict(os.environ)
    if peer == "topr" or "default" not in arguments:
        result |= KEEP_MEMORY
        result["GOMP_SPINCOUNT"] = "2000"  # other programs on the cores then cost less
    return result


def run_once(peer: str, python: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One process, with a memory of its own: the JSON that it ends with."""
    command = [python, str(HERE / SCRIPTS[peer]), *arguments]
    return _last_line(command, environment(peer, arguments))


def rates(threads: int, dtypes: Sequence[str]) -> dict[str, float]:
    """The device's matrix-product rates, measured now, in topr's environment."""
    script = str(HERE / "matmul_rate.py")
    command = [sys.executable, script, "--threads", str(threads), "--dtypes", *dtypes]
    return _last_line(command, environment("topr", ()))


def _last_line(command: list[str], environ: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Server:
    """A script with its imports done, that runs each line of arguments in a fork of itself."""

    def __init__(self, peer: str, python: str, log: Path) -> None:
        self.log = log.open("a")
        self.process = subprocess.Popen(
            [python, str(HERE / SCRIPTS[peer]), "--serve"],
            env=environment(peer, ()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def run(self, arguments: Sequence[str]) -> dict[str, Any]:
        assert self.process.stdin is not None  # noqa: S101
        assert self.process.stdout is not None  # noqa: S101
        print(shlex.join(arguments), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{shlex.join(arguments)} failed: see {self.log.name}")

    def close(self) -> None:
        """End the process: it stops where its input does."""
        assert self.process.stdin is not None  # noqa: S101
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def memory_mb(result: dict[str, Any]) -> float:
    """Peak beyond parameters, gradients and optimizer state; on a CPU beyond the interpreter."""
    if "peak_cuda_mb" in result:
        return float(result["peak_cuda_mb"] - result["state_mb"])
    return float(result["peak_rss_mb"] - result["interpreter_rss_mb"] - result["state_mb"])


def about(threads: int) -> dict[str, Any]:
    """The machine, the day and the command line, for the head of a file of results."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    known = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in known],
        "cores": os.cpu_count(),
        "threads": threads,
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that an interruption leaves the one before."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
