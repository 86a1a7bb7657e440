"""The report's tables and headline: numbers as they were stored, put into words and columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from topr.report.contents import Model, Run
from topr.report.text import as_number, clip, visible

_NOT_METRICS = frozenset(
    {"name", "iteration", "path", "model", "split", "problems", "samples", "schema"}
)
_SHARES = frozenset(
    {
        "greedy", "invalid", "truncated", "right_share", "balanced_accuracy", "auc",
        "calibration_error",
    }
)  # fmt: skip
LOWER_IS_BETTER = frozenset({"invalid", "truncated", "calibration_error"})
TITLES = {
    "truncated": "truncated",
    "mean_length": "mean length",
    "right_share": "right solutions",
    "balanced_accuracy": "balanced",
    "auc": "AUC",
    "calibration_error": "calibration error",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value with its interval, as text."""

    value: str
    interval: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The summary: one row per model."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, bool, tuple[Cell, ...]], ...]
    """Name, iteration, whether it is a comparison, cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferenceRow:
    """One paired difference, with its place on a common scale from 0 to 100."""

    a: str
    b: str
    metric: str
    value: str
    interval: str
    low: float
    high: float
    middle: float
    clear: bool
    """The interval leaves zero out."""


def percent(value: Any) -> str:
    """Return a share as percent: `61.6 %`."""
    return f"{100 * value:.1f}\u202f%" if _is_number(value) else "—"


def number(value: Any) -> str:
    """Return a number as people read it: thousands apart, at most four figures.

    >>> number(18), number(18.03), number(0.345118), number(2.1e-7), number(1234.5)
    ('18', '18.0', '0.3451', '2.1e−7', '1,234')
    """
    if not _is_number(value):
        return "—" if value is None else visible(str(value))
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) >= 10:
        return f"{value:.1f}".replace("-", "−")
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "−")


def accuracy_metrics(models: Sequence[Model]) -> list[str]:
    """Return the shares among the metrics, in the order of the table; figures are made of these."""
    return [
        metric
        for metric in metric_names(models)
        if _is_share(metric) and metric not in ("truncated", "right_share")
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the header's lines: when, on what, with which seed. Of several runs there are none."""
    if run.several:
        return []
    environment = flat(run.environment)
    known = {key.rsplit(".", 1)[-1]: value for key, value in reversed(environment)}
    when = next((known[key] for key in ("started", "created", "time", "date") if key in known), "")
    if not when and run.started:
        when = run.started.strftime("%Y-%m-%d %H:%M UTC")
    task = run.recipe.get("task")
    lines = [
        ("Started", when),
        ("Task", str(task.get("name", "")) if isinstance(task, Mapping) else ""),
        ("Device", _device(run.environment)),
        ("Seed", str(run.recipe.get("seed", known.get("seed", "")))),
        ("Iterations", str(run.recipe.get("iterations", ""))),
        ("Result", _kept(run)),
        ("topr", " ".join(filter(None, (known.get("topr", ""), known.get("commit", "")[:10])))),
        (
            "Libraries",
            ", ".join(f"{n} {known[n]}" for n in ("torch", "transformers") if n in known),
        ),
    ]
    return [(name, visible(value)) for name, value in lines if value]


def _kept(run: Run) -> str:
    """Which iteration's model is the run's result, where that was a choice."""
    if run.kept.get("by") in (None, "last"):
        return ""
    return f"iteration {run.kept.get('iteration')}, best by {run.kept['by']}"


def _device(environment: Mapping[str, Any]) -> str:
    """Accelerators by name and number; without any, the CPU and its threads."""
    names = environment.get("devices")
    if isinstance(names, list) and names:
        counts = {str(name): names.count(name) for name in names}
        return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in counts.items())
    cpu = environment.get("cpu")
    threads = cpu.get("threads") if isinstance(cpu, Mapping) else None
    return f"CPU, {threads} thread{'s' * (threads != 1)}" if threads else ""


def summary(run: Run) -> Table:
    """Return the table of all models and metrics."""
    names = metric_names(run.models)
    return Table(
        columns=tuple(visible(TITLES.get(name, name)) for name in names),
        rows=tuple(
            (
                model.name,
                str(model.iteration),
                model.comparison,
                tuple(cell(model, name) for name in names),
            )
            for model in run.models
        ),
    )


def differences(run: Run) -> list[DifferenceRow]:
    """Return the paired differences; bars of one metric kind share a scale."""
    rows = []
    for entry in run.differences:
        share = _is_share(entry.metric)
        alike = [d for d in run.differences if _is_share(d.metric) == share]
        reach = max((abs(end) for d in alike for end in (*d.ci, d.difference)), default=0) or 1
        factor = 100 if share else 1
        low, high = sorted(entry.ci)
        rows.append(
            DifferenceRow(
                a=entry.a,
                b=entry.b,
                metric=visible(entry.metric),
                value=signed(factor * entry.difference) + (" points" if share else ""),
                interval=f"[{signed(factor * low)}, {signed(factor * high)}]",
                low=50 + 48 * low / reach,
                high=50 + 48 * high / reach,
                middle=50 + 48 * entry.difference / reach,
                clear=entry.clear,
            )
        )
    return rows


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested mappings as dotted names and text."""
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((visible(f"{prefix}{key}"), clip(_said(value), head=400)))
    return rows


def _said(value: Any) -> str:
    """A setting as people read it: 0.345, not 0.3451183505980083."""
    return number(value) if isinstance(value, float) else visible(str(value))


def metric_names(models: Sequence[Model]) -> list[str]:
    """Return the metrics that any model has: pass@k by k, maj@k by k, greedy, then the others."""
    names = dict.fromkeys(
        key
        for model in models
        for key, value in model.metrics.items()
        if _is_number(value) and key not in _NOT_METRICS and not (key == "unscored" and value == 0)
    )
    kinds = ("pass", "maj", "greedy", "invalid", "truncated", "mean_length")

    def place(name: str) -> tuple[int, int, str]:
        kind, _, k = name.partition("@")  # of two numbers the longer one is the higher
        return kinds.index(kind) if kind in kinds else len(kinds), len(k), name

    return sorted(names, key=place)


def cell(model: Model, metric: str) -> Cell:
    """Return a model's value with its interval."""
    value = model.metrics.get(metric)
    interval = model.interval(metric)
    share = _is_share(metric)
    text = percent(value) if share else number(value)
    if interval is not None:
        ends = [f"{100 * end:.1f}" if share else number(end) for end in interval]
        return Cell(value=text, interval=f"[{', '.join(ends)}]")
    return Cell(value=text)


def _is_share(metric: str) -> bool:
    return metric in _SHARES or metric.startswith(("pass@", "maj@"))


def _is_number(value: Any) -> bool:
    return as_number(value) is not None


def points(share: float) -> str:
    """Return a difference of shares in points: `+12.0`."""
    return signed(100 * share)


def signed(value: float) -> str:
    """Return a number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-", "−")
