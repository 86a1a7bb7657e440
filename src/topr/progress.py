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
