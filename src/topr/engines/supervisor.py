"""A server that ends with the process that asked for it, however that one ends.

Its own program, which imports nothing of topr:

    python supervisor.py PID COMMAND ...

It runs the command in its own session and ends that session, children and all, when process
PID is no longer its parent (killed, even by SIGKILL), when it is told to end (SIGTERM) or is killed
itself, and when the command ends. Its exit status is the command's.

It is two processes, since the first may be killed before it can end anything: Ray kills the
children of a worker that exits, though not theirs. The second sees the first one go.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
"""Between asking and killing."""


def main(parent: int, command: list[str]) -> int:
    """Run a command until it ends or has to; return its exit status."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = os.getpid()
    second = os.fork()
    if not second:
        os.setsid()
        return _serve(command, lambda: bool(told) or os.getppid() != first)
    ended, status = 0, 0
    while not ended and not told and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
        ended, status = os.waitpid(second, os.WNOHANG)
    if not ended:
        os.kill(second, signal.SIGTERM)
        _, status = os.waitpid(second, 0)
    return os.waitstatus_to_exitcode(status)


def _serve(command: list[str], over: Callable[[], bool]) -> int:
    """Run a command until it ends or it is over; return its exit status."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    while server.poll() is None and not over():
        time.sleep(POLL_SECONDS)
    if server.poll() is None:
        _signal(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
    _signal(server.pid, signal.SIGKILL)  # what it has left behind
    return server.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
