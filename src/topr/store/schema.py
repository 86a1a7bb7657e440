"""The rollout table: one row per completion, in Arrow types. No files here.

docs/data.md explains every column.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from topr.errors import DataError
from topr.records import FinishReason, Grade, Outcome, Rollout, SamplingParams
from topr.records.distribution import distribution
from topr.store.cells import clean

SCHEMA_VERSION = 1
REFERRING_VERSION = 2
"""Of files that leave columns in another one (`topr.store.references`)."""
SCHEMA_KEY = b"topr.schema"
MAX_LOGPROB = 1e-3
"""The largest log-probability: that of a certain token is 0, and numbers are rounded."""

SAMPLING_TYPE = pa.struct(
    [
        pa.field("temperature", pa.float64()),
        pa.field("top_p", pa.float64()),
        pa.field("top_k", pa.int32()),
        pa.field("max_tokens", pa.int32()),
        pa.field("stop", pa.list_(pa.string())),
        pa.field("seed", pa.int64()),
    ]
)

# Every field is nullable for Arrow: DuckDB, polars and datasets drop the mark. Which columns may
# hold a null is checked on reading.
ROLLOUT_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("completion", pa.string()),
        pa.field("completion_ids", pa.list_(pa.int32())),
        pa.field("logprobs", pa.list_(pa.float32())),
        pa.field("finish_reason", pa.string()),
        pa.field("sampling", SAMPLING_TYPE),
        pa.field("model", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("iteration", pa.int32()),
        pa.field("gold", pa.string()),
        pa.field("grade", pa.string()),
        pa.field("reward", pa.float32()),
        pa.field("answer", pa.string()),
        pa.field("question", pa.string()),
    ],
    metadata={SCHEMA_KEY: str(SCHEMA_VERSION).encode()},
)

OPTIONAL_COLUMNS = frozenset(
    {"logprobs", "revision", "gold", "grade", "reward", "answer", "question"}
)
"""Columns that may hold nulls."""
ADDED_COLUMNS = frozenset({"question"})
"""Columns that older files lack: read as nulls."""

_CHOICES = {"finish_reason": FinishReason, "grade": Outcome}


def rollouts_to_table(rollouts: Iterable[Rollout]) -> pa.Table:
    """Return the rollouts as a table of `ROLLOUT_SCHEMA`, one row each, in order.

    Log-probabilities and rewards are stored in float32. A lone surrogate in a text, which no
    UTF-8 file can hold, becomes U+FFFD.

    Raises:
        DataError: a rollout has another number of log-probabilities than of completion ids.

    """
    rows = [_row(rollout) for rollout in rollouts]
    try:
        table = pa.Table.from_pylist(rows, ROLLOUT_SCHEMA)
    except UnicodeEncodeError:
        table = pa.Table.from_pylist(clean(rows), ROLLOUT_SCHEMA)
    _check_values(table, where="the rollouts to store")
    return table


def table_to_rollouts(table: pa.Table) -> Iterator[Rollout]:
    """Yield the rollouts of a table, in order. Columns outside the schema are left out.

    Raises:
        DataError: the table is not a rollout table (see `conform`).

    """
    for batch in conform(table, where="the table").to_batches(max_chunksize=1024):
        for row in batch.select(ROLLOUT_SCHEMA.names).to_pylist():
            yield _rollout(row)


def conform(table: pa.Table, *, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return `table` with the types of `ROLLOUT_SCHEMA`, its columns first, further ones after.

    Other writers' types are cast where nothing is lost (large_string, large_list, int64, double).

    Args:
        table: rows as another tool may have written them.
        where: what the table is, for messages.
        columns: those that must be there and are returned; defaults to all.

    Raises:
        DataError: written by a newer topr, a column is missing, does not fit its type, or holds
            what it may not (null, unknown name, lengths that differ).

    """
    check_version(table.schema, where=where)
    further = [name for name in table.column_names if name not in ROLLOUT_SCHEMA.names]
    wanted = [*ROLLOUT_SCHEMA.names, *further] if columns is None else list(columns)
    for name in wanted:
        if name in ADDED_COLUMNS and name not in table.column_names:
            nulls = pa.nulls(len(table), ROLLOUT_SCHEMA.field(name).type)
            table = table.append_column(name, nulls)
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(
            f"{where} has no column {', '.join(missing)}: it has {', '.join(table.column_names)}. "
            f"A rollout table has {', '.join(ROLLOUT_SCHEMA.names)}; text of other tools is "
            "brought into this shape by topr.interop.import_rollouts"
        )
    arrays = [_cast(table.column(name), name, where=where) for name in wanted]
    result = pa.Table.from_arrays(arrays, names=wanted)
    _check_values(result, where=where)
    return result.replace_schema_metadata(ROLLOUT_SCHEMA.metadata)


def check_version(schema: pa.Schema, *, where: str) -> None:
    """Raise a DataError if a newer topr wrote this. No mark at all is fine: other tools drop it."""
    found = (schema.metadata or {}).get(SCHEMA_KEY)
    if found is None:
        return
    if not found.isdigit() or int(found) > REFERRING_VERSION:
        raise DataError(
            f"{where} has rollout schema version {found.decode(errors='replace')}, this topr reads "
            f"up to version {REFERRING_VERSION}: upgrade topr, or use the version that wrote it"
        )


def _row(rollout: Rollout) -> dict[str, Any]:
    row = {name: getattr(rollout, name, None) for name in ROLLOUT_SCHEMA.names}
    row["finish_reason"] = rollout.finish_reason.value
    row["sampling"] = asdict(rollout.sampling)
    if rollout.grade is not None:
        row["grade"] = rollout.grade.outcome.value
        row["reward"] = rollout.grade.reward
        row["answer"] = rollout.grade.answer
    return row


def _rollout(row: dict[str, Any]) -> Rollout:
    outcome, reward, answer = (row.pop(name) for name in ("grade", "reward", "answer"))
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        row[name] = None if row[name] is None else tuple(row[name])
    row["finish_reason"] = FinishReason(row["finish_reason"])
    row["sampling"] = SamplingParams(**row["sampling"] | {"stop": tuple(row["sampling"]["stop"])})
    if outcome is not None:
        row["grade"] = Grade(outcome=Outcome(outcome), reward=reward, answer=answer)
    return Rollout(**row)


def _cast(column: pa.ChunkedArray, name: str, *, where: str) -> pa.ChunkedArray:
    if name not in ROLLOUT_SCHEMA.names:
        return column
    kind = ROLLOUT_SCHEMA.field(name).type
    if name == "sampling" and pa.types.is_struct(column.type):
        _refuse_unrecorded(column, where=where)
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise DataError(
            f"{where}: column {name} has type {column.type}, which cannot be read as {kind} "
            f"without loss ({error}). Write it with the type {kind}"
        ) from error


def _refuse_unrecorded(column: pa.ChunkedArray, *, where: str) -> None:
    """Refuse parameters that the schema has no place for, where they changed what was sampled."""
    known = {field.name for field in SAMPLING_TYPE}
    for field in column.type:
        if field.name not in known:
            found = pc.unique(pc.struct_field(column, field.name)).to_pylist()
            changes = [c for value in found for c in distribution({field.name: value}).changes]
            if changes:
                raise DataError(
                    f"{where}: column sampling says {changes[0]}, which a rollout has no place for "
                    "and which makes its log-probabilities those of another distribution: bring "
                    "the rows in with `topr import`, which leaves those out"
                )


def _check_values(table: pa.Table, *, where: str) -> None:
    for name in table.column_names:
        if name in ROLLOUT_SCHEMA.names:
            _check_column(table.column(name), name, where=where)
    if {"logprobs", "completion_ids"} <= set(table.column_names):
        lengths = map(pc.list_value_length, (table["logprobs"], table["completion_ids"]))
        _refuse(
            pc.fill_null(pc.not_equal(*lengths), False),
            f"{where}: the number of logprobs is not that of completion_ids",
        )


def _check_column(column: pa.ChunkedArray, name: str, *, where: str) -> None:
    if name not in OPTIONAL_COLUMNS:
        _refuse(pc.is_null(column), f"{where}: column {name} holds a null")
    if name in _CHOICES:
        known = [member.value for member in _CHOICES[name]]
        strange = pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, pa.array(known))))
        _refuse(strange, f"{where}: column {name} holds none of {', '.join(known)}")
    if pa.types.is_floating(column.type):
        strange = pc.fill_null(pc.invert(pc.is_finite(column)), False)
        _refuse(strange, f"{where}: column {name} holds NaN or infinity; null is for none")
    if pa.types.is_list(column.type) and pc.list_flatten(column).null_count:
        raise DataError(f"{where}: column {name} holds a list with a null in it. Fix the file")
    if pa.types.is_struct(column.type):
        for part in column.type:
            value = pc.struct_field(column, part.name)
            _refuse(pc.is_null(value), f"{where}: {name}.{part.name} is missing or null")


def _refuse(bad: pa.ChunkedArray, message: str) -> None:
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise DataError(f"{message} (first in row {row + 1}). Fix the file or leave the row out")
