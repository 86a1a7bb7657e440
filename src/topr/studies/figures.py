"""The figures of a study, as PNG. Reads results, computes means over seeds, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topr.config.study import BASE
from topr.errors import ConfigError
from topr.studies.results import Cell, Point, Results
from topr.studies.summary import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#0072b2", "#d55e00", "#2a9d8f", "#9a4fa0", "#8a7a1f", "#b5446e", "#5b6ee1", "#1c2026",
    "#7fb069", "#e6a700", "#56b4e9", "#8a919b",
)  # fmt: skip
MUTED = "#5a6470"
SMOOTHED = 3
"""Points of the log on either side that a curve's running mean takes in."""
LONG_WAY = -20.0
"""A log-ratio below this, in nats, has the axis in powers of ten beyond 1."""
CURVES = {
    "log_ratio/positive": "log-ratio of positives, nats",
    "log_ratio/negative": "log-ratio of negatives, nats",
    "weight/negative": "mean weight of negatives",
    "weight/negative_below_0.01": "negatives with weight < 0.01, share",
    "effective_sample_size": "effective sample size",
}
"""What a key of the training log is, for people."""


def check_matplotlib() -> None:
    """Raise a ConfigError where figures cannot be drawn: before anything is computed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the figures of a study need matplotlib: pip install matplotlib"
        ) from error


def draw_figures(results: Results, directory: Path, prefix: str = "") -> list[Path]:
    """Draw the figures that a study's cells give, and return their files."""
    made = []
    for name, draw in _figures(results).items():
        figure = draw(results)
        path = directory / f"{prefix}{name}.png"
        figure.savefig(path, dpi=120, metadata={"Software": None})
        made.append(path)
    return made


def _figures(results: Results) -> dict[str, Callable[[Results], "Figure"]]:
    """Return which figures there is something to show in."""
    study = results.study
    found: dict[str, Callable[[Results], Figure]] = {"final": final_figure}
    logged = any(key in cell.log for cell in results.cells for key in study.curves)
    if logged or _has_snapshots(results):
        found["training"] = training_figure
    if any(arm.series is not None for arm in study.arms.values()):
        found["axis"] = axis_figure
    if any(len({point.iteration for point in cell.points}) > 1 for cell in results.cells):
        found["iterations"] = iterations_figure
    return found


def final_figure(results: Results) -> "Figure":
    """Final accuracy: a dot per seed, mean and interval per arm."""
    metric = results.study.metric
    arms = [arm for arm in results.arms if results.final(arm, metric) is not None]
    figure, (axes,) = _subplots(1, height=0.9 + 0.36 * len(arms))
    for row, arm in enumerate(arms):
        values = [100 * cell.final.metrics[metric] for cell in results.of(arm)]
        found = estimate(values)
        colour = MUTED if arm == BASE else _colour(results, arm)
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        if len(values) > 1:
            ends = [max(0.0, found.low), min(100.0, found.high)]  # of a share
            axes.plot(ends, [row, row], color=colour, linewidth=1.6)
        axes.plot([found.mean], [row], "o", color=colour, markersize=6.5)
    axes.set_yticks(range(len(arms)), [results.label(arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{metric}, % (held-out problems)")
    return figure


def training_figure(results: Results) -> "Figure":
    """Accuracy and invalid share of the models on their way, and the log's curves."""
    ways = (results.study.metric, "invalid") if _has_snapshots(results) else ()
    curves = [key for key in results.study.curves if any(key in c.log for c in results.cells)]
    figure, panels = _subplots(len(ways) + len(curves))
    for axes, metric in zip(panels, ways, strict=False):
        _draw_metric(results, axes, metric)
        axes.set_title(f"{metric}, %", fontsize=10, loc="left")
    for axes, key in zip(panels[len(ways) :], curves, strict=True):
        for arm in results.arms:
            _draw_curve(results, axes, arm, key)
        axes.set_title(CURVES.get(key, key), fontsize=10, loc="left")
        if key.startswith("log_ratio/") and _lowest(results, key) < LONG_WAY:
            axes.set_yscale("symlog", linthresh=1.0)
            axes.yaxis.set_major_formatter("{x:g}")
    for axes in panels:
        axes.set_xlabel("optimizer steps")
    _legend(figure, panels[0])
    return figure


def _lowest(results: Results, key: str) -> float:
    return min(value for cell in results.cells for value in cell.log.get(key, ()))


def _draw_curve(results: Results, axes: "Axes", arm: str, key: str) -> None:
    """Draw a key of the log: faint for each seed, and the running mean over all of them."""
    cells = [cell for cell in results.of(arm) if key in cell.log]
    colour = _colour(results, arm) if cells else MUTED
    for cell in cells:
        axes.plot(cell.log["step"], cell.log[key], color=colour, linewidth=0.6, alpha=0.2)
    rows = list(zip(*(cell.log[key] for cell in cells), strict=False))
    means = [sum(row) / len(row) for row in rows]
    smooth = [
        sum(part) / len(part)
        for part in (means[max(0, i - SMOOTHED) : i + SMOOTHED + 1] for i in range(len(means)))
    ]
    if smooth:
        steps = cells[0].log["step"][: len(smooth)]
        axes.plot(steps, smooth, color=colour, linewidth=1.4, label=results.label(arm))


def _draw_metric(results: Results, axes: "Axes", metric: str) -> None:
    """Draw the mean over seeds of a metric, from the starting model to the end of training."""
    base = results.final(BASE, metric)
    for arm in results.arms:
        if arm == BASE:
            continue
        cells = results.of(arm)
        last = max((c.log["step"][-1] for c in cells if c.log.get("step")), default=0.0)

        def place(point: Point, last: float = last) -> float:
            return last if point.step is None else point.step

        xs, means = _means(cells, place, lambda point: 100 * point.metrics[metric])
        start = [] if base is None else [100 * base.mean]
        axes.plot(
            [0.0] * len(start) + xs, start + means, "o-", markersize=3.5,
            color=_colour(results, arm), label=results.label(arm),
        )  # fmt: skip


def _has_snapshots(results: Results) -> bool:
    return any(point.step is not None for cell in results.cells for point in cell.points)


def axis_figure(results: Results) -> "Figure":
    """Accuracy over the study's axis, a line per series."""
    study = results.study
    figure, (axes,) = _subplots(1)
    series = list(dict.fromkeys(arm.series for arm in study.arms.values() if arm.series))
    by_tokens = False
    for number, name in enumerate(series):
        rows = []
        for key, arm in study.arms.items():
            cells = results.of(key)
            if arm.series != name or not cells:
                continue
            by_tokens |= arm.x is None
            tokens = estimate([cell.final.tokens for cell in cells]).mean
            found = estimate([100 * cell.final.metrics[results.study.metric] for cell in cells])
            rows.append((tokens if arm.x is None else arm.x, found))
        rows.sort(key=lambda row: row[0])
        xs, means = [x for x, _ in rows], [found.mean for _, found in rows]
        spread = [(f.mean - f.low, f.high - f.mean) if f.seeds > 1 else (0, 0) for _, f in rows]
        axes.errorbar(
            xs, means, yerr=list(zip(*spread, strict=True)), fmt="o-", capsize=2.5,
            markersize=4.5, linewidth=1.4, color=COLOURS[number], label=name,
        )  # fmt: skip
    base = results.final(BASE, results.study.metric)
    if base is not None:
        axes.axhline(100 * base.mean, color=MUTED, linestyle=":", label="starting model")
    axes.set_xscale("log" if by_tokens else study.scale)
    axes.set_xlabel("completion tokens drawn for training" if by_tokens else study.axis)
    axes.set_title(f"{results.study.metric}, %", fontsize=10, loc="left")
    _legend(figure, axes)
    return figure


def iterations_figure(results: Results) -> "Figure":
    """Accuracy by iteration and by completion tokens drawn."""
    figure, panels = _subplots(2)
    base = results.final(BASE, results.study.metric)
    start = [] if base is None else [100 * base.mean]
    for axes, place, what in (
        (panels[0], lambda point: float(point.iteration), "iteration"),
        (panels[1], lambda point: float(point.tokens), "completion tokens drawn for training"),
    ):
        for arm in results.arms:
            if arm == BASE:
                continue
            ends = [
                Cell(
                    arm=c.arm, seed=c.seed, rate=c.rate,
                    points=tuple(p for p in c.points if p.step is None),
                )
                for c in results.of(arm)
            ]  # fmt: skip
            xs, means = _means(ends, place, lambda point: 100 * point.metrics[results.study.metric])
            axes.plot(
                [0.0] * len(start) + xs, start + means, "o-", markersize=4,
                color=_colour(results, arm), label=results.label(arm),
            )  # fmt: skip
        axes.set_xlabel(what)
        axes.set_title(f"{results.study.metric}, %", fontsize=10, loc="left")
    _legend(figure, panels[0])
    return figure


def _means(
    cells: Sequence[Cell], place: Callable[[Point], float], value: Callable[[Point], float]
) -> tuple[list[float], list[float]]:
    """Return mean place and mean value over cells of their first points, second points, ..."""
    rows = list(zip(*(cell.points for cell in cells), strict=False))
    xs = [sum(map(place, row)) / len(row) for row in rows]
    return xs, [sum(map(value, row)) / len(row) for row in rows]


def _colour(results: Results, arm: str) -> str:
    return COLOURS[list(results.study.arms).index(arm) % len(COLOURS)]


def _subplots(count: int, height: float = 3.4) -> tuple["Figure", list["Axes"]]:
    """Return a figure of up to six panels, at most three in a row."""
    from matplotlib.figure import Figure

    columns = count if count <= 3 else -(-count // 2)
    rows = -(-count // columns)
    width = {1: 6.4, 2: 9.0, 3: 11.5}[columns]
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[:count]:
        axes.grid(True, color="#e3e5e8", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure, panels[:count]


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
