"""The report's tables of what each training was given: drawn, graded, chosen, weighed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from topr.curation import REASONS
from topr.records import Outcome
from topr.report.contents import Dataset, Run
from topr.report.tables import Cell, number, percent, points, signed
from topr.report.text import as_number, visible
from topr.verifier.votes import METHODS

_OUTCOMES = tuple(outcome.value for outcome in Outcome)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One dataset with the shares that are drawn as bars."""

    label: str
    drawn: str
    outcomes: tuple[tuple[str, int, float], ...]
    """Outcome, count, percent of the graded."""
    kept: str
    positives: str
    share: float | None
    baseline: str
    effective_share: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationRow:
    """What one rule did to what one training was given."""

    label: str
    rule: str
    rows: str
    kept: str
    dropped: str
    """Counts with their reasons."""


def datasets(run: Run) -> list[DatasetRow]:
    """Return what each training was given."""
    return [_dataset_row(dataset) for dataset in run.datasets]


def curation(run: Run) -> list[CurationRow]:
    """Return what each rule of each curation did; empty where nothing was chosen."""
    rows = [row for dataset in run.datasets for row in _curation_rows(dataset)]
    return rows if any(row.dropped for row in rows) else []


def _curation_rows(dataset: Dataset) -> list[CurationRow]:
    rows = []
    for step in dataset.curation.get("steps") or ():
        dropped = step.get("dropped") or {}
        rows.append(
            CurationRow(
                label=visible(dataset.label),
                rule=visible(str(step.get("rule"))),
                rows=number(step.get("rows")),
                kept=number(step.get("kept")),
                dropped=visible(
                    "; ".join(f"{n:,}: {REASONS.get(why, why)}" for why, n in dropped.items())
                ),
            )
        )
    return rows


def tokens(run: Run) -> list[str]:
    """Say what was drawn and saved where a curation stopped drawing early."""
    lines = []
    for dataset in run.datasets:
        drawn = as_number(dataset.drawing.get("tokens"))
        saved = as_number(dataset.drawing.get("saved_tokens_estimate"))
        kept = as_number(dataset.curation.get("tokens_kept"))
        if drawn is not None and saved is not None and kept is not None:
            share = saved / max(1, drawn + saved)
            most = number(dataset.drawing.get("max_candidates"))
            lines.append(
                f"{visible(dataset.label)}: {drawn:,.0f} tokens drawn, {kept:,.0f} kept; drawing "
                f"{most} for every problem would have taken about {saved:,.0f} more ({share:.0%})."
            )
    return lines


def gaps(run: Run) -> list[str]:
    """Say how far each training's recorded log mu is from its own, where its log knows both."""
    lines = []
    for training in run.trainings:
        token, most = (
            as_number(training.log[0].get(f"behavior_gap/{key}"))
            for key in ("token_mean", "sequence_max")
        )
        if token is not None and most is not None:
            lines.append(
                f"{visible(training.label)}: {token:.2g} nats a token on average, {most:.2g} a "
                "completion at most."
            )
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class VoteRow:
    """What a number of candidates elects, by method, and what weights add to the majority."""

    candidates: int
    cells: tuple[Cell, ...]


def votes(run: Run) -> list[VoteRow]:
    """Return what candidates elect with a verifier's scores, by their number."""
    rows = []
    for k in run.votes.get("at") or ():
        shares = [_share(run.votes, f"{method}@{k}") for method in METHODS]
        gains = [_points(run.votes, f"{method}@{k} - majority") for method in ("weighted", "best")]
        rows.append(VoteRow(candidates=k, cells=(*shares, *gains)))
    return rows


def _share(values: Mapping[str, Any], key: str) -> Cell:
    low, high = values[f"{key}_ci"]
    return Cell(value=percent(values[key]), interval=f"[{100 * low:.1f}, {100 * high:.1f}]")


def _points(values: Mapping[str, Any], key: str) -> Cell:
    low, high = values[f"{key}_ci"]
    interval = f"[{signed(100 * low)}, {signed(100 * high)}]"
    return Cell(value=points(values[key]), interval=interval)


def _dataset_row(dataset: Dataset) -> DatasetRow:
    graded = sum(dataset.outcomes.values())
    order = {name: place for place, name in enumerate(_OUTCOMES)}
    outcomes = sorted(dataset.outcomes.items(), key=lambda item: order.get(item[0], len(order)))
    return DatasetRow(
        label=visible(dataset.label),
        drawn=number(dataset.drawn),
        outcomes=tuple((visible(n), count, 100 * count / graded) for n, count in outcomes if count),
        kept=number(dataset.kept),
        positives=number(dataset.positives),
        share=dataset.positive_share,
        baseline=number(dataset.baseline),
        effective_share=dataset.effective_share,
    )
