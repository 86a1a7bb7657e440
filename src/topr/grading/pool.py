"""Grading in worker processes that are killed when they hang, die or eat memory.

A worker is a fresh Python process (no fork of a parent that may hold threads or a GPU, and no
second import of the user's script). It grades on its main thread, under a limit on its address
space, and answers completion by completion; one that passes its time limit takes its worker with
it and is graded TIMEOUT, once. Nothing is retried, and nothing outlives the call.
"""

import itertools
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from topr.config.sections import GradeConfig
from topr.errors import GradingError
from topr.grading.graders import GRADERS
from topr.grading.verdict import Verdict
from topr.grading.worker import Item, Start
from topr.records import Grade, Outcome

_START_SECONDS = 120.0
"""A worker that has not loaded its grader by then will not: sympy takes seconds."""
_CHUNK_ITEMS = 128
_CHUNK_BYTES = 1 << 20
_ITEMS_PER_WORKER = 32
"""Below this, another worker costs more to start than it saves."""


class _Worker:
    """One process, its socket, and the completions that it was given and has not answered."""

    def __init__(self, start: Start) -> None:
        if sys.platform == "win32":
            raise GradingError(
                "grading needs processes that take over a socket and can be killed with their "
                "children, which Windows has not: use WSL, Linux or macOS"
            )
        ours, theirs = socket.socketpair()
        path = [entry or str(Path.cwd()) for entry in sys.path]
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 our own module
                [sys.executable, "-W", "ignore", "-m", "topr.grading.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a user's function prints must not mix with our results
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"},
                start_new_session=True,  # Ctrl-C reaches us alone, and a kill all of its children
            )
        self.socket = ours
        self.socket.settimeout(_START_SECONDS)
        self.received = bytearray()
        self.pending: deque[int] = deque()
        self.ready = False
        self.since = time.monotonic()
        self.send(start)

    def send(self, message: Any) -> None:
        # A dead worker shows as a closed socket when its answer is awaited.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(pickle.dumps(message))
        self.since = time.monotonic()

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None where the worker has closed its end."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            return None
        if not data:
            return None
        self.received += data
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        self.since = time.monotonic()
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.socket.close()


class _Pool:
    """Workers, what is left to do, and what is done."""

    def __init__(self, start: Start, items: Sequence[Item], workers: int) -> None:
        self.start = start
        self.items = items
        self.todo = deque(range(len(items)))
        self.done: dict[int, Grade] = {}
        self.selector = selectors.DefaultSelector()
        self.workers: set[_Worker] = set()
        self.size = min(workers, -(-len(items) // _ITEMS_PER_WORKER))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.workers):
            self._remove(worker)
        self.selector.close()

    def step(self) -> None:
        """Wait for news, take in results, replace the workers that are lost, give out work."""
        while self.todo and len(self.workers) < self.size:
            worker = _Worker(self.start)
            self.workers.add(worker)
            self.selector.register(worker.socket, selectors.EVENT_READ, worker)
        now = time.monotonic()
        wait = min(self._limit(worker) + worker.since - now for worker in self.workers)
        heard = {key.data for key, _ in self.selector.select(max(0.0, wait))}
        for worker in heard:
            self._take(worker)
        now = time.monotonic()
        for worker in list(self.workers - heard):
            if now - worker.since > self._limit(worker):
                self._lose(worker, "it took too long")

    def _limit(self, worker: _Worker) -> float:
        return self.start.timeout if worker.ready else _START_SECONDS

    def _take(self, worker: _Worker) -> None:
        messages = worker.receive()
        if messages is None:
            self._lose(worker, "it died")
            return
        for message in messages:
            if "failed" in message:
                raise GradingError(
                    f"grader {self.start.grader!r} cannot start: {message['failed']} "
                    f"(a worker may use {self.start.memory_mb} MiB: `grade.memory_mb`)"
                )
            if "ready" in message:
                worker.ready = True
            elif "memory" in message:
                self._lose(worker, "it ran out of memory")
                return
            elif "error" in message:
                raise GradingError(
                    f"grader {self.start.grader!r} failed on completion {worker.pending[0]} "
                    f"(counted from 0): {message['error']}"
                )
            else:
                self.done[worker.pending.popleft()] = Grade(
                    outcome=Outcome(message["outcome"]),
                    reward=message["reward"],
                    answer=message["answer"],
                )
        if not worker.pending:
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        if not self.todo:
            self._remove(worker)
            return
        fair = max(1, len(self.todo) // (4 * self.size))
        size = 0
        while self.todo and len(worker.pending) < min(fair, _CHUNK_ITEMS) and size < _CHUNK_BYTES:
            index = self.todo.popleft()
            worker.pending.append(index)
            size += len(self.items[index].completion)
        worker.send([self.items[index] for index in worker.pending])

    def _lose(self, worker: _Worker, why: str) -> None:
        """Blame the completion that the worker was at; the rest of its chunk goes to another."""
        if not worker.ready:
            raise GradingError(
                f"a worker with grader {self.start.grader!r} did not start: {why} "
                f"(exit code {worker.process.poll()}, memory limit {self.start.memory_mb} MiB: "
                "raise `grade.memory_mb` if its imports need more)"
            )
        if worker.pending:
            self.done[worker.pending.popleft()] = Verdict.timeout()
            self.todo.extendleft(reversed(worker.pending))
        self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        self.workers.discard(worker)
        self.selector.unregister(worker.socket)
        worker.kill()


def grade_all(
    items: Sequence[tuple[str, str | None]],
    grader: str,
    *,
    config: GradeConfig,
    answer_only: bool = False,
    columns: Mapping[str, Sequence[Any]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Grade]:
    """Grade completions in worker processes; order kept, whatever the number of workers.

    Args:
        items: (completion, gold answer) pairs. A gold answer of None is GOLD_UNPARSEABLE.
        grader: A name in `GRADERS`, or a user's `module:function`.
        config: Workers, seconds per completion, memory per worker. `truncated` is not looked at.
        answer_only: Whether the completions are final answers, not solutions.
        columns: For a user's function: further columns, each as long as `items`.
        progress: Called with the number of completions graded since its last call.

    Raises:
        GradingError: no such grader, it cannot start, or a user's function fails.

    """
    if grader not in GRADERS and ":" not in grader:
        raise GradingError(
            f"there is no grader {grader!r}: the built-in ones are {', '.join(GRADERS)}; "
            "a function of your own is named `module:function`"
        )
    start = Start(
        grader=grader, answer_only=answer_only, timeout=config.timeout, memory_mb=config.memory_mb
    )
    rows: Iterator[Any] = itertools.repeat({}, len(items))
    if columns:
        names = list(columns)
        rows = (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
    work = [
        Item(completion=completion, gold=gold, columns=row)
        for (completion, gold), row in zip(items, rows, strict=True)
    ]
    with _Pool(start, work, config.workers or _cores()) as pool:
        while (before := len(pool.done)) < len(work):
            pool.step()
            if progress is not None and len(pool.done) > before:
                progress(len(pool.done) - before)
    return [pool.done[i] for i in range(len(work))]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
