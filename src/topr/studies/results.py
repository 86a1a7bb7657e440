"""What a study found, as it lies in `results.json`: cells, and what follows from them.

Pure but for reading and writing that one file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from topr.config.study import BASE, Claim, Study
from topr.errors import DataError
from topr.store import write_text_atomic
from topr.studies.summary import Decided, Estimate, decide, estimate

RESULTS_FILE = "results.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One evaluation of a model on its way."""

    iteration: int
    step: int | None
    """Optimizer steps of this iteration; None: at its end."""
    tokens: int
    """Completion tokens sampled for training so far."""
    metrics: Mapping[str, int | float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One arm with one seed."""

    arm: str
    seed: int
    rate: float | None
    points: tuple[Point, ...]
    log: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of the last iteration's training, by key: `step`, `log_ratio/positive`, ..."""
    diverged: str | None = None
    """Why training stopped before its end; the model counts as one that gets nothing right."""

    @property
    def final(self) -> Point:
        """The evaluation of the last iteration's model."""
        return next(point for point in reversed(self.points) if point.step is None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """The sweep of an arm's learning rate on validation problems."""

    chosen: float
    pass_at_1: Mapping[str, float]
    """By rate, written as a number."""
    standard_error: Mapping[str, float] = field(default_factory=dict)
    """Of pass@1 over problems, by rate."""

    @property
    def at_end(self) -> bool:
        """Whether the best lies at an end of what was tried: a better one may lie beyond."""
        rates = sorted(self.pass_at_1, key=float)
        best = max(rates, key=lambda rate: self.pass_at_1[rate])
        return len(rates) > 1 and best in (rates[0], rates[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that a study's tables and figures are made of."""

    study: Study
    cells: tuple[Cell, ...]
    sweep: Mapping[str, Swept]
    environment: Mapping[str, Any]
    seconds: float
    """Spent on cells: of each, the call that ended it."""
    commits: tuple[str, ...] = ()
    """Of topr's repository, when the cells were computed."""
    first_claims: tuple[str, ...] | None = None
    """The claims that the study had before its first cell; None: not known."""

    def of(self, arm: str) -> list[Cell]:
        """Return the cells of an arm in the order of its seeds."""
        return sorted((c for c in self.cells if c.arm == arm), key=lambda cell: cell.seed)

    @property
    def arms(self) -> list[str]:
        """The starting model, then the arms in the study's order, as far as there are cells.

        Without the starting model where what the study is about is not measured of it.
        """
        metric = self.study.metric
        there = {
            cell.arm for cell in self.cells if cell.arm != BASE or metric in cell.final.metrics
        }
        return [name for name in (BASE, *self.study.arms) if name in there]

    def label(self, arm: str) -> str:
        """Return an arm's name for people."""
        return "starting model" if arm == BASE else self.study.arms[arm].label

    def final(self, arm: str, metric: str) -> Estimate | None:
        """Return a metric of the final models; None where it was not measured."""
        values = self._values(arm, metric)
        return estimate(list(values.values())) if values else None

    def tokens(self, arm: str) -> float:
        """Return the completion tokens that an arm sampled for training, mean over seeds."""
        return fmean(cell.final.tokens for cell in self.of(arm))

    def claims(self) -> list[Decided]:
        """Decide every claim whose metric was measured for both its arms."""
        decided = []
        for claim in self.study.claims:
            one = self._values(claim.arm, claim.metric)
            other = self._values(claim.than, claim.than_metric or claim.metric)
            if one.keys() & other.keys():
                decided.append(decide(claim, one, other))
        return decided

    def is_later(self, claim: Claim) -> bool:
        """Whether a claim was written when cells were there already."""
        return self.first_claims is not None and claim.says not in self.first_claims

    def unmeasured(self) -> list[Claim]:
        """Return the other claims: maj@16 of 4 samples, for instance."""
        decided = [found.claim for found in self.claims()]
        return [claim for claim in self.study.claims if claim not in decided]

    def _values(self, arm: str, metric: str) -> dict[int, float]:
        """Return a metric of the final models by seed, as far as it was measured."""
        finals = {cell.seed: cell.final.metrics for cell in self.of(arm)}
        return {seed: found[metric] for seed, found in finals.items() if metric in found}


def write_results(results: Results, directory: Path) -> None:
    """Write `results.json`: the cells, and what follows from them."""
    values = {
        "schema": 1,
        "study": results.study.model_dump(mode="json"),
        "claims": [
            {
                "says": found.claim.says,
                "verdict": found.verdict.value,
                "later": results.is_later(found.claim),
                "difference": _plain(asdict(found.difference)),
            }
            for found in results.claims()
        ],
        "sweep": {arm: asdict(swept) for arm, swept in results.sweep.items()},
        "cells": [asdict(cell) for cell in results.cells],
        "environment": dict(results.environment),
        "commits": list(results.commits),
        "first_claims": None if results.first_claims is None else list(results.first_claims),
        "seconds": round(results.seconds),
    }
    # A line for each claim and cell: their curves are hundreds of numbers.
    lines = [f"{json.dumps(key)}: {_lines(value)}" for key, value in values.items()]
    write_text_atomic(directory / RESULTS_FILE, "{\n" + ",\n".join(lines) + "\n}\n")


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(each) for each in value) + "\n]"
    return json.dumps(value)


def read_results(directory: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        DataError: there is none.

    """
    path = directory / RESULTS_FILE
    if not path.is_file():
        raise DataError(
            f"{directory} holds no {RESULTS_FILE}: give the directory that `topr study NAME -o "
            "DIR` wrote"
        )
    return TypeAdapter(Results).validate_json(path.read_bytes())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {
        key: None if isinstance(value, float) and math.isinf(value) else value
        for key, value in values.items()
    }
