"""How long steps tell of their progress. The command line draws bars; by default nothing shows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Advance(Protocol):
    """Told of every step forward."""

    def __call__(self, done: int, *, tokens: int = 0, note: str = "") -> None:
        """Add `done` units; `tokens` of work for the rate; `note` stands next to the bar."""
        ...


class Progress(Protocol):
    """Where progress goes."""

    def bar(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show one long step of `total` units while the context lasts."""
        ...

    def say(self, text: str) -> None:
        """Say one line."""
        ...

    def results(self, title: str, models: Sequence[Mapping[str, Any]]) -> None:
        """Show evaluated models as `summary.json` has them, one a row."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """See `Progress.bar`."""
        yield ignore

    def say(self, text: str) -> None:
        """See `Progress.say`."""

    def results(self, title: str, models: Sequence[Mapping[str, Any]]) -> None:
        """See `Progress.results`."""


def ignore(done: int, *, tokens: int = 0, note: str = "") -> None:
    """Show nothing of a step forward: an `Advance`."""


def duration(seconds: float) -> str:
    """Return a time with two digits that matter.

    >>> [duration(s) for s in (0.04, 2, 42, 200, 5400, 40_000, 400_000)]
    ['0.0 s', '2.0 s', '42 s', '3.3 min', '90 min', '11 h', '4.6 days']
    """
    units = ((172_800, 86_400, "days"), (7200, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
    size, name = next((size, name) for least, size, name in units if seconds >= least)
    return f"{seconds / size:.{0 if seconds / size >= 9.95 else 1}f} {name}"
