"""The report's first screen: whether it worked, in a sentence; cards; warnings of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from topr.report.contents import Difference, Model, Run
from topr.report.reader import as_mapping, as_mappings
from topr.report.tables import (
    LOWER_IS_BETTER,
    TITLES,
    Cell,
    cell,
    metric_names,
    points,
    signed,
)
from topr.report.text import as_number, plural, visible

NAMES = {
    "topr": "TOPR",
    "base": "the starting model",
    "sft": "positives only",
    "reinforce": "REINFORCE",
}
"""Models by the name of their objective, for people; others are called as they are."""
MOST = 0.5
"""A share of truncated or unreadable completions above this is a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether it worked."""

    word: str
    tone: str
    """`better`, `worse` or `unclear`."""
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One number at the start and at the end."""

    metric: str
    start: Cell
    end: Cell
    change: str
    verdict: str
    """`better` or `worse` beyond chance, else that it is not."""


def verdict(run: Run) -> Verdict | None:
    """Return whether it worked, by the paired differences in pass@1; None before there are any.

    Of several runs, by those between their results alone.

    "It worked. TOPR: +30.1 points pass@1 over the starting model [28.0, 32.3], +15.0 over positives
    only [12.7, 17.3], on 200 problems."
    """
    if run.kept.get("iteration") == 0:
        return Verdict(
            word="The starting model is kept.",
            tone="unclear",
            sentence="No iteration was better on validation problems.",
        )
    found = [d for d in run.differences if d.across == run.several]
    if not found:
        return None
    metric = "pass@1" if any(d.metric == "pass@1" for d in found) else found[0].metric
    first, *others = [d for d in found if d.metric == metric]
    if not first.clear:
        word, tone = "No difference beyond chance.", "unclear"
    elif first.difference > 0:
        word, tone = ("It worked." if first.b == "base" else "Better."), "better"
    else:
        word, tone = ("It got worse." if first.b == "base" else "Worse."), "worse"
    names = {model.label: NAMES.get(model.name, model.label) for model in run.models}
    parts = [f"{names.get(first.a, first.a)}: {_part(names, first, unit=f' points {metric}')}"]
    for other in others:
        if run.several:
            parts.append(f"{names.get(other.a, other.a)}: {_part(names, other, unit='')}")
        elif other.a == first.a:
            parts.append(_part(names, other, unit=""))
    alike = all(other.problems == first.problems for other in others)
    on = f", on {plural(first.problems, 'problem')}" if first.problems and alike else ""
    return Verdict(word=word, tone=tone, sentence=f"{', '.join(parts)}{on}.")


def cards(run: Run) -> list[Card]:
    """Return the start and the end for at most four metrics."""
    if run.start is None or run.end is None or run.start == run.end:
        return []
    names = metric_names([run.start, run.end])
    wanted = ("pass@1", *(name for name in names if name.startswith("maj@")), "greedy", "invalid")
    found = []
    for metric in [name for name in wanted if name in names][:4]:
        before, after = (as_number(m.metrics.get(metric)) for m in (run.start, run.end))
        if before is not None and after is not None:
            rose = (after > before) != (metric in LOWER_IS_BETTER)
            clear = after != before and _clear(run, run.start, run.end, metric)
            found.append(
                Card(
                    metric=visible(TITLES.get(metric, metric)),
                    start=cell(run.start, metric),
                    end=cell(run.end, metric),
                    change=f"{points(after - before)} points",
                    verdict=("better" if rose else "worse") if clear else "not beyond chance",
                )
            )
    return found


def warnings(run: Run) -> list[str]:
    """Return what a reader must know first: ruined trainings, unreadable data, missing grades."""
    lines = [*_alarms(run)]
    for dataset in run.datasets:
        graded = sum(dataset.outcomes.values()) or 1
        shares = {name: count / graded for name, count in dataset.outcomes.items()}
        lines += _mostly_bad(f"{dataset.label}, sampled for training", shares)
        if dataset.outcomes and not dataset.outcomes.get("correct"):
            lines.append(f"{dataset.label}: no completion that was sampled is correct.")
        elif dataset.kept and not dataset.positives:
            lines.append(f"{dataset.label}: the dataset holds negatives alone.")
    for model in run.models:
        name = f"{model.name}, iteration {model.iteration}"
        lines += _mostly_bad(name, model.metrics)
        unscored = as_number(model.metrics.get("unscored"))
        if unscored:
            lines.append(f"{name}: {plural(int(unscored), 'problem')} could not be scored.")
    return [visible(line) for line in dict.fromkeys(lines)]


def _mostly_bad(name: str, shares: Mapping[str, Any]) -> list[str]:
    """Say what is wrong first of all: a truncated completion has no answer either."""
    found = (
        f"{name}: {as_number(shares.get(key)) or 0:.0%} of the completions {what}."
        for key, what in _BAD.items()
        if (as_number(shares.get(key)) or 0) > MOST
    )
    return [*islice(found, 1)]


_BAD = {
    "truncated": "reached the token limit",
    "invalid": "have no readable answer",
    "unparseable": "have no readable answer",
}
"""A metric or an outcome that is bad where most completions have it."""


def _alarms(run: Run) -> list[str]:
    """Say which trainings looked ruined, and what became of them."""
    lines = []
    for training in run.trainings:
        watch = as_mapping(training.details.get("watch"))
        for alarm in as_mappings(watch.get("alarms")):
            kept = f" Stopped; the model has the weights of step {watch.get('kept_step')}."
            end = kept if watch.get("mode") == "stop" else " Training continued."
            lines.append(f"{training.label} looks ruined: {alarm.get('message')}.{end}")
    return lines


def _clear(run: Run, start: Model, end: Model, metric: str) -> bool:
    """Beyond chance: by the paired interval, else by intervals that do not touch."""
    for found in run.differences:
        if found.metric == metric and (found.a, found.b) == (end.label, start.label):
            return found.clear
    one, two = start.interval(metric), end.interval(metric)
    return one is not None and two is not None and (one[1] < two[0] or two[1] < one[0])


def _part(names: Mapping[str, str], found: Difference, *, unit: str) -> str:
    low, high = (signed(100 * end).removeprefix("+") for end in sorted(found.ci))
    against = "over" if found.difference > 0 else "against"
    return (
        f"{points(found.difference)}{unit} {against} {names.get(found.b, found.b)} [{low}, {high}]"
    )
