"""What was read, as one HTML file that needs nothing else. No file of a run is read here.

Strings of models and users reach the page on two ways only: through the template, which escapes
them, and as JSON in a script element that is not run, from which the page's own script writes
them with `textContent`. The page's Content-Security-Policy names the two scripts that may run by
their hashes and allows no connection at all.
"""

import base64
import hashlib
from dataclasses import asdict
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from topr._version import __version__
from topr.report import data, figures, tables
from topr.report.contents import Run
from topr.report.text import json_for_script, visible

GENERATOR = "topr report"
"""Content of the page's `generator` element: how a report of ours is told from other files."""
SCRIPTS = ("figures.js", "report.js")


def render(run: Run) -> str:
    """Return the report as HTML."""
    environment = Environment(
        loader=PackageLoader("topr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": lambda value: visible(str(value)),
        "percent": tables.percent,
        "number": tables.number,
    }
    scripts = [_script_text(_asset(name)) for name in SCRIPTS]
    return environment.get_template("report.html.j2").render(
        **_view(run),
        generator=GENERATOR,
        version=__version__,
        style=Markup(_asset("report.css")),  # noqa: S704  our own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        script_hashes=[_hash(script) for script in scripts],
        data=Markup(json_for_script(_page_data(run))),  # noqa: S704  escaped there
    )


def _view(run: Run) -> dict[str, Any]:
    """What the template shows."""
    return {
        "run": run,
        "facts": tables.facts(run),
        "headline": tables.headline(run),
        "summary": tables.summary(run),
        "differences": tables.differences(run),
        "datasets": data.datasets(run),
        "curation": data.curation(run),
        "tokens": data.tokens(run),
        "gaps": data.gaps(run),
        "alarms": data.alarms(run),
        "verifier": tables.summary(run.verifier) if run.verifier else None,
        "votes": data.votes(run),
        "environment": tables.flat(run.environment),
        "flat": tables.flat,
        "model_styles": list(figures.model_series(run.models).values()),
        "training_styles": figures.training_series(run.trainings),
        "accuracy": figures.accuracy_figures(run.models, tables.accuracy_metrics(run.models)),
        "overlays": figures.overlays(run.trainings),
        "trainings": figures.training_figures(run.trainings),
    }


def _page_data(run: Run) -> dict[str, Any]:
    """What the page's script browses."""
    return {
        "sources": [asdict(source) for source in run.sources],
        "first_source": run.first_source,
    }


def _asset(name: str) -> str:
    return (resources.files("topr.report") / "templates" / name).read_text(encoding="utf-8")


def _script_text(text: str) -> str:
    """Script text that cannot end its own element; the meaning in JavaScript is the same."""
    return text.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
