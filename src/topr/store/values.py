"""Typed values out of other tools' rows, every error with the number of the row."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topr.errors import DataError
from topr.records import FinishReason, Grade, Outcome
from topr.store.columns import ColumnMap

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "max_length": FinishReason.LENGTH,
}
VERDICTS = {
    "true": True,
    "yes": True,
    "correct": True,
    "right": True,
    "false": False,
    "no": False,
    "incorrect": False,
    "wrong": False,
}


class RowReader:
    """Reads the fields of a resolved `ColumnMap` from one row."""

    def __init__(self, row: Mapping[str, Any], columns: ColumnMap, *, number: int) -> None:
        self._row = row
        self._columns = columns
        self.number = number

    def error(self, field: str, expected: str) -> DataError:
        """Return the error for a value that is not what it should be."""
        column = getattr(self._columns, field, "") or field
        found = repr(self._row.get(column))
        shown = found if len(found) <= 80 else found[:77] + "..."
        return DataError(
            f"row {self.number}: column {column} ({field}) holds {shown}, expected {expected}"
        )

    def text(self, field: str) -> str:
        """Return text that must be there."""
        text = self.label(field)
        if text is None:
            raise self.error(field, "text")
        return text

    def label(self, field: str) -> str | None:
        """Return text, or a number as text (18.0 as "18"); None for null or no column."""
        value = self._get(field)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            whole = isinstance(value, float) and value.is_integer()
            return str(int(value)) if whole else str(value)
        raise self.error(field, "text (render chat messages with the chat template first)")

    def integer(self, field: str) -> int | None:
        """Return a whole number, also from text; None where there is no such column."""
        if not getattr(self._columns, field):
            return None
        try:
            return int(self.text(field))
        except ValueError as error:
            raise self.error(field, "a whole number") from error

    def ids(self, field: str) -> tuple[int, ...] | None:
        """Return token ids; None for null or no column."""
        values = self._get(field)
        if values is None:
            return None
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise self.error(field, "a list of token ids")
        return tuple(values)

    def logprobs(self, length: int) -> tuple[float, ...] | None:
        """Return one log-probability for each of `length` tokens; None for null or no column."""
        values = self._get("logprobs")
        if values is None:
            return None
        numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if not numbers or len(values) != length:
            raise self.error("logprobs", f"{length} numbers, one for each completion id")
        return tuple(float(value) for value in values)

    def finish_reason(self, ends: bool | str) -> FinishReason:
        """Return why the completion ended; `ends` decides where the row does not say."""
        reason = self._get("finish_reason")
        if reason is not None:
            if str(reason).lower() not in FINISH_REASONS:
                raise self.error("finish_reason", f"one of {', '.join(FINISH_REASONS)}, or null")
            return FINISH_REASONS[str(reason).lower()]
        if isinstance(ends, str):
            ended = VERDICTS.get(str(self._row[ends]).lower())
            if ended is None:
                raise self.error(ends, "true or false")
            ends = ended
        return FinishReason.STOP if ends else FinishReason.LENGTH

    def _get(self, field: str) -> Any:
        column = getattr(self._columns, field)
        return self._row[column] if column else None


def read_grades(table: pa.Table, columns: ColumnMap) -> list[Grade | None]:
    """Return a grade for each row from the reward column; None for null or no column.

    Whether 0 is a verdict or a reward can only be told from the whole column: where every value
    is 0 or 1 (or such a word) they are verdicts, and a wrong one has reward -1.
    """
    if not columns.reward:
        return [None] * table.num_rows
    values = table.column(columns.reward).to_pylist()
    numbers = [
        _number(RowReader({columns.reward: value}, columns, number=index))
        for index, value in enumerate(values, start=1)
    ]
    verdicts = all(number in (0.0, 1.0, None) for number in numbers)
    return [_grade(number, verdicts) for number in numbers]


def _number(row: RowReader) -> float | None:
    value = row._get("reward")
    if isinstance(value, str):
        value = VERDICTS.get(value.strip().lower(), value)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise row.error("reward", f"a number or one of {', '.join(VERDICTS)}") from error
    return None if math.isnan(number) else number


def _grade(number: float | None, verdict: bool) -> Grade | None:
    if number is None:
        return None
    outcome = Outcome.CORRECT if number > 0 else Outcome.WRONG
    reward = (1.0 if number > 0 else -1.0) if verdict else number
    return Grade(outcome=outcome, reward=reward, answer=None)
