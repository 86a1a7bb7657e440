"""The page in a real browser that can resolve no host: its scripts run, no other does."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from make_run import make_run
from report_page import Page, parse

from topr.report import write_report
from topr.report.read import read_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome"
)


def opened(report: Path, profile: Path, address: str = "", *, title: str = "quickstart") -> Page:
    """The page after its scripts ran. Whatever was refused or failed is an error here."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            "--dump-dom",
            report.as_uri() + address,
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    console = [
        line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line
    ]
    assert console == []
    page = parse(done.stdout.decode("utf-8"))
    (html,) = page.attributes("html")
    assert "data-pwned" not in html
    assert f"{title} · topr report" in page.text  # which a completion tries to change
    assert len(page.scripts) == 5
    return page


def classes(page: Page, name: str) -> list[dict]:
    return [a for _, a in page.elements if name in (a.get("class") or "").split()]


def test_the_page_browses_without_a_network(report, whole_run, tmp_path):
    page = opened(report, tmp_path)
    shown = page.data["sources"][0]["problems"]
    assert len(classes(page, "start")) == len(shown)
    assert len(classes(page, "rollout")) == 2 * 17  # before and after
    said = f"{len(shown)} problems of the {len(shown)} on this page; the whole set: 48 problems"
    assert said in page.text
    assert "The whole prompt, as the model saw it" not in page.text  # it is what is asked


def test_what_a_model_wrote_is_text_formulas_and_a_little_markdown(report, tmp_path):
    page = opened(report, tmp_path, "#show=base&p=arithmetic-test-00000")
    for text in (
        "</script><script>document.documentElement.dataset.pwned='1'</script>",
        "The answer is 1⟨U+202E⟩2",
        "[link](javascript:alert(1)) ![i](http://example.org/x.png)",
        "bold <script>alert(1)</script> and code and it",
        "<b>x</b>",
        "and $5 or $6,",
        "* 4 = 8",
        "cost = '$x$'\n  total  =  '\\[ y\n  z \\]'数",  # code as it is
        "$$\n𝑥  \\unknown\n$$ ends",  # no formula that is known
    ):
        assert text in page.text
    formulas = [a.get("aria-label") for a in page.attributes("math")]
    assert r"$\overline{xx}$" in formulas  # after a letter that is not of ASCII
    assert "$x$" not in formulas
    tags = {tag for tag, _ in page.elements}
    assert {"math", "mfrac", "msqrt", "strong", "em", "code"} <= tags
    assert not {"img", "iframe", "object", "embed", "form", "base", "b-x"} & tags
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "javascript:" not in (attributes.get("href") or "")
        if tag in ("math", "mfrac", "mrow", "mi", "mtext"):
            assert not {"href", "style", "class", "id"} & attributes.keys()
    plain = opened(report, tmp_path, "#show=base&p=arithmetic-test-00000&plain=1")
    assert "math" not in {tag for tag, _ in plain.elements}
    assert "**bold <script>alert(1)</script>** and `code` and *it*" in plain.text


def test_the_address_chooses_what_is_shown(report, whole_run, tmp_path):
    run = read_run(whole_run)
    before, after = ({p.problem_id: p for p in s.problems} for s in run.sources[:2])
    lost = [i for i in before if before[i].right and not after[i].right]
    address = "#show=topr+%C2%B7+iteration+1&next=base&change=lost&sort=text"
    page = opened(report, tmp_path, address)
    assert len(classes(page, "start")) == len(lost)
    noun = "problem" if len(lost) == 1 else "problems"
    assert re.search(rf"(^|\s){len(lost)} {noun} of the {len(before)} on this page", page.text)
    found = opened(report, tmp_path, "#show=base&search=NULL+undefined")
    assert len(classes(found, "start")) == 1
    assert "null undefined" in found.text
    assert len(found.attributes("mark")) == 1


def test_the_browser_finds_runs_with_odd_names(tmp_path):
    given = {"problems": 2, "steps": 1, "iterations": 1, "hostile": False}
    names = ("a  b", "a\u202e\tb")
    runs = [make_run(tmp_path / str(n), called=name, **given) for n, name in enumerate(names)]
    report = write_report(runs, tmp_path / "two.html")
    links = [a["href"] for a in parse(report.read_text(encoding="utf-8")).attributes("a")]
    address = next(link for link in links if link.startswith("#show="))
    page = opened(report, tmp_path / "profile", address, title="a  b and a⟨U+202E⟩\tb")
    assert len(classes(page, "rollout")) == 2 * 17
    for name in ("a  b", "a⟨U+202E⟩\tb"):
        assert f"{name} · topr" in page.text.split("Gold answer")[1]


def test_examples_show_tokens_and_the_weight_with_its_reason(report, tmp_path):
    page = opened(report, tmp_path, "#show=topr+%C2%B7+iteration+1%2C+training+examples")
    assert len(classes(page, "token")) > 10
    assert "weight 1.00 (positive: always 1)" in page.text or "(negative: ρ = e^" in page.text
