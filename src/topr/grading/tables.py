"""Grades as columns of a table, and how many of each there are."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from topr.config.sections import GradeConfig
from topr.errors import DataError
from topr.grading.graders import GOLD_COLUMNS, GRADERS
from topr.grading.pool import grade_all
from topr.grading.reasoning import opened_by, strip_reasoning
from topr.records import SAYS_NOTHING, Grade, Outcome, Several
from topr.records.golds import read_gold
from topr.store import column_values
from topr.tokenization.ends import is_truncated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GRADE_FIELDS = {"grade": pa.string(), "reward": pa.float32(), "answer": pa.string()}
"""The columns that grading adds, and their types."""


def grade_table(
    table: pa.Table,
    grader: str,
    config: GradeConfig,
    *,
    answer_only: bool = False,
    completion_column: str = "completion",
    gold_column: str = "gold",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    golds: Sequence[Any] | None = None,
    several_golds: Several = Several.ANY,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """The table with `grade`, `reward` and `answer` added to its own columns, rows in order.

    Columns of these names are filled in where they are all null. Truncated rows (`finish_reason`)
    are treated as `config.truncated` says. A user's function is given all other columns, and the
    gold answers as `answer`. Gold answers that stand in such a column are kept as `gold`.

    Built-in graders are given what a completion says outside its thinking, also where the
    `prompt` ends in the mark that begins the thinking, and where that mark is a special token,
    which the text of a rollout leaves out.

    Args:
        table: Any table with a column of completions and, for the built-in graders, gold answers.
        grader: A name in `GRADERS`, or a user's `module:function`.
        config: The section `grade`.
        answer_only: Completions are final answers, not solutions.
        completion_column: Name of the column of completions (string; null counts as empty).
        gold_column: Name of the column of gold answers (text, numbers or lists of them; null:
            none); a field of a nested one is named with dots.
        golds: The values of that column as a file has them, where a table's one type loses some.
        several_golds: What a list of several gold answers means.
        tokenizer: Of the model that wrote the column `completion_ids`: its special tokens end an
            answer.
        progress: Called with the number of completions graded since its last call.

    Raises:
        DataError: a column is missing, of another type, or already holds grades.
        GradingError: no such grader, it cannot start, or a user's function fails.

    """
    if grader in GOLD_COLUMNS and gold_column == "gold":
        gold_column, golds = GOLD_COLUMNS[grader], None
    table, gold_column = _gold_kept(table, gold_column)
    _check_columns(table, [completion_column, *([gold_column] if grader in GRADERS else [])])
    completions = [text or "" for text in _texts(table, completion_column)]
    known: Iterable[str | None] = [None] * len(completions)
    if grader in GRADERS:
        values = column_values(table, gold_column) if golds is None else golds
        known = _golds(values or [], gold_column, several_golds)
        completions = _without_reasoning(table, completions, tokenizer)
    grades = grade_all(
        list(zip(completions, known, strict=True)),
        grader,
        config=config,
        answer_only=answer_only,
        columns=None if grader in GRADERS else _for_user(table, completion_column, gold_column),
        progress=progress,
    )
    return _with_grades(table, _truncation_ruled(table, grades, config))


def _gold_kept(table: pa.Table, column: str) -> tuple[pa.Table, str]:
    """Return a table whose gold answers are where grading does not write, and their column."""
    there = table.column_names
    if column not in GRADE_FIELDS or column not in there or "gold" in there:
        return table, column
    return table.rename_columns(["gold" if name == column else name for name in there]), "gold"


def _truncation_ruled(table: pa.Table, grades: list[Grade], config: GradeConfig) -> list[Grade]:
    """Return the grades, with those of truncated completions as `config.truncated` has them."""
    if "finish_reason" not in table.column_names or config.truncated == "grade":
        return grades
    reward = -1.0 if config.truncated == "wrong" else None
    cut_N = truncated(table)
    return [_cut(grade, reward) if cut else grade for grade, cut in zip(grades, cut_N, strict=True)]


def _without_reasoning(
    table: pa.Table, completions: list[str], tokenizer: "PreTrainedTokenizerBase | None"
) -> list[str]:
    """What each completion says outside its thinking, read with what its row knows of it."""
    stop_tokens: tuple[str, ...] = ()
    if tokenizer is not None and "completion_ids" in table.column_names:
        special = special_tokens(tokenizer)
        stop_tokens = tuple(special.values())
        for row, ids in enumerate(table["completion_ids"].to_pylist()):
            if special.keys().isdisjoint((ids or ())[:-1]):
                continue
            # Text that is not that of the ids is another tool's: it stays as it is.
            if tokenizer.decode(ids, skip_special_tokens=True) == completions[row]:
                completions[row] = str(tokenizer.decode(ids, skip_special_tokens=False))
    prompts = table["prompt"] if "prompt" in table.column_names else None
    if prompts is None or not pa.types.is_string(prompts.type):
        marks = [""] * len(completions)
    else:
        marks = [opened_by(prompt or "") for prompt in prompts.to_pylist()]
    return [
        strip_reasoning(mark + completion, stop_tokens) if mark or stop_tokens else completion
        for mark, completion in zip(marks, completions, strict=True)
    ]


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The special tokens of a tokenizer by id; not the one for unknown text, which ends nothing."""
    added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    found = added | dict(named)
    found.pop(tokenizer.unk_token_id, None)
    return found


def _for_user(table: pa.Table, completion_column: str, gold_column: str) -> dict[str, list[Any]]:
    taken = {completion_column, *GRADE_FIELDS}
    columns = {name: table[name].to_pylist() for name in table.column_names if name not in taken}
    golds = column_values(table, gold_column)
    if golds is not None:
        columns["answer"] = golds
    return columns


def truncated(table: pa.Table) -> list[bool]:
    """Return of which rows the finish reason says that a limit cut them off.

    Raises:
        DataError: nobody knows what a finish reason means.

    """
    known: dict[str, bool] = {}  # of few words in many rows
    found = []
    for number, reason in enumerate(table["finish_reason"].to_pylist(), start=1):
        if str(reason) not in known:
            try:
                known[str(reason)] = is_truncated(reason)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
        found.append(known[str(reason)])
    return found


def _cut(grade: Grade, reward: float | None) -> Grade:
    """Return the grade of a truncated completion; one that nothing can be said of keeps its own."""
    if grade.outcome in SAYS_NOTHING:
        return grade
    read = grade.outcome in (Outcome.CORRECT, Outcome.WRONG)
    return Grade(outcome=Outcome.TRUNCATED, reward=reward, answer=grade.answer if read else None)


def _check_columns(table: pa.Table, needed: list[str]) -> None:
    for name in needed:
        if column_values(table.slice(0, 1), name) is None and column_values(table, name) is None:
            raise DataError(
                f"the table has no column {name!r}, which grading reads: its columns are "
                f"{', '.join(table.column_names) or '(none)'}. Rename one, or name "
                "yours: --completion and --gold, in Python completion= and gold="
            )
    for name in GRADE_FIELDS:
        if name in table.column_names and table[name].null_count < table.num_rows:
            raise DataError(
                f"the column {name!r} already holds values; grading would overwrite them. "
                "Drop or rename it first; rollouts of `topr import` come without grades with "
                "--reward ''"
            )


def _texts(table: pa.Table, name: str) -> list[str | None]:
    column = table[name] if name in table.column_names else pa.array(column_values(table, name))
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f"the column {name!r} holds {column.type}, expected text")
        column = pc.cast(column, pa.string())
    texts: list[str | None] = column.to_pylist()
    return texts


def _golds(values: Sequence[Any], name: str, several: Several) -> list[str | None]:
    """Return gold answers, as `topr.records.golds` reads them."""
    golds = []
    for number, value in enumerate(values, start=1):
        try:
            golds.append(read_gold(value, several))
        except DataError as error:
            raise DataError(f"row {number}: column {name!r}: {error}") from error
    return golds


def _with_grades(table: pa.Table, grades: list[Grade]) -> pa.Table:
    values: dict[str, list[Any]] = {
        "grade": [grade.outcome.value for grade in grades],
        "reward": [grade.reward for grade in grades],
        "answer": [None if g.answer is None else _writable(g.answer) for g in grades],
    }
    for name, kind in GRADE_FIELDS.items():
        column = pa.array(values[name], kind)
        if name in table.column_names:
            field = table.schema.field(name)
            kept = pa.field(name, kind, metadata=field.metadata)
            table = table.set_column(table.schema.get_field_index(name), kept, column)
        else:
            table = table.append_column(pa.field(name, kind), column)
    return table


def _writable(text: str) -> str:
    """Without lone surrogates, which no file format takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def counts(grades: pa.Table | Iterable[Grade]) -> dict[str, int]:
    """How many completions have each outcome, by its name, in the order of `Outcome`; 0 left out.

    Args:
        grades: Grades, or a table that `grade_table` made.

    """
    if isinstance(grades, pa.Table):
        found = Counter(grades["grade"].to_pylist())
    else:
        found = Counter(grade.outcome.value for grade in grades)
    return {outcome.value: found[outcome.value] for outcome in Outcome if found[outcome.value]}
