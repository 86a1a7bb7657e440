"""What the report says of each training's data: rules, tokens, log mu; and the verifier's votes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from topr.report.contents import Run
from topr.report.reader import as_mapping, as_mappings
from topr.report.tables import Cell, number, percent, points, signed
from topr.report.text import as_number
from topr.verifier.votes import METHODS


def curation(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each rule of each curation with what it did; empty where nothing was dropped."""
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (dataset.label, {**step, "dropped": as_mapping(step.get("dropped"))})
        for dataset in run.datasets
        for step in as_mappings(dataset.curation.get("steps"))
    ]
    return rows if any(step.get("dropped") for _, step in rows) else []


def tokens(run: Run) -> list[str]:
    """Say what was sampled and saved where a curation stopped sampling early."""
    lines = []
    for dataset in run.datasets:
        drawn = as_number(dataset.drawing.get("tokens"))
        saved = as_number(dataset.drawing.get("saved_tokens_estimate"))
        kept = as_number(dataset.curation.get("tokens_kept"))
        if drawn is not None and saved is not None and kept is not None:
            share = saved / max(1, drawn + saved)
            most = number(dataset.drawing.get("max_candidates"))
            lines.append(
                f"{dataset.label}: {drawn:,.0f} tokens sampled, {kept:,.0f} kept; "
                f"{most} completions of every problem would have taken about {saved:,.0f} more "
                f"({share:.0%})."
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
                f"{training.label}: {token:.2g} nats a token on average, {most:.2g} a "
                "completion at most."
            )
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class VoteRow:
    """What a number of candidates elects, by method, and what weights add to the majority."""

    candidates: int
    cells: tuple[Cell, ...]


def votes(values: Mapping[str, Any]) -> list[VoteRow]:
    """Return what candidates elect with a verifier's scores, by their number, of `votes.json`."""
    rows = []
    for k in values.get("at", ()):
        shares = [_share(values, f"{method}@{k}") for method in METHODS]
        gains = [_points(values, f"{method}@{k} - majority") for method in ("weighted", "best")]
        rows.append(VoteRow(candidates=k, cells=(*shares, *gains)))
    return rows


def _share(values: Mapping[str, Any], key: str) -> Cell:
    low, high = values[f"{key}_ci"]
    return Cell(value=percent(values[key]), interval=f"[{100 * low:.1f}, {100 * high:.1f}]")


def _points(values: Mapping[str, Any], key: str) -> Cell:
    low, high = values[f"{key}_ci"]
    interval = f"[{signed(100 * low)}, {signed(100 * high)}]"
    return Cell(value=points(values[key]), interval=interval)
