"""What a report shows, as records. No files, no rendering.

Names and labels are already as they are shown (`visible`): the page's script compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from topr.records import EvalResult
from topr.report.rollouts import Source
from topr.report.text import as_number


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One evaluated model."""

    name: str
    label: str
    """Of its evaluation: the name, with the iteration where there are several. Models are told
    apart by it."""
    iteration: int
    comparison: bool
    """Trained outside the loop, from the starting model."""
    metrics: Mapping[str, Any]
    """By documented key; a key ending in `_ci` holds a 95 % interval."""
    run: str = ""
    """Of several runs in one report: which."""

    @property
    def series(self) -> str:
        """Which curve it belongs to: the loop's own models of a run are one."""
        return f"{self.run}/{self.name if self.comparison else ''}"

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a metric, where there is one."""
        ends = self.metrics.get(f"{metric}_ci")
        if isinstance(ends, list | tuple) and len(ends) == 2:
            low, high = (as_number(end) for end in ends)
            if low is not None and high is not None:
                return low, high
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A paired comparison of two models on the same problems."""

    a: str
    """Label of the first model, which says its iteration too."""
    b: str
    metric: str
    difference: float
    ci: tuple[float, float]
    problems: int | None = None
    """How many, where it is known."""
    across: bool = False
    """Of two runs."""

    @property
    def clear(self) -> bool:
        """Beyond chance: the interval leaves zero out."""
        return min(self.ci) > 0 or max(self.ci) < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The log of one training."""

    label: str
    log: tuple[Mapping[str, Any], ...]
    """One mapping per logged optimizer step."""
    probes: tuple[Mapping[str, Any], ...]
    """One mapping per probe."""
    details: Mapping[str, Any]
    """Of its manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What one training was given."""

    label: str
    drawn: int | None
    """Completions drawn, as the rollouts' manifest says."""
    outcomes: Mapping[str, int]
    """Graded completions by outcome, in the order of `Outcome`."""
    kept: int
    positives: int
    """Kept completions with a positive reward."""
    positive_share: float | None
    """p of what was trained on, as the training says; before that, of what was kept."""
    baseline: float | None
    """c."""
    effective_share: float | None
    """Share of positives that the baseline makes the dataset act like."""
    curation: Mapping[str, Any]
    """Of the dataset's manifest: `steps`, `tokens`, `tokens_kept`."""
    drawing: Mapping[str, Any]
    """Of the rollouts' manifest: `tokens` and, drawn in rounds, `saved_tokens_estimate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything that the report shows: of one run, or of several."""

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    started: datetime | None
    models: tuple[Model, ...]
    start: Model | None
    """The model that the headline begins with: the loop's first."""
    end: Model | None
    """The model that is the result: the kept one, the starting model included, or the loop's last;
    None while nothing is trained."""
    differences: tuple[Difference, ...]
    kept: Mapping[str, Any]
    """Which iteration's model is the result, as the summary says."""
    evaluations: Mapping[str, EvalResult]
    """By label, which is that of their source."""
    pairs: tuple[tuple[str, str], ...]
    """Labels of evaluations to show as before and after; the first is the one that matters."""
    trainings: tuple[Training, ...]
    datasets: tuple[Dataset, ...]
    verifier: "Run | None"
    """The run of the verifier, where the recipe has one."""
    votes: Mapping[str, Any]
    """What candidates elect with its scores: `votes.json`."""
    missing: tuple[str, ...]
    """What is left out, one short phrase each."""
    sources: tuple[Source, ...] = ()
    """The completions to browse."""
    several: bool = False
    """Whether it is of several runs."""
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of several runs: what differs between their recipes, by setting and run."""

    @property
    def result(self) -> EvalResult | None:
        """The evaluation of the model that is the result."""
        return self.evaluations.get(self.end.label) if self.end else None
