from pathlib import Path

import pytest
from make_run import make_run
from report_page import Page, parse

from topr.report import write_report


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run. Read only: tests that change it copy it."""
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="session")
def report(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(whole_run, tmp_path_factory.mktemp("out") / "page.html")


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    return parse(report.read_text(encoding="utf-8"))
