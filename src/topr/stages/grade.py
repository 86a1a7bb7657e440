"""Rollouts to their grades on disk, shard by shard, and a look at what came out.

The completions stay in the rollouts: `topr.store.references`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topr.config import GradeConfig
from topr.errors import DataError
from topr.grading import GRADERS, grade_table
from topr.grading.survey import Concern, Survey, survey
from topr.grading.tables import GRADE_FIELDS
from topr.progress import Progress
from topr.stages.common import OpenStage, data_fingerprint, grading_version, open_stage
from topr.store import Manifest, read_table, shard_paths, stream_tables, write_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def open_grades(
    directory: Path, rollouts: Any, grader: str, config: GradeConfig, *, answer_only: bool = False
) -> AbstractContextManager[OpenStage]:
    """Open the stage that grades rollouts, which are known by their fingerprint."""
    version = grading_version(grader)
    return open_stage(directory, "grade", rollouts, grader, version, config, answer_only)


def grade_rollouts(
    rollouts: Path,
    grader: str,
    config: GradeConfig,
    directory: Path,
    *,
    progress: Progress,
    answer_only: bool = False,
    tokenizer: "Callable[[], PreTrainedTokenizerBase] | None" = None,
    check: Callable[[Path], None] = lambda directory: None,
) -> Manifest:
    """Write `grade`, `reward` and `answer` of the rows of `rollouts`.

    Args:
        rollouts: a directory of shards.
        grader: a name in `topr.grading.GRADERS`, or a user's `module:function`.
        config: the section `grade`.
        directory: where the grades go, in shards of the same names.
        progress: receives completions.
        answer_only: completions are final answers, not solutions.
        tokenizer: loads that of the model that wrote the rollouts, if there is anything to grade.
        check: receives the directory before the stage is done, to warn or to refuse.

    Raises:
        DataError: there are no rollouts, or they are graded already.

    """
    if not (sources := shard_paths(rollouts)):
        raise DataError(f"{rollouts} holds no rollouts to grade: draw or import some first")
    known_by = data_fingerprint(rollouts)
    with open_grades(directory, known_by, grader, config, answer_only=answer_only) as stage:
        if stage.done is not None:
            return stage.done
        grade_shards(
            sources, grader, config, directory, progress=progress, answer_only=answer_only,
            tokenizer=tokenizer() if tokenizer else None,
        )  # fmt: skip
        check(directory)
        outcomes = Counter(read_table(directory, ["grade"]).column("grade").to_pylist())
        return stage.finish(
            rows=outcomes.total(),
            details={"grader": grader, "outcomes": dict(sorted(outcomes.items()))},
        )


def grade_shards(
    sources: Sequence[Path], grader: str, config: GradeConfig, directory: Path, *,
    progress: Progress, answer_only: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:  # fmt: skip
    """Write the grades of shards under their names; those that are there are left alone."""
    there = {path.name for path in shard_paths(directory)}
    total = sum(read_table(path, ["sample"]).num_rows for path in sources)
    with progress.bar("grading", total, "completions") as advance:
        for source in sources:
            table = read_table(source)
            if source.name in there:
                advance(table.num_rows)
                continue
            graded = grade_table(
                table, grader, config, answer_only=answer_only, tokenizer=tokenizer,
                progress=lambda n: advance(n),
            )  # fmt: skip
            write_columns(directory, source, graded, tuple(GRADE_FIELDS))


def survey_grades(directory: Path) -> Survey:
    """Return what the graded completions of a store look like."""
    return survey(lambda columns: stream_tables(shard_paths(directory), columns))


def warn_of_concerns(directory: Path) -> None:
    """Warn where most completions are truncated or unreadable, or none is right."""
    found = survey_grades(directory)
    if found.concerns:
        logger.warning("%s: %s", directory, found)


def refuse_none_right(directory: Path, grader: str, config: GradeConfig) -> None:
    """Stop where a built-in grader found no completion right: only wrong ones would be trained on.

    A function of the user's own may mean something else by rewards of 0 and below.

    Raises:
        DataError: no completion is right, and the section does not say `none_right: warn`.

    """
    if grader not in GRADERS or config.none_right == "warn":
        return
    found = survey_grades(directory)
    if Concern.NONE_RIGHT in found.concerns:
        raise DataError(
            f"no completion in {directory} is right, so training would see wrong ones alone: "
            f"{found}\nRun the changed recipe in a new directory. To train on these completions "
            "all the same, set grade.none_right=warn"
        )
