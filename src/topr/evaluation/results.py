"""Results of evaluations: on disk as `evaluation.json`, and compared with each other.

No rollouts here: everything is computed from the counts per problem that a result holds.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from topr.errors import DataError
from topr.metrics import Interval, paired_difference
from topr.records import EvalResult
from topr.store import write_json_atomic

SCHEMA = 1
RESULT_FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One metric of two models on the same problems: a minus b.

    >>> Difference(a="topr", b="sft", metric="pass@1", difference=0.12, ci=(0.09, 0.15)).metric
    'pass@1'
    """

    a: str
    b: str
    metric: str
    difference: float
    ci: Interval
    """95 % percentile bootstrap interval over problems."""


def compare(
    a: EvalResult, b: EvalResult, *, resamples: int = 2000, seed: int = 0
) -> tuple[Difference, ...]:
    """Return the differences a - b in pass@1, maj@n and greedy, paired by problem.

    A metric that only one of the two has (maj@8 against maj@16; no greedy decoding) is left out,
    and so is a problem that one of them could not score.

    Raises:
        DataError: the two were evaluated on different problems, or share no scored one.

    """
    rows_a, rows_b = _paired_rows(a, b)
    groups = np.array([row["group"] for row in rows_a]) if "group" in rows_a[0] else None
    differences = []
    for prefix, value in _COMPARED.items():
        pairs = np.array(
            [(value(x), value(y)) for x, y in zip(rows_a, rows_b, strict=True)], dtype=np.float64
        )  # None becomes NaN
        known = ~np.isnan(pairs).any(axis=1)
        for key in _shared_keys(prefix, a, b) if known.any() else ():
            difference, ci = paired_difference(
                *pairs[known].T,
                resamples=resamples,
                rng=np.random.default_rng(seed),
                groups_P=None if groups is None else groups[known],
            )
            differences.append(
                Difference(a=a.name, b=b.name, metric=key, difference=difference, ci=ci)
            )
    if not differences:
        raise DataError(
            f"{a.name} and {b.name} share no problem that both could score: look at `unscored` "
            "and at the gold answers"
        )
    return tuple(differences)


def headline(result: EvalResult) -> str:
    """Return one line that says how good a model is."""
    m: Any = result.metrics
    parts = []
    for key in m:
        if f"{key}_ci" in m and (key in ("pass@1", "greedy") or key.startswith("maj@")):
            low, high = m[f"{key}_ci"]
            parts.append(f"{key} {m[key]:.1%} [{low:.1%}, {high:.1%}]")
    parts.append(f"invalid {m['invalid']:.1%}")
    if m.get("truncated", 0) > 0.5:
        parts.append(f"truncated {m['truncated']:.1%}: most reached the token limit (max_tokens)")
    return f"{result.name} on {len(result.per_problem)} {result.split} problems: " + ", ".join(
        parts
    )


def write_evaluation(path: Path, result: EvalResult) -> None:
    """Write a result as `evaluation.json`, atomically."""
    values = asdict(result)
    per_problem = values.pop("per_problem")
    metrics = values.pop("metrics")
    counts = {
        "problems": len(per_problem),
        "samples": min(row["samples"] for row in per_problem if row["correct"] is not None),
    }
    write_json_atomic(
        path,
        {"schema": SCHEMA, **values, **counts, "metrics": metrics, "per_problem": per_problem},
    )


def read_evaluation(path: Path) -> EvalResult:
    """Read an `evaluation.json`.

    Raises:
        DataError: it is not there, or is not one of this schema.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}, expected {SCHEMA}")
        found = {each.name: values[each.name] for each in fields(EvalResult)}
        found["metrics"] = {
            key: tuple(value) if key.endswith("_ci") else value
            for key, value in values["metrics"].items()
        }
        return EvalResult(**found | {"per_problem": tuple(values["per_problem"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as an evaluation ({type(error).__name__}: {error}). Expected "
            f"the {RESULT_FILE} that `topr eval` and `topr run` write; evaluate again"
        ) from error


def _pass_at_1(row: Mapping[str, Any]) -> float | None:
    return None if row["correct"] is None else row["correct"] / row["samples"]


_COMPARED: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "pass@1": _pass_at_1,
    "maj@": lambda row: row["majority"],
    "greedy": lambda row: row["greedy"],
}
"""Beginning of a metric's key to its value in a row of `per_problem`."""


def _paired_rows(
    a: EvalResult, b: EvalResult
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    rows_a, rows_b = ({row["problem_id"]: row for row in each.per_problem} for each in (a, b))
    unshared = sorted(rows_a.keys() ^ rows_b.keys())
    shared = len(rows_a.keys() & rows_b.keys())
    if unshared:
        raise DataError(
            f"{a.name} and {b.name} were evaluated on different problems: {len(unshared)} are in "
            f"one evaluation only (such as {', '.join(unshared[:3])}), {shared} in both. "
            "Evaluate both on the same split and number of problems"
        )
    return list(rows_a.values()), [rows_b[problem] for problem in rows_a]


def _shared_keys(prefix: str, a: EvalResult, b: EvalResult) -> list[str]:
    shared = [key for key in a.metrics if key in b.metrics and not key.endswith("_ci")]
    if prefix.endswith("@"):
        return [key for key in shared if key.startswith(prefix)]
    return [key for key in shared if key == prefix]
