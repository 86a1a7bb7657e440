import re
from xml.etree import ElementTree

import pytest

from topr.report.contents import Model, Training
from topr.report.figures import (
    MEANS,
    POINTS,
    accuracy_figures,
    model_series,
    overlays,
    training_figures,
)
from topr.report.svg import BOTTOM, LEFT, RIGHT, TOP, Axis, Plane, smooth, thin


def model(name: str, iteration: int, value: float, interval: list[float] | None) -> Model:
    metrics = {"pass@1": value, "pass@1_ci": interval}
    return Model(
        name=name, label=name, iteration=iteration, comparison=name == "sft", metrics=metrics
    )


MODELS = (
    model("base", 0, 0.2, [0.1, 0.35]),
    model("topr", 1, 0.5, [0.4, 0.55]),
    model("sft", 1, 0.4, None),
)


def training(rows: list[dict], label: str = "topr") -> Training:
    return Training(label=label, log=tuple(rows), probes=(), details={})


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314  our own drawing


def paths(svg: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Values of each curve by name, in its unbroken pieces, read back from the drawing."""
    root = parse(svg)
    (x0, x1), (y0, y1) = ([float(v) for v in root.get(key).split()] for key in ("data-x", "data-y"))
    found = {}
    for path in root.iter("path"):
        if "line" in (path.get("class") or ""):
            pieces = []
            for pen, x, y in re.findall(r"([ML])([-\d.]+) ([-\d.]+)", path.get("d")):
                value = (
                    x0 + (float(x) - LEFT) / (RIGHT - LEFT) * (x1 - x0),
                    y0 + (BOTTOM - float(y)) / (BOTTOM - TOP) * (y1 - y0),
                )
                pieces += [[value]] if pen == "M" else []
                if pen == "L":
                    pieces[-1].append(value)
            found[path.get("data-name")] = pieces
    return found


def texts(svg: str) -> list[str]:
    return [node.text for node in parse(svg).iter("text")]


def titles(svg: str) -> list[str]:
    return [node.text for node in parse(svg).iter("title")]


def one_panel(rows: list[dict]):
    (found,) = training_figures([training(rows)])
    return found.panels[0]


def test_values_and_their_intervals_can_be_read_from_the_drawing():
    (figure,) = accuracy_figures(MODELS, ["pass@1"])
    assert titles(figure.svg) == [
        "base: 20.0 % [10.0, 35.0]", "topr: 50.0 % [40.0, 55.0]",
        "sft: 40.0 %",  # no interval was stored: none is made up
    ]  # fmt: skip
    bars = [g for g in parse(figure.svg).iter("g") if g.get("class") == "point"]
    assert [g.find("path") is not None for g in bars] == [True, True, False]


def test_a_comparison_starts_at_the_base_and_is_a_series_of_its_own():
    (figure,) = accuracy_figures(MODELS, ["pass@1"])
    found = paths(figure.svg)
    assert [y for _, y in found["topr"][0]] == pytest.approx([0.2, 0.5], abs=0.002)
    assert [y for _, y in found["sft"][0]] == pytest.approx([0.2, 0.4], abs=0.002)
    assert [round(x) for x, _ in found["sft"][0]] == [0, 1]
    colors = [style.color for style in model_series(MODELS).values()]
    assert len(set(colors)) == 2


def test_series_of_two_runs_each_start_at_their_own_base():
    from dataclasses import replace

    other = [replace(m, run="b", name=f"b {m.name}") for m in (*MODELS[:1], MODELS[1])]
    other[0] = replace(other[0], metrics={"pass@1": 0.3})
    (figure,) = accuracy_figures((*MODELS[:2], *other), ["pass@1"])
    assert [y for _, y in paths(figure.svg)["b topr"][0]] == pytest.approx([0.3, 0.5], abs=0.002)


def test_a_metric_that_nobody_has_makes_no_figure():
    assert accuracy_figures(MODELS, ["greedy"]) == []


def test_missing_and_infinite_values_are_gaps():
    log = [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": 2.0},
    ]  # fmt: skip
    (pieces,) = paths(one_panel(log).svg).values()
    assert [[round(x) for x, _ in piece] for piece in pieces] == [[1], [4]]


def test_noisy_curves_are_smoothed_and_every_value_stays_behind():
    log = [{"step": i, "loss": float(i % 2), "learning_rate": float(i % 2)} for i in range(40)]
    (found,) = training_figures([training(log)])
    raw, mean = (values[0] for values in paths(found.panels[0].svg).values())
    assert {round(y) for _, y in raw} == {0, 1}
    assert all(0.3 < y < 0.7 for _, y in mean)
    rate = next(figure for figure in found.panels if figure.title == "Learning rate")
    assert len(paths(rate.svg)) == 1  # a schedule is no noise


def test_long_logs_are_thinned_to_a_bound_and_spikes_stay():
    log = [{"step": i, "loss": 9.0 if i == 7777 else 0.0} for i in range(10 * POINTS)]
    log += [{"step": 10_000, "loss": 0.0}]
    log[777] = {"step": 777, "loss": 9.0}
    found = paths(one_panel(log).svg)
    raw, mean = (values[0] for values in found.values())
    assert len(raw) <= POINTS
    assert len(mean) <= MEANS
    assert max(y for _, y in raw) == pytest.approx(9.0, abs=0.1)


def test_axes_have_units_and_round_ticks():
    shown = texts(one_panel([{"step": 10 * i, "loss": 0.1 * i} for i in range(11)]).svg)
    assert "loss, nats" in shown
    assert "optimizer step" in shown
    assert {"0", "0.2", "1"} <= set(shown)
    assert {"0", "20", "100"} <= set(shown)


@pytest.mark.parametrize("row", [{"step": 1e99, "loss": 1.0}, {"step": 1, "loss": 5e-323}])
def test_one_value_of_any_size_has_a_figure(row):
    (((point,),),) = paths(one_panel([row]).svg).values()
    assert point[0] == pytest.approx(row["step"], rel=0.01)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-260, 3), (0, 1e-5), (12_000, 12_001), (-1e-9, 0), (0.2, 0.7)]
)
def test_ticks_are_few_and_inside(low, high):
    axis = Axis(title="", low=low, high=high)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    assert len({axis.label(tick) for tick in ticks}) == len(ticks) or low == 12_000


@pytest.mark.parametrize("values", [[0.0], [1e-4, 1e-4], [-3.0], [5.0, 7.0]])
def test_an_axis_around_constant_values_has_room(values):
    for zero in (False, True):
        axis = Axis.around(values, zero=zero, title="")
        assert axis.low < axis.high
        assert all(axis.low <= value <= axis.high for value in values)


def test_histograms_are_of_the_first_the_middle_and_the_last_step():
    log = []
    for step in (10, 20, 30):
        counts = {"positive": [0, 3, 1], "negative": [step, 0, 0]}
        log.append({"step": step, "weight_histogram": counts})
    (found,) = training_figures([training(log)])
    assert [figure.title for figure in found.histograms] == [
        "First logged step: 10", "Middle logged step: 20", "Last logged step: 30",
    ]  # fmt: skip
    assert titles(found.histograms[1].svg) == [
        "3 completions, positives, weight 0.5 to 1",
        "1 completion, positives, weight above 1",
        "20 completions, negatives, weight 0 to 0.5",
    ]


def test_trainings_are_laid_over_each_other_where_there_are_several():
    log = [{"step": i, "loss": float(i), "weight/negative": 0.5} for i in range(3)]
    assert overlays([training(log)]) == []
    loss, weight = overlays([training(log), training(log[:2], "sft")])
    assert list(paths(loss.svg)) == ["topr", "sft"]
    assert list(paths(weight.svg)) == ["topr, negatives", "sft, negatives"]


def test_positives_and_negatives_have_the_same_colours_everywhere(page):
    styles = {
        (a.get("data-name") or ""): a["style"] for a in page.attributes("path") if "style" in a
    }
    assert any("positives" in name for name in styles)
    for name, style in styles.items():
        kind = next((k for k in ("positive", "negative") if f"{k}s" in name), "series-")
        assert f"var(--{kind}" in style


def test_every_named_colour_is_in_the_style_sheet(report):
    html = report.read_text(encoding="utf-8")
    style = html.split("<style>")[1].split("</style>")[0]
    named = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    assert len(named) > 5
    for name in named:
        assert f"{name}: light-dark(" in style or name == "--strength", f"{name} has no dark value"


def test_a_name_cannot_leave_its_attribute():
    plane = Plane(x=Axis(title="<x>", low=0, high=1), y=Axis(title='"', low=0, high=1))
    line = plane.line([(0, 0.5), (1, 1.0)], name='"><script>', color="--series-0")
    svg = plane.draw([line], title="'\"<b>")
    (path,) = (p for p in parse(svg).iter("path") if p.get("data-name"))
    assert path.get("data-name") == '"><script>'
    assert "<script>" not in svg


def test_a_run_without_a_trained_model_still_has_a_series():
    assert [style.label for style in model_series(MODELS[:1]).values()] == ["base"]
    (figure,) = accuracy_figures(MODELS[:1], ["pass@1"])
    assert titles(figure.svg) == ["base: 20.0 % [10.0, 35.0]"]


def test_means_and_thinning_keep_the_order_of_steps():
    points = [(float(i), float((7 * i) % 5)) for i in range(100)]
    for found in (smooth(points, 3), thin(points, 10), thin(smooth(points, 3), 10)):
        assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert len(thin(points, 10)) <= 10
