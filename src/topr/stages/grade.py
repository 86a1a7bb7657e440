"""Rollouts to graded rollouts on disk, shard by shard, and a look at what came out."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topr.config import GradeConfig
from topr.errors import DataError
from topr.grading import GRADERS, grade_table
from topr.grading.survey import Concern, Survey, survey
from topr.progress import Progress
from topr.store import (
    Manifest,
    begin,
    read_table,
    shard_number,
    shard_paths,
    stream_tables,
    write_manifest,
    write_shard,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def grade_rollouts(
    rollouts: Path, grader: str, config: GradeConfig, directory: Path, *, mark: str,
    progress: Progress, answer_only: bool = False,
    tokenizer: "Callable[[], PreTrainedTokenizerBase] | None" = None,
) -> Manifest:  # fmt: skip
    """Write the rows of `rollouts` with `grade`, `reward` and `answer` filled in.

    Args:
        rollouts: a directory of shards.
        grader: a name in `topr.grading.GRADERS`, or a user's `module:function`.
        config: the section `grade`.
        directory: where the graded shards go, under the names of the ungraded ones.
        mark: fingerprint of the result.
        progress: told of completions.
        answer_only: completions are final answers, not solutions.
        tokenizer: loads that of the model that wrote the rollouts, if there is anything to grade.

    Raises:
        DataError: there are no rollouts, or they are graded already.

    """
    if not (sources := shard_paths(rollouts)):
        raise DataError(f"{rollouts} holds no rollouts to grade: draw or import some first")
    with begin(directory, "grade", mark) as done:
        if done is not None:
            return done
        grade_shards(
            sources, grader, config, directory, progress=progress, answer_only=answer_only,
            tokenizer=None if tokenizer is None else tokenizer(),
        )  # fmt: skip
        table = read_table(directory, ["grade", "reward"])
        outcomes = Counter(table.column("grade").to_pylist())
        manifest = Manifest(
            stage="grade",
            fingerprint=mark,
            rows=table.num_rows,
            files=tuple(path.name for path in shard_paths(directory)),
            details={"grader": grader, "outcomes": dict(sorted(outcomes.items()))},
        )
        write_manifest(directory, manifest)
        return manifest


def grade_shards(
    sources: Sequence[Path], grader: str, config: GradeConfig, directory: Path, *,
    progress: Progress, answer_only: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:  # fmt: skip
    """Write graded shards under the names of `sources`; those that are there are left alone."""
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
            write_shard(directory, shard_number(source), graded)


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
