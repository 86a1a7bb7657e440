"""Stored completions in memory: read, graded and curated as `datasets.Dataset`s.

`import topr` hands these on. For more rows than memory holds there are the stages (`topr.stages`),
which do the same on disk, shard by shard, and resume.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import Dataset

from topr.config import CurateConfig, GradeConfig
from topr.config.mistakes import validate
from topr.curation import Columns
from topr.curation import curate as choose
from topr.errors import DataError
from topr.grading.tables import grade_table
from topr.interop import read_rows, table_of

Rollouts: TypeAlias = Dataset | pa.Table | Iterable[Mapping[str, Any]]
"""Rows of completions: a dataset, an Arrow table, or dictionaries."""


def read_rollouts(source: str | Path) -> Dataset:
    """Read completions: a directory of shards, or a file of JSON lines, JSON, CSV or parquet.

    Columns keep their names and values; nothing is tokenized. To bring other tools' columns to
    topr's names, with token ids and log-probabilities, use `topr import`.

    Raises:
        DataError: no such file, an unknown suffix, or a broken line (named by its number).

    """
    return Dataset(read_rows(source))


def grade(
    rollouts: Rollouts,
    grader: str,
    *,
    completion: str = "completion",
    gold: str = "gold",
    answer_only: bool = False,
    **settings: Any,
) -> Dataset:
    """Return the rows with `grade` (the outcome's name), `reward` (float32) and `answer` (text).

    Args:
        rollouts: rows with a column of completions and, for the built-in graders, one of reference
            answers.
        grader: a name in `topr.grading.GRADERS` (`numeric` for GSM8K, `math` for MATH, `exact`), or
            `module:function`.
        completion: name of the column of completions.
        gold: name of the column of reference answers.
        answer_only: completions are final answers, not solutions.
        settings: keys of a recipe's section `grade`: `workers`, `timeout`, `truncated`, ...

    Raises:
        ConfigError: no such setting.
        DataError: a column is missing, or holds grades already.
        GradingError: no such grader, or it fails.

    """
    config = validate(GradeConfig, settings, where="grade")
    graded = grade_table(
        as_table(rollouts),
        grader,
        config,
        completion_column=completion,
        gold_column=gold,
        answer_only=answer_only,
    )
    return Dataset(graded)


def curate(rollouts: Rollouts, steps: Sequence[Any] = ()) -> Dataset:
    """Return the rows to train on: those with a reward that every rule keeps, in their order.

    Args:
        rollouts: graded rows: a column `reward`, and `problem_id` or `prompt` to group them by.
            `sample` says in which order the completions of a problem were sampled; without it, that
            of the rows.
        steps: rules as in a recipe's `curate.steps`, one after the other: `"positives"`,
            `"drop_no_signal"`, `{"rule": "positive_share", "share": 0.25}`.

    Raises:
        ConfigError: no such rule or setting.
        DataError: a column is missing, or a rule keeps nothing.

    """
    table = as_table(rollouts)
    config = validate(CurateConfig, {"steps": list(steps)}, where="curate")
    name = next((each for each in ("problem_id", "prompt") if _holds(table, each)), None)
    if name is None or "reward" not in table.column_names:
        raise DataError(
            f"found the columns {', '.join(table.column_names)}; expected reward, and problem_id "
            "or prompt: grade the rows first with topr.grade"
        )
    problems = [str(value) for value in table[name].to_pylist()]
    columns = Columns.of(
        [float("nan") if value is None else value for value in table["reward"].to_pylist()],
        problems,
        table["sample"].to_pylist() if "sample" in table.column_names else _counted(problems),
        [_hashable(value) for value in _completions(table)],
    )
    return Dataset(table.filter(pa.array(choose(columns, config).keep)))


def as_table(rollouts: Rollouts) -> pa.Table:
    """Return rows as one Arrow table."""
    if isinstance(rollouts, pa.Table):
        return rollouts
    if not isinstance(rollouts, Dataset):
        return table_of([dict(row) for row in rollouts])
    table: pa.Table = rollouts.with_format("arrow")[:]
    return table


def _holds(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count < len(table)


def _completions(table: pa.Table) -> list[Any]:
    """Return what tells completions apart: their ids where they are there, else their text."""
    names = ("completion_ids", "completion")
    name = next((each for each in names if each in table.column_names), None)
    return list(range(len(table))) if name is None else table[name].to_pylist()


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else str(value)


def _counted(problems: Sequence[str]) -> list[int]:
    seen: dict[str, int] = {}
    numbers = []
    for problem in problems:
        seen[problem] = seen.get(problem, -1) + 1
        numbers.append(seen[problem])
    return numbers
