"""What was read, as one HTML file that needs nothing else. No file of a run is read here.

Strings of models and users reach the page on two ways only: through the template, which escapes
them, and as packed data in a script element that is not run, from which the page's own scripts
write them with `textContent`. The page's Content-Security-Policy names the scripts that may run by
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
from topr.curation import REASONS
from topr.report import data, figures, tables, verdict
from topr.report.changes import changes
from topr.report.contents import Run
from topr.report.mathml import PATTERN, formulas
from topr.report.text import packed, plural, visible, without_empty

GENERATOR = "topr report"
"""Content of the page's `generator` element: how a report of ours is told from other files."""
SCRIPTS = ("figures.js", "text.js", "cards.js", "browser.js")


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
        "points": tables.points,
        "plural": plural,
    }
    scripts = [_script_text(_asset(name)) for name in SCRIPTS]
    return environment.get_template("report.html.j2").render(
        **_view(run),
        generator=GENERATOR,
        version=__version__,
        style=Markup(_asset("report.css")),  # noqa: S704  our own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704
        script_hashes=[_hash(script) for script in scripts],
        data=Markup(packed(_page_data(run))),  # noqa: S704  base64
    )


def _view(run: Run) -> dict[str, Any]:
    """What the template shows."""
    return {
        "run": run,
        "facts": tables.facts(run),
        "verdict": verdict.verdict(run),
        "cards": verdict.cards(run),
        "warnings": verdict.warnings(run),
        "summary": tables.summary(run),
        "differences": tables.differences(run),
        "changes": changes(run),
        "curation": data.curation(run),
        "reasons": REASONS,
        "tokens": data.tokens(run),
        "gaps": data.gaps(run),
        "verifier": tables.summary(run.verifier) if run.verifier else None,
        "votes": data.votes(run.votes),
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
    problems = [problem for source in run.sources for problem in source.problems]
    texts = [problem.question for problem in problems]
    texts += [completion.text for problem in problems for completion in problem.completions]
    labels = {source.label for source in run.sources}
    return {
        "sources": [without_empty(asdict(source)) for source in run.sources],
        "pairs": [pair for pair in run.pairs if labels.issuperset(pair)],
        "evaluations": [label for label in run.evaluations if label in labels],
        "math": {"pattern": PATTERN, "trees": formulas(texts)},
    }


def _asset(name: str) -> str:
    return (resources.files("topr.report") / "templates" / name).read_text(encoding="utf-8")


def _script_text(text: str) -> str:
    """Script text that cannot end its own element; the meaning in JavaScript is the same."""
    return text.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
