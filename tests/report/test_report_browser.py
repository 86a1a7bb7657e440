"""The page in a real browser that can resolve no host: its script runs, no other does."""

import shutil
import subprocess
from pathlib import Path

import pytest
from report_page import parse

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome")
def test_the_page_draws_and_browses_without_a_network(report: Path, tmp_path: Path):
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
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
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            report.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    # Refused connections and scripts, and errors of the page's script, all come out here.
    console = [
        line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line
    ]
    assert console == []

    page = parse(done.stdout.decode("utf-8"))
    elements = [attributes for _, attributes in page.elements]
    (html,) = page.attributes("html")
    assert "data-pwned" not in html
    assert "quickstart · topr report" in page.text  # the title, which a completion tries to change
    assert len(page.scripts) == 3

    assert len(page.attributes("button")) == 40
    rollouts = [a for a in elements if a.get("class") == "rollout"]
    assert len(rollouts) == 17
    assert "This page holds 40 of 48 problems and 680 of 816 completions" in page.text
    assert "</script><script>document.documentElement.dataset.pwned='1'</script>" in page.text
    assert "The answer is 1⟨U+202E⟩2" in page.text
