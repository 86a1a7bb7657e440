"""Starts and stops the completions server of `completions_server.py` for tests."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from topr.config import GenerateConfig, ModelConfig
from topr.engines import Engine, open_engine

SCRIPT = Path(__file__).with_name("completions_server.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(port: int, log: Path, *traits: str) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(SCRIPT), str(port), str(log), *traits],
        stderr=subprocess.DEVNULL,
    )
    with httpx2.Client(trust_env=False) as client:
        for _ in range(200):
            try:
                client.get(f"http://127.0.0.1:{port}/v1/models")
                return process
            except httpx2.ConnectError:
                time.sleep(0.05)
    raise AssertionError("the server did not start")


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def serving(log: Path, *traits: str) -> Iterator[str]:
    """Run a server; give its url."""
    port = free_port()
    process = launch(port, log, *traits)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def open_server(model: Path, /, **server: Any) -> Engine:
    values = {"timeout": 1.0, "patience": 20.0, "concurrency": 8} | server
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    return open_engine(ModelConfig(path=str(model)), config)


def notes(log: Path) -> list[dict[str, Any]]:
    """What a server noted; a kill may have cut the last line off."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


# Servers that topr starts


def own(log: Path, *traits: str) -> dict[str, Any]:
    return {"command": [sys.executable, "-I", str(SCRIPT), "{port}", str(log), *traits]}


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def soon(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def own_processes(log: Path) -> list[int]:
    """What watches the server that was told to note in `log`, it, and what it started."""
    return [
        *[p.pid for p in psutil.process_iter(["cmdline"]) if str(log) in (p.info["cmdline"] or ())],
        *[note["child"] for note in notes(log) if "child" in note],
    ]
