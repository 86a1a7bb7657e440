"""The report's figures: which values are drawn, in which colours, on which axes.

How a chart is drawn is in `topr.report.svg`. A training is a figure of its own for each panel,
with every logged value; trainings are compared by their running means alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from topr.report.contents import Model, Training
from topr.report.panels import PANELS, SIGNED, Panel, style_of
from topr.report.reader import as_mapping
from topr.report.svg import DASHES, Axis, Plane, Point, smooth, thin
from topr.report.text import as_number, plural, visible

POINTS, MEANS = 300, 100
"""Points drawn of one curve, and of its running mean."""
SMOOTHED = 20
"""A log of fewer rows has no running mean; in others it reaches over a twentieth either way."""
_SERIES = 6
"""Custom properties --series-0 ... of the style sheet; further series start again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure: what it is called, how to read it, and the drawing."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """How one model or training is drawn, the same in every figure."""

    label: str
    color: str
    dash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFigures:
    """The figures of one training."""

    label: str
    note: str
    panels: tuple[Figure, ...]
    histograms: tuple[Figure, ...]


def model_series(models: Sequence[Model]) -> dict[str, Series]:
    """Return how each series of models is drawn: a loop's own models are one."""
    names: dict[str, str] = {}
    for model in models:
        if model.iteration > 0 or model.series not in names:
            names[model.series] = model.name
    return {
        key: Series(
            label=name, color=f"--series-{number % _SERIES}",
            dash=DASHES[number % len(DASHES)],
        )
        for number, (key, name) in enumerate(names.items())
    }  # fmt: skip


def accuracy_figures(models: Sequence[Model], metrics: Sequence[str]) -> list[Figure]:
    """Return one figure per metric: its value over iterations with 95 % intervals."""
    figures = []
    for metric in metrics:
        known = [m for m in models if as_number(m.metrics.get(metric)) is not None]
        if known:
            values = [v for m in known for v in (m.metrics[metric], *(m.interval(metric) or ()))]
            last = max(m.iteration for m in known)
            plane = Plane(
                x=Axis(title="iteration", low=-0.3, high=last + 0.3, whole=True),
                y=Axis.around(values, zero=True, title="%", percent=True),
            )
            marks = _accuracy_marks(plane, known, metric, model_series(models))
            title = visible(metric)
            figures.append(
                Figure(title=title, caption=_caption(metric), svg=plane.draw(marks, title=title))
            )
    return figures


def _accuracy_marks(
    plane: Plane, models: Sequence[Model], metric: str, styles: Mapping[str, Series]
) -> list[Markup]:
    """A series starts where its training started: at the model of iteration 0 of its run.

    Points of one iteration stand side by side, so that their intervals can be told apart.
    """
    lines, points = [], []
    for number, (key, style) in enumerate(styles.items()):
        own = [m for m in models if m.series == key]
        start = [m for m in models if own and m.iteration == 0 and m.run == own[0].run]
        shift = 0.05 * (number - (len(styles) - 1) / 2)
        line: list[Point] = []
        for model in sorted({id(m): m for m in start + own}.values(), key=lambda m: m.iteration):
            x, y = model.iteration + shift * (model.iteration > 0), float(model.metrics[metric])
            line.append((x, y))
            if model.series == key:
                ends = model.interval(metric)
                says = f"{model.name}: {100 * y:.1f} %"
                says += f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
                points.append(plane.point(x, y, ends, says=says, color=style.color))
        lines.append(plane.line(line, name=style.label, color=style.color, dash=style.dash))
    return lines + points


def training_figures(trainings: Sequence[Training]) -> list[TrainingFigures]:
    """Return the figures of each training, by panel."""
    return [
        TrainingFigures(
            label=training.label,
            note=plural(len(training.log), "logged step"),
            panels=tuple(
                figure for panel in PANELS if (figure := _panel(panel, training)) is not None
            ),
            histograms=tuple(_histograms(training)),
        )
        for training in trainings
    ]


def training_series(trainings: Sequence[Training]) -> list[Series]:
    """Return how each training is drawn where several are: by its own colour and dash."""
    return [
        Series(
            label=training.label, color=f"--series-{number % _SERIES}",
            dash=DASHES[number % len(DASHES)],
        )
        for number, training in enumerate(trainings)
    ]  # fmt: skip


def overlays(trainings: Sequence[Training]) -> list[Figure]:
    """Return the figures of several trainings together: running means alone."""
    figures = []
    for panel in PANELS if len(trainings) > 1 else ():
        curves = []
        for training, style in zip(trainings, training_series(trainings), strict=True):
            for key in panel.keys:
                points = _smoothed(panel, _points(training, key))
                if points:
                    color, sign = style_of(key) or (style.color, "")
                    name = f"{style.label}, {sign}" if sign else style.label
                    curves.append((points, name, color, style.dash))
        if curves:
            plane = _plane(panel, [points for points, *_ in curves])
            marks = [
                plane.line(thin(points, MEANS), name=name, color=color, dash=dash)
                for points, name, color, dash in curves
            ]
            svg = plane.draw(marks, title=panel.title)
            figures.append(Figure(title=panel.title, caption=panel.caption, svg=svg))
    return figures


def _panel(panel: Panel, training: Training) -> Figure | None:
    """Every logged value, faint where they are noisy, and the running mean over them."""
    curves = {key: points for key in panel.keys if (points := _points(training, key))}
    if not curves:
        return None
    plane = _plane(panel, list(curves.values()))
    marks = []
    for key, points in curves.items():
        color, name = style_of(key) or ("--series-0", panel.unit)
        means = _smoothed(panel, points)
        faint = means != points
        marks.append(plane.line(thin(points, POINTS), name=name, color=color, faint=faint))
        if faint:
            name = f"{name}, running mean"
            marks.append(plane.line(thin(means, MEANS), name=name, color=color))
    return Figure(
        title=panel.title, caption=panel.caption, svg=plane.draw(marks, title=panel.title)
    )


def _points(training: Training, key: str) -> list[Point]:
    rows = training.probes if key.startswith("probe/") else training.log
    points = [(float(row["step"]), as_number(row.get(key))) for row in rows]
    return points if any(y is not None for _, y in points) else []


def _smoothed(panel: Panel, points: list[Point]) -> list[Point]:
    return smooth(points, len(points) // 20) if panel.noisy and len(points) >= SMOOTHED else points


def _plane(panel: Panel, curves: Sequence[Sequence[Point]]) -> Plane:
    steps = [x for points in curves for x, _ in points]
    values = [y for points in curves for _, y in points if y is not None]
    low, high = min(steps), max(steps)
    room = max(1, abs(low) / 10) if low == high else 0
    return Plane(
        x=Axis(title="optimizer step", low=low - room, high=high + room, whole=True),
        y=Axis.around(values, zero=panel.from_zero, title=panel.unit, percent=panel.percent),
    )


def _histograms(training: Training) -> list[Figure]:
    """The histograms of weights at the first, the middle and the last logged step."""
    found = [row for row in training.log if _is_histogram(row.get("weight_histogram"))]
    picked = (
        {when: found[round(place * (len(found) - 1))] for when, place in _WHEN} if found else {}
    )
    return [
        _histogram(f"{when} logged step: {row['step']}", row["weight_histogram"])
        for when, row in picked.items()
    ]


_WHEN = (("First", 0.0), ("Middle", 0.5), ("Last", 1.0))


def _histogram(title: str, histogram: Mapping[str, Any]) -> Figure:
    """Bars side by side within a bin. Bins share weights of 0 to 1 evenly; the last is above."""
    counts = {key: list(histogram[key]) for key, *_ in SIGNED}
    inside = len(histogram["positive"]) - 1
    step = 1 / inside
    bins = [(i * step, f"weight {i * step:g} to {(i + 1) * step:g}") for i in range(inside)]
    bins.append((1.0, "weight above 1"))
    plane = Plane(
        x=Axis(title="weight", low=0.0, high=1.0 + step),
        y=Axis.around([n for row in counts.values() for n in row], zero=True, title="completions"),
    )
    marks = [
        plane.bar(
            low + step * (0.08 + 0.42 * side), low + step * (0.5 + 0.42 * side), count,
            says=f"{plural(int(count), 'completion')}, {name}, {where}", color=color,
        )
        for side, (key, color, name) in enumerate(SIGNED)
        for (low, where), count in zip(bins, counts[key], strict=False)
        if count
    ]  # fmt: skip
    return Figure(title=title, caption="", svg=plane.draw(marks, title=title))


def _is_histogram(value: Any) -> bool:
    """Whether it has as many counts of both signs, two or more."""
    lists: list[Any] = [as_mapping(value).get(key) for key, *_ in SIGNED]
    return all(
        isinstance(found, list)
        and len(found) == len(lists[0]) > 1
        and all(as_number(n) is not None for n in found)
        for found in lists
    )


def _caption(metric: str) -> str:
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
    return (
        f"{captions.get(kind, visible(metric))}; bars are 95 % bootstrap intervals over problems."
    )
