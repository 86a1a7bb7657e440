"""Asynchronous work behind a plain iterator. Nothing here knows what the work is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Work = Callable[[Callable[[T], None]], Awaitable[None]]
"""Called with a function that takes each result as it comes."""


def in_background(work: Work[T]) -> Iterator[T]:
    """Yield what asynchronous work puts out, while it runs.

    It runs in a thread with its own event loop, so that it does not wait for whoever takes
    the results, and can be called where a loop runs already, as in a notebook. It is cancelled when
    the iterator is closed, or an exception ends the loop over it.

    Raises:
        Exception: whatever the work raises, after the results that came before.

    """
    results: SimpleQueue[Any] = SimpleQueue()
    end = object()

    async def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio.run makes one
        results.put(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            await work(results.put)
        finally:
            results.put(end)

    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(asyncio.run, run())
        cancel = results.get()
        ended = False
        try:
            while (result := results.get()) is not end:
                yield result
            ended = True
        finally:
            if not ended:
                with suppress(RuntimeError):  # the loop has closed: the work has just ended
                    cancel()
        running.result()
