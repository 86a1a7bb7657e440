"""The page as a file: what stands in it, and what cannot happen in it."""

import base64
import dataclasses
import hashlib
import json
import re

import pytest
from make_run import HOSTILE

from topr.report.read import read_run
from topr.report.rollouts import EVALUATION_PROBLEMS
from topr.report.tables import facts
from topr.report.text import clip, visible


def test_nothing_on_the_page_points_outside(page):
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "srcset", "poster", "formaction"):
                assert value is not None
                assert value.startswith("#"), f"<{tag} {name}={value}>"
    assert not {"link", "iframe", "img", "object", "embed", "base"} & {t for t, _ in page.elements}


def test_the_style_sheet_loads_nothing(report):
    style = report.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_the_policy_allows_our_scripts_and_no_connection(page):
    policy = next(
        a["content"]
        for a in page.attributes("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert set(directives) == {
        "default-src", "script-src", "style-src", "img-src", "base-uri", "form-action",
    }  # fmt: skip
    hashes = [
        base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code
    ]
    assert len(hashes) == 4
    assert directives["script-src"].split() == [f"'sha256-{value}'" for value in hashes]


def test_no_script_makes_elements_of_text(page):
    code = "\n".join(page.code)
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "DOMParser",
    ):
        assert word not in code


def test_hostile_strings_are_text_and_nothing_else(page):
    assert len(page.scripts) == 5
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    shown = {completion.get("text", "") for completion in page.completions()}
    for text in HOSTILE:
        assert clip(visible(text), head=4000) in shown
    assert "A small model gets better at word problems <b>offline</b>" in page.text
    assert "b" not in {tag for tag, _ in page.elements}


def test_no_direction_or_control_character_reaches_the_page(report, page):
    bidi = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00\x1b]")
    assert not bidi.search(report.read_text(encoding="utf-8"))
    assert not [c for c in page.completions() if bidi.search(c.get("text", ""))]


def test_figures_are_there_without_a_script_and_say_what_they_are(page):
    charts = [a for a in page.attributes("svg") if a.get("class") == "chart"]
    assert len(charts) == 6 + 3 + 9 + 4 * (9 + 3)
    assert all(chart["aria-label"] for chart in charts)


def test_the_page_is_small(report):
    assert report.stat().st_size < 1_000_000


def test_numbers_of_the_summary_are_on_the_page(page, whole_run):
    summary = json.loads((whole_run / "summary.json").read_text(encoding="utf-8"))
    for model in summary["models"]:
        low, high = model["pass@1_ci"]
        assert f"{100 * model['pass@1']:.1f}\u202f%" in page.text
        assert f"[{100 * low:.1f}, {100 * high:.1f}]" in page.text
    for found in summary["comparisons"]:
        assert f"{100 * found['difference']:+.1f} points".replace("-", "−") in page.text


def test_the_gap_of_log_mu_stands_by_the_training(page):
    assert (
        "before the first step; at 1 a ratio is off by a factor e. topr · iteration 1: 2.5e-06 "
        in (page.text)
    )
    assert page.text.count("0.031 a completion at most.") == 2  # of the trainings that know it


def test_header_says_what_was_run_and_on_what(page):
    for text in (
        "quickstart",
        "CPU, 1 thread",
        "torch 2.13.0, transformers 5.23.0",
        "0.1.0 0123456789",
    ):
        assert text in page.text


def test_the_browser_holds_a_bounded_part_and_knows_the_whole(page):
    data = page.data
    before, after = data["pairs"][0]
    assert (before, after) == ("base", "topr · iteration 2")
    evaluation = next(s for s in data["sources"] if s["label"] == after)
    assert EVALUATION_PROBLEMS <= len(evaluation["problems"]) <= 3 * EVALUATION_PROBLEMS
    assert evaluation["problems_total"] == 48
    assert evaluation["completions_total"] == 48 * 17
    first = evaluation["problems"][0]["completions"]
    assert [c.get("greedy", False) for c in first] == [True] + [False] * 16
    assert [c["sample"] for c in first[1:]] == list(range(16))
    shown = [[p["problem_id"] for p in s["problems"]] for s in data["sources"][:5]]
    assert all(ids == shown[0] for ids in shown)  # side by side


def test_training_examples_have_tokens_with_both_log_probabilities(page):
    source = next(s for s in page.data["sources"] if s["label"] == "sft, training examples")
    completion = source["problems"][1]["completions"][0]
    assert completion["tokens"][1] == " +"
    assert completion["tokens"][-1] == "</s>"
    for name in ("behavior", "policy"):
        assert len(completion[name]) == len(completion["tokens"]) == completion["length"]
        assert all(value < 0 for value in completion[name])


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({"devices": ["NVIDIA H100", "NVIDIA H100"]}, "2 × NVIDIA H100"),
        ({"devices": ["NVIDIA A10"], "cpu": {"threads": 8}}, "NVIDIA A10"),
        ({"devices": [], "cpu": {"threads": 8}}, "CPU, 8 threads"),
        ({}, None),
        ({"devices": 3, "cpu": "many"}, None),
    ],
)
def test_the_header_names_the_device_that_was_used(whole_run, environment, device):
    run = dataclasses.replace(read_run(whole_run), environment=environment)
    assert dict(facts(run)).get("Device") == device
