import json

import plotly.graph_objects as go
import pytest

from topr.report.contents import Model, Training
from topr.report.figures import (
    POINTS,
    accuracy_figures,
    histogram_figures,
    model_series,
    thinned,
    training_figures,
    training_series,
)


def model(name: str, iteration: int, value: float, interval: list[float] | None) -> Model:
    metrics = {"pass@1": value, "pass@1_ci": interval}
    return Model(name=name, iteration=iteration, comparison=name == "sft", metrics=metrics)


MODELS = (
    model("base", 0, 0.2, [0.1, 0.35]),
    model("topr", 1, 0.5, [0.4, 0.55]),
    model("sft", 1, 0.4, None),
)


def training(rows: list[dict]) -> Training:
    return Training(label="topr", model="topr", log=tuple(rows), probes=(), details={})


def test_intervals_are_drawn_from_their_ends_not_symmetrically():
    (figure,) = accuracy_figures(MODELS, ["pass@1"])
    main = next(trace for trace in figure.traces if trace["meta"] == "main")
    assert main["y"] == [0.2, 0.5]
    assert main["error_y"]["array"] == pytest.approx([0.15, 0.05])
    assert main["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1])


def test_a_comparison_starts_at_the_base_and_is_a_series_of_its_own():
    (figure,) = accuracy_figures(MODELS, ["pass@1"])
    sft = next(trace for trace in figure.traces if trace["meta"] == "sft")
    assert sft["y"] == [0.2, 0.4]
    assert [round(x) for x in sft["x"]] == [0, 1]
    assert sft["error_y"]["array"] == [0, 0]  # no interval was stored: none is made up
    main = next(trace for trace in figure.traces if trace["meta"] == "main")
    assert sft["line"]["color"] != main["line"]["color"]


def test_a_metric_that_nobody_has_makes_no_figure():
    assert accuracy_figures(MODELS, ["greedy"]) == []


def test_missing_and_infinite_values_are_gaps():
    log = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}]
    (figure,) = training_figures([training(log)], training_series([training(log)], MODELS))
    assert figure.traces[0]["y"] == [1.0, None, None]


def test_long_logs_are_thinned_to_a_bound_and_short_ones_left():
    assert thinned([{}] * POINTS) == 1
    assert thinned([{}] * (POINTS + 1)) == 2
    log = [{"step": i, "loss": 0.0} for i in range(10 * POINTS)]
    (figure,) = training_figures([training(log)], training_series([training(log)], MODELS))
    assert len(figure.traces[0]["x"]) == POINTS


def test_histograms_are_of_the_first_the_middle_and_the_last_step():
    log = []
    for step in (10, 20, 30):
        counts = {"edges": [0, 0.5, 1], "positive": [0, 3, 1], "negative": [step, 0, 0]}
        log.append({"step": step, "weight_histogram": counts})
    figures = histogram_figures([training(log)])
    assert [f.headings["topr"] for f in figures] == [
        "First logged step: 10", "Middle logged step: 20", "Last logged step: 30",
    ]  # fmt: skip
    positive, negative = figures[1].traces
    assert positive["x"] == [0.25, 0.75, 1.25]
    assert positive["customdata"][-1] == "weight above 1"
    assert negative["y"] == [20, 0, 0]


def test_positives_and_negatives_have_the_same_colours_everywhere(page):
    for figure in page.data["figures"].values():
        for trace in figure["traces"]:
            color = (trace.get("line") or trace["marker"]).get("color") or trace["marker"]["color"]
            if "positives" in trace["name"]:
                assert color == "--positive"
            elif "negatives" in trace["name"]:
                assert color == "--negative"
            else:
                assert color.startswith("--series-")


def test_every_named_colour_is_in_the_style_sheet(report, page):
    style = report.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    named = set()

    def walk(value):
        if isinstance(value, str) and value.startswith("--"):
            named.add(value)
        for item in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            walk(item)  # fmt: skip

    walk(page.data["figures"])
    assert len(named) > 5
    for name in named:
        assert style.count(f"{name}: ") == 2, f"{name} needs a light and a dark value"


def test_plotly_accepts_every_figure(page):
    for figure in page.data["figures"].values():
        text = json.dumps({"data": figure["traces"], "layout": figure["layout"]})
        for name in (
            "--surface",
            "--line",
            "--axis",
            "--ink",
            "--muted",
            "--positive",
            "--negative",
        ):
            text = text.replace(f'"{name}"', '"#123456"')
        for number in range(6):
            text = text.replace(f'"--series-{number}"', '"#123456"')
        go.Figure(json.loads(text))  # raises on an unknown property or a value out of range


def test_a_run_without_a_trained_model_still_has_a_series():
    series = model_series(MODELS[:1])
    assert [style.label for style in series.values()] == ["base"]
    (figure,) = accuracy_figures(MODELS[:1], ["pass@1"])
    assert figure.traces[0]["y"] == [0.2]
