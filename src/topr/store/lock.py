"""One process at a time writes into a directory. What it writes there is not known here."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from filelock import lock_descriptor

from topr.errors import RunDirectoryError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""Stays when the lock is released: to remove it would let two processes lock two files."""
LOCKLESS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers: Lustre without its option `flock`, for one."""


def locks(descriptor: int, directory: Path) -> bool:
    """Lock an open file of a directory for this process. Return False where another one has it.

    A file system without locks gives a warning and True.
    """
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        logger.warning(
            "%s: its file system has no locks (%s): make sure that only one process writes there",
            directory, error.strerror,
        )  # fmt: skip
        return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if absent; the system releases it when the process and what
    it has forked have ended.

    Raises:
        RunDirectoryError: another process holds it.

    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("a+", encoding="utf-8") as lock:
        _lock(lock, directory)
        with suppress(OSError):  # A full disk is for what is written there to say.
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def refuse_held(directory: Path) -> None:
    """Raise a RunDirectoryError where another process holds a directory that has a lock file."""
    with (directory / LOCK_FILE).open("r+", encoding="utf-8") as lock:
        _lock(lock, directory)


def _lock(lock: TextIO, directory: Path) -> None:
    if not locks(lock.fileno(), directory):
        lock.seek(0)
        raise RunDirectoryError(
            f"another process is running in {directory} ({lock.read() or 'not known which'}): "
            "wait for it, or stop it first"
        )
