"""What the terminal shows: bars where there is a terminal, plain lines where there is none."""

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from topr.progress import Advance, duration

if TYPE_CHECKING:  # bars and tables take a tenth of a second to import: not for `--help`
    from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(*lines: str) -> None:
    """Print lines as they are: nothing in them is markup, and none is broken."""
    for line in lines:
        out.print(line, markup=False, emoji=False, soft_wrap=True)


def list_shipped(kind: str, found: Mapping[str, Any]) -> None:
    """Print recipes or studies by name: what each does and needs, and how one is run."""
    from rich.table import Table

    table = Table(kind, "what it does", "what it needs")
    for name, each in found.items():
        table.add_row(name, each.description, each.needs)
    out.print(table)
    say(f"Run one with: topr {'run' if kind == 'recipe' else kind} NAME -o DIR")


RECENT = 20
"""Units whose time says how long the rest takes."""
PLAIN_SECONDS = 15.0
"""Between two lines of one step, where there is no terminal."""


def log_to_console(level: int) -> None:
    """Show the warnings of topr, once each and without a traceback of their own."""
    logger = logging.getLogger("topr")
    logger.handlers = [_Handler()]
    logger.propagate = False
    logger.setLevel(level)


class _Handler(logging.Handler):
    """One line each, on the error stream."""

    def emit(self, record: logging.LogRecord) -> None:
        name = record.levelname.lower()
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        err.print(f"[{colour}]{name}:[/] {escape(record.getMessage())}", soft_wrap=True)


class ConsoleProgress:
    """`topr.progress.Progress` on the console."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """See `topr.progress.Progress.bar`."""
        shown = _live_bar if out.is_terminal else _plain_bar
        with shown(title, total, unit) as advance:
            yield advance

    def say(self, text: str) -> None:
        """See `topr.progress.Progress.say`."""
        say(text)

    def results(self, title: str, models: Sequence[Mapping[str, Any]]) -> None:
        """See `topr.progress.Progress.results`."""
        out.print(_models_table(title, models))


@contextmanager
def _live_bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        console=out,
        transient=False,
    )
    meter = _Meter(unit)
    with progress:
        task = progress.add_task(title, total=total, rate="", left="", note="")

        def advance(done: int, *, tokens: int = 0, note: str = "") -> None:
            meter.add(done, tokens)
            fields: dict[str, Any] = {"rate": meter.rate(), "left": meter.left(total)}
            if note:
                fields["note"] = escape(note)
            progress.update(task, advance=done, **fields)

        yield advance


@contextmanager
def _plain_bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    meter = _Meter(unit)
    last, notes = time.monotonic(), [""]

    def line() -> None:
        parts = [f"{title}: {meter.done}/{total} {unit}", meter.rate(), notes[0], meter.left(total)]
        say(", ".join(part for part in parts if part))

    def advance(done: int, *, tokens: int = 0, note: str = "") -> None:
        nonlocal last
        meter.add(done, tokens)
        notes[0] = note or notes[0]
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            line()

    yield advance
    line()


class _Meter:
    """Counts units and tokens, and how fast they come lately."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.done = 0
        self.tokens = 0
        self._start = self._last = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT)
        """Seconds of each of the last units."""

    def add(self, done: int, tokens: int) -> None:
        self.done += done
        self.tokens += tokens
        now = time.monotonic()
        if done > 0:
            self._recent.append((now - self._last) / done)
            self._last = now

    def seconds_each(self) -> float:
        """Return the seconds of a unit: the median of the recent past, which no pause moves."""
        return max(statistics.median(self._recent), 1e-9) if self._recent else 0.0

    def rate(self) -> str:
        if self.tokens:
            seconds = max(time.monotonic() - self._start, 1e-9)
            return f"{self.tokens / seconds:,.0f} tokens/s"
        each = self.seconds_each()
        if not each:
            return ""
        one = self.unit.removesuffix("s")
        return f"{1 / each:,.1f} {self.unit}/s" if each < 1 else f"{each:,.1f} s/{one}"

    def left(self, total: int) -> str:
        """Return about how long the rest takes, in words; "" where that is not known."""
        if not 0 < self.done < total:
            return ""
        average = (time.monotonic() - self._start) / self.done
        # Units that come many at a time (a shard, a batch) have a median that says nothing.
        each = average if self.tokens else self.seconds_each()
        return f"about {duration((total - self.done) * each)} left"


def _models_table(title: str, models: Sequence[Mapping[str, Any]]) -> "Table":
    """Return models as a table; all metrics are in summary.json and the report."""
    from rich.table import Table

    table = Table(title=f"{title}: accuracy with 95 % intervals over problems")
    majority = [key for key in models[-1] if key.startswith("maj@") and not key.endswith("_ci")]
    keys = ["pass@1", *majority, "greedy", "invalid"]
    table.add_column("model")
    for key in keys:
        table.add_column(key, justify="right", no_wrap=True)
    for model in models:
        name = model["name"] + (f" ({model['iteration']})" if model["iteration"] > 1 else "")
        table.add_row(escape(name), *(_cell(model, key) for key in keys))
    return table


def _cell(model: Mapping[str, Any], key: str) -> str:
    if model.get(key) is None:
        return "-"
    low, high = (100 * bound for bound in model[f"{key}_ci"])
    return f"{model[key]:.1%} [dim]{low:.0f}–{high:.0f}[/]"
