"""The report's figures, as plain plotly dictionaries. Drawing happens in the page.

Colours are named (`--positive`): the page puts in the value of the style sheet's custom property
of that name, so that one figure fits the light and the dark scheme. Each trace carries in `meta`
the series that it belongs to, which is what the page's selections go by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from topr.report.contents import Model, Training
from topr.report.panels import PANELS, SIGNED, Curve
from topr.report.text import as_number, visible

POINTS = 1500
"""Points drawn of one curve; a longer log is thinned evenly."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
_SERIES = 6
"""Custom properties --series-0 ... of the style sheet; further series start again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure: what it is called, how to read it, and plotly's own description."""

    key: str
    title: str
    caption: str
    traces: tuple[Mapping[str, Any], ...]
    layout: Mapping[str, Any]
    headings: Mapping[str, str] | None = None
    """Title by series, where it differs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """How one model or training is drawn, the same in every figure."""

    key: str
    label: str
    color: str
    dash: str
    symbol: str


def model_series(models: Sequence[Model]) -> dict[str, Series]:
    """Return how each model is drawn: the loop's own models as one series, comparisons apart."""
    main = next((m.name for m in models if m.iteration > 0 and not m.comparison), None)
    others = dict.fromkeys(m.name for m in models if m.comparison)
    first = _series(0, "main", main or "base")
    return {"main": first} | {
        name: _series(number, name, name) for number, name in enumerate(others, start=1)
    }


def training_series(trainings: Sequence[Training], models: Sequence[Model]) -> list[Series]:
    """Return how each training is drawn: its model's colour, its own dash."""
    colors = {name: series.color for name, series in model_series(models).items()}
    return [
        Series(
            key=training.label,
            label=visible(training.label),
            color=colors.get(training.model, colors["main"]),
            dash=_DASHES[number % len(_DASHES)],
            symbol="circle",
        )
        for number, training in enumerate(trainings)
    ]


def accuracy_figures(models: Sequence[Model], metrics: Sequence[str]) -> list[Figure]:
    """Return one figure per metric: its value over iterations with 95 % intervals."""
    series = model_series(models)
    figures = []
    for metric in metrics:
        traces = []
        for number, (key, style) in enumerate(series.items()):
            points = _points(models, key, metric)
            if points:
                shift = 0.05 * (number - (len(series) - 1) / 2)
                traces.append(_accuracy_trace(metric, style, points, shift=shift))
        if traces:
            layout = _layout(xtitle="iteration", tickformat=".0%") | {"hovermode": "closest"}
            layout["xaxis"] |= {"dtick": 1, "range": _iteration_range(models), "zeroline": False}
            layout["yaxis"] |= {"rangemode": "tozero"}
            figures.append(
                Figure(
                    key=f"accuracy/{metric}",
                    title=visible(metric),
                    caption=_metric_caption(metric),
                    traces=tuple(traces),
                    layout=layout,
                )
            )
    return figures


def training_figures(trainings: Sequence[Training], styles: Sequence[Series]) -> list[Figure]:
    """Return the diagnostics: one figure per panel that has at least one logged value."""
    figures = []
    for panel in PANELS:
        traces = [
            _curve_trace(curve, training, style)
            for training, style in zip(trainings, styles, strict=True)
            for curve in panel.curves
            if any(as_number(row.get(curve.key)) is not None for row in _rows(training, curve))
        ]
        if traces:
            layout = _layout(xtitle="optimizer step", tickformat=panel.tickformat)
            if panel.from_zero:
                top = max(y for trace in traces for y in trace["y"] if y is not None)
                layout["yaxis"] |= {"range": [0, 1.1 * top or 1]}
            figures.append(
                Figure(
                    key=f"training/{panel.curves[0].key}",
                    title=panel.title,
                    caption=panel.caption,
                    traces=tuple(traces),
                    layout=layout,
                )
            )
    return figures


def histogram_figures(trainings: Sequence[Training]) -> list[Figure]:
    """Return the histograms of weights at the first, the middle and the last logged step."""
    rows = {
        training.label: [row for row in training.log if _is_histogram(row.get("weight_histogram"))]
        for training in trainings
    }
    rows = {label: found for label, found in rows.items() if found}
    figures = []
    for when, place in (("First", 0.0), ("Middle", 0.5), ("Last", 1.0)):
        picked = {label: found[round(place * (len(found) - 1))] for label, found in rows.items()}
        traces = [
            _bar_trace(label, row["weight_histogram"], sign)
            for label, row in picked.items()
            for sign in SIGNED
        ]
        if traces:
            layout = _layout(xtitle="weight", tickformat="") | {"hovermode": "closest"}
            layout["xaxis"] |= {"nticks": 7, "zeroline": False}
            layout["yaxis"] |= {"title": {"text": "completions"}, "rangemode": "tozero"}
            figures.append(
                Figure(
                    key=f"weights/{when.lower()}",
                    title=f"{when} logged step",
                    caption="",
                    traces=tuple(traces),
                    layout=layout,
                    headings={
                        label: f"{when} logged step: {row['step']}" for label, row in picked.items()
                    },
                )
            )
    return figures


def thinned(log: Sequence[Mapping[str, Any]]) -> int:
    """Return n where every n-th logged step is drawn."""
    return max(1, -(-len(log) // POINTS))


def _series(number: int, key: str, label: str) -> Series:
    return Series(
        key=key,
        label=visible(label),
        color=f"--series-{number % _SERIES}",
        dash=_DASHES[number % len(_DASHES)],
        symbol=_SYMBOLS[number % len(_SYMBOLS)],
    )


def _points(models: Sequence[Model], key: str, metric: str) -> list[Model]:
    """A series starts where its training started: at the model of iteration 0."""
    own = [m for m in models if (m.name == key if m.comparison else key == "main")]
    start = [m for m in models if m.iteration == 0 and not m.comparison] if key != "main" else []
    points = [m for m in start + own if as_number(m.metrics.get(metric)) is not None]
    return sorted(points, key=lambda m: m.iteration) if own else []


def _accuracy_trace(
    metric: str, style: Series, points: Sequence[Model], *, shift: float
) -> dict[str, Any]:
    values = [float(m.metrics[metric]) for m in points]
    intervals = [
        _interval(m.metrics.get(f"{metric}_ci"), v) for m, v in zip(points, values, strict=True)
    ]
    # The start belongs to the main series, which draws its interval: once is enough.
    shown = [style.key == "main" or m.iteration > 0 for m in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "meta": style.key,
        "name": style.label,
        "x": [m.iteration + shift * (m.iteration > 0) for m in points],
        "y": values,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [(i[1] - v) * s for i, v, s in zip(intervals, values, shown, strict=True)],
            "arrayminus": [
                (v - i[0]) * s for i, v, s in zip(intervals, values, shown, strict=True)
            ],
            "thickness": 1.5,
            "width": 4,
            "color": style.color,
        },
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {
            "color": style.color,
            "symbol": style.symbol,
            "size": [8 if s else 0 for s in shown],
        },
        "customdata": [
            [_plain(visible(m.name)), *i] for m, i in zip(points, intervals, strict=True)
        ],
        "hovertemplate": "%{customdata[0]}: %{y:.1%} "
        "[%{customdata[1]:.1%}, %{customdata[2]:.1%}]<extra></extra>",
    }


def _rows(training: Training, curve: Curve) -> tuple[Mapping[str, Any], ...]:
    return training.probes if curve.key.startswith("probe/") else training.log


def _curve_trace(curve: Curve, training: Training, style: Series) -> dict[str, Any]:
    log = _rows(training, curve)
    rows = log[:: thinned(log)]
    color = curve.color or style.color
    name = f"{style.label}, {curve.name}" if curve.name else style.label
    return {
        "type": "scatter",
        "mode": "lines" if len(rows) > 1 else "markers",
        "meta": style.key,
        "name": name,
        "x": [row["step"] for row in rows],
        "y": [as_number(row.get(curve.key)) for row in rows],
        "line": {"color": color, "dash": style.dash, "width": 1.75},
        "marker": {"color": color},
        "hovertemplate": f"%{{y:.4~g}} {_plain(name)}<extra></extra>",
    }


def _bar_trace(
    label: str, histogram: Mapping[str, Any], sign: tuple[str, str, str]
) -> dict[str, Any]:
    """Bars side by side within a bin; a bin beyond the last edge holds what exceeds it."""
    key, color, name = sign
    edges = histogram["edges"]
    bins = [(low, high, f"weight {low:g} to {high:g}") for low, high in pairwise(edges)]
    step = bins[-1][1] - bins[-1][0]
    bins.append((edges[-1], edges[-1] + step, f"weight above {edges[-1]:g}"))
    half = step * 0.42
    return {
        "type": "bar",
        "meta": label,
        "name": name,
        "x": [(low + high) / 2 for low, high, _ in bins],
        "y": list(histogram[key])[: len(bins)],
        "width": half,
        "offset": -half if key == "positive" else 0,
        "customdata": [text for _, _, text in bins],
        "marker": {"color": color, "line": {"width": 0}},
        "hovertemplate": f"%{{y}} {name}, %{{customdata}}<extra></extra>",
    }


def _layout(*, xtitle: str, tickformat: str) -> dict[str, Any]:
    axis = {
        "gridcolor": "--line",
        "linecolor": "--line",
        "zerolinecolor": "--axis",
        "automargin": True,
        "fixedrange": True,
        "title": {"standoff": 8, "font": {"size": 12}},
    }
    x = axis | {"title": {"text": xtitle, "standoff": 8, "font": {"size": 12}}, "showgrid": False}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--muted"},
        "margin": {"l": 44, "r": 12, "t": 8, "b": 36},
        "height": 230,
        "showlegend": False,
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "--surface", "bordercolor": "--line", "font": {"color": "--ink"}},
        "xaxis": x,
        "yaxis": axis | {"tickformat": tickformat, "nticks": 6, "exponentformat": "e"},
    }


def _iteration_range(models: Sequence[Model]) -> list[float]:
    iterations = [m.iteration for m in models]
    return [min(iterations) - 0.25, max(iterations) + 0.25]


def _metric_caption(metric: str) -> str:
    kind, _, k = metric.partition("@")
    captions = {
        "pass": "Chance that one sampled completion is correct"
        if k == "1"
        else f"Chance that at least one of {k} sampled completions is correct, unbiased estimate",
        "maj": f"Share of problems where the commonest answer of {k} samples is correct",
        "greedy": "Share of problems that the likeliest completion solves",
        "invalid": "Share of samples without a readable answer; lower is better",
        "truncated": "Share of samples that were truncated at the token limit; lower is better",
    }
    return f"{captions.get(kind, metric)}; bars are 95 % bootstrap intervals over problems."


def _interval(value: Any, middle: float) -> tuple[float, float]:
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = (as_number(end) for end in value)
        if low is not None and high is not None:
            return low, high
    return middle, middle


def _is_histogram(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), list) and value[key] for key in ("edges", "positive", "negative")
    )


def _plain(text: str) -> str:
    """A name inside a hover template, where `<`, `&` and `%{` have a meaning of their own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")
