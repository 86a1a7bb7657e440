"""What runs in a worker process: grade what comes in, one completion at a time. No policy.

Started as `python -m topr.grading.worker FD` by `topr.grading.pool`. In: one pickled `Start`,
then pickled chunks of `Item`. Out: one JSON line when ready, then one per completion, in order.
It ends when its socket closes; a completion that hangs is killed by the parent, and by the
kernel's alarm clock where the parent is gone.
"""

import json
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from topr.errors import GradingError
from topr.grading.graders import GRADERS
from topr.grading.user import load_function, score
from topr.grading.verdict import Verdict, any_of
from topr.records import Grade
from topr.records.golds import split_gold

_ORPHAN_GRACE = 1.0
"""Seconds beyond the time limit after which a worker whose parent did not kill it dies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a worker is told first."""

    grader: str
    answer_only: bool
    timeout: float
    memory_mb: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One completion to grade."""

    completion: str
    gold: str | None
    columns: dict[str, Any] | None
    """For a user's function: the other columns of the row."""


def prepare(start: Start) -> Callable[[Item], Grade]:
    """The grader as a function of an item, with everything it needs loaded.

    Raises:
        GradingError: a user's function cannot be loaded.

    """
    grader = GRADERS.get(start.grader)
    if grader is None:
        function = load_function(start.grader)
        return lambda item: score(function, item.completion, item.columns or {})
    grader(r"\boxed{\frac{1}{2}}", "1/2", False)  # loads the parser outside of any time limit

    def grade(item: Item) -> Grade:
        if item.gold is None:
            return Verdict.gold_unparseable()
        golds = split_gold(item.gold)
        return any_of([grader(item.completion, gold, start.answer_only) for gold in golds])

    return grade


def _limit_memory(megabytes: int) -> None:
    if sys.platform == "linux":  # macOS has the call and ignores it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def _reply(grade: Callable[[Item], Grade], item: Item) -> dict[str, Any]:
    try:
        result = grade(item)
    except MemoryError:
        return {"memory": True}
    except GradingError as error:
        return {"error": str(error)}
    except RecursionError:
        result = Verdict.unparseable()
    return {"outcome": result.outcome, "reward": result.reward, "answer": result.answer}


def serve(connection: socket.socket) -> None:
    """Grade until the connection closes."""
    reader = connection.makefile("rb")

    def send(message: dict[str, Any]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    start: Start = pickle.load(reader)  # noqa: S301 from the parent
    try:
        _limit_memory(start.memory_mb)
        grade = prepare(start)
    except Exception as error:
        text = str(error) if isinstance(error, GradingError) else f"{type(error).__name__}: {error}"
        send({"failed": text})
        return
    send({"ready": True})
    while True:
        try:
            chunk: list[Item] = pickle.load(reader)  # noqa: S301 from the parent
        except EOFError:
            return
        for item in chunk:
            signal.setitimer(signal.ITIMER_REAL, start.timeout + _ORPHAN_GRACE)
            send(_reply(grade, item))
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Serve the socket whose file descriptor is the argument."""
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone, and nobody is left to tell


if __name__ == "__main__":
    main()
