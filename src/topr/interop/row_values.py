"""Typed values out of other tools' rows, every error with the number of the row."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from topr.distribution import Distribution, distribution
from topr.errors import DataError
from topr.interop.column_map import TEXT, ColumnMap
from topr.interop.reasoning import DETAIL_KEYS, thought_of
from topr.interop.row_reader import Rows
from topr.records import Grade, Message, Outcome, SamplingParams, Several
from topr.store.cells import as_messages, as_object, has_column, plain, value_at
from topr.store.golds import read_gold
from topr.store.schema import MAX_LOGPROB
from topr.tokenization.ends import Finish, read_finish
from topr.tokenization.prompts import REASONING_KEYS

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


SAMPLING = tuple(each.name for each in dataclasses.fields(SamplingParams))
"""Parameters that a rollout can say it was sampled with."""


def changes_unrecorded(sampling: Mapping[str, Any] | None) -> bool:
    """Return whether parameters beside `SAMPLING` made the sampled distribution another one.

    Log-probabilities of it are then not log mu, and nothing would say so.
    """
    further = {name: value for name, value in (sampling or {}).items() if name not in SAMPLING}
    return bool(distribution(further).changes)


_MAX_INT32, _MAX_FLOAT32 = 2**31 - 1, 3.4028234e38
"""The largest numbers that a rollout can hold."""
_PARTS = ("sampling", "prompt_ids", "completion_ids", "logprobs")
"""Fields of lists and objects: as text (CSV knows no other) they are JSON, and empty is null."""
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)


class RowReader:
    """Reads the fields of a resolved `ColumnMap` from one row.

    A null is the same as no column, for every field; so is NaN, as which pandas has a null, but
    for rewards.
    """

    def __init__(self, row: Mapping[str, Any], columns: ColumnMap, *, place: str) -> None:
        self._row = row
        self._columns = columns
        self.place = place

    def error(self, field: str, expected: str) -> DataError:
        """Return the error for a value that is not what it should be."""
        column = getattr(self._columns, field, "") or field
        found = repr(value_at(self._row, column))
        shown = found if len(found) <= 80 else found[:77] + "..."
        return DataError(
            f"{self.place}: column {column} ({field}) holds {shown}, expected {expected}"
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
        raise self.error(field, "text")

    def turns(self, field: str) -> str | tuple[Message, ...]:
        """Return text, or the messages of a chat, one of which must be there."""
        value = self._get(field)
        if not isinstance(value, list):
            return self.text(field)
        messages = tuple(map(_message, value))
        if not messages or None in messages:
            raise self.error(field, "text, or messages with the keys role and content, both text")
        return tuple(message for message in messages if message)

    def written(self) -> str:
        """Return the completion's text: a chat's is that of its one message."""
        message = self._answer()
        if message is None:
            return self.text("completion")
        content = message.get("content")
        return content if isinstance(content, str) else ""  # thought, and nothing said yet

    def reasoning(self) -> str | bool | None:
        """Return what was thought before the completion's text; None for nothing.

        True: something was, and the row does not say what.
        """
        found = self._get("reasoning")
        if isinstance(found, str) and found.strip():
            return found
        if (thought := thought_of(self._answer() or {})) is not None:
            return thought
        if found is True:
            return True
        if found not in (None, "", False) and not isinstance(found, str):
            raise self.error("reasoning", 'text (reasoning="" leaves the column out)')
        return None

    def _answer(self) -> Mapping[str, Any] | None:
        """Return the one message that a chat's completion is; None where it is text."""
        value = self._get("completion")
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, list):
            return None
        known = {"role", "content", *REASONING_KEYS, *DETAIL_KEYS}
        given = [
            {k: v for k, v in turn.items() if v is not None} if isinstance(turn, Mapping) else {}
            for turn in value
        ]
        texts = all(
            isinstance(v, str) or k in DETAIL_KEYS for turn in given for k, v in turn.items()
        )
        if len(given) != 1 or not texts or not {"role"} < set(given[0]) <= known:
            given = [{}]
        if given[0].get("role") != "assistant":
            raise self.error("completion", "one message of the assistant (tool calls are not read)")
        return given[0]

    def there(self, field: str) -> bool:
        """Return whether the row has anything there."""
        return self._get(field) is not None

    def sampling(self, default: SamplingParams) -> SamplingParams:
        """Return how the completion was drawn; what the row does not say is as in `default`."""
        drawn, given = self.drawn(), self._sampling() or {}
        known = {name: given[name] for name in SAMPLING if given.get(name) is not None}
        if "temperature" in known or drawn.greedy:
            known["temperature"] = drawn.temperature
        if "stop" in known:
            known["stop"] = (known["stop"],) if isinstance(known["stop"], str) else known["stop"]
            known["stop"] = tuple(known["stop"])
        if known.get("top_k") == -1:  # vLLM's word for off
            known["top_k"] = 0
        whole = {name: int(known[name]) for name in ("top_k", "max_tokens", "seed") & known.keys()}
        return dataclasses.replace(default, **known | whole)

    def drawn(self) -> Distribution:
        """Return the distribution that was sampled; what the row does not say is as by default."""
        try:
            return distribution(self._sampling())
        except DataError as error:
            raise self.error("sampling", str(error)) from error

    def _sampling(self) -> Mapping[str, Any] | None:
        given = self._get("sampling")
        if not isinstance(given, Mapping | None):
            raise self.error("sampling", "an object such as {temperature: 0.7, top_p: 1.0}")
        return given and {name: plain(value) for name, value in given.items()}

    def changes_unrecorded(self) -> bool:
        """Return whether something else changed what was sampled than a rollout can say."""
        return changes_unrecorded(self._sampling())

    def integer(self, field: str) -> int | None:
        """Return a whole number, also from text; None for null or no column."""
        if not self.there(field) or self._get(field) == "":
            return None
        try:
            number = int(self.text(field))
        except ValueError as error:
            raise self.error(field, "a whole number") from error
        if abs(number) > _MAX_INT32:
            raise self.error(field, f"a whole number up to {_MAX_INT32}")
        return number

    def gold(self, several: Several) -> str | None:
        """Return the reference answer; None for null or no column."""
        try:
            return read_gold(self._get("gold"), several)
        except DataError as error:
            column = self._columns.gold
            raise DataError(f"{self.place}: column {column} (gold): {error}") from error

    def ids(self, field: str, vocabulary: int) -> tuple[int, ...] | None:
        """Return token ids of so large a vocabulary; None for null or no column. Those of a
        completion may be none.
        """
        values = self._list(field)
        if values is None:
            return None
        if not isinstance(values, list) or not set(map(type, values)) <= {int}:
            raise self.error(field, "a list of token ids")
        if not values and field == "prompt_ids":
            raise self.error(field, "at least one token id")
        self.check_ids(values, field, vocabulary)
        return tuple(values)

    def check_ids(self, ids: Sequence[int], field: str, vocabulary: int) -> None:
        """Refuse ids that a vocabulary of this size does not have."""
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            strange = min(ids) if min(ids) < 0 else max(ids)
            raise DataError(
                f"{self.place}: {field} holds {strange}, but the model knows {vocabulary} tokens, "
                "from 0 on: were these completions made with another model's tokenizer?"
            )

    def logprobs(self, length: int) -> tuple[float, ...] | None:
        """Return one log-probability for each of `length` tokens; None for null or no column."""
        values = self._list("logprobs")
        if values is None:
            return None
        numbers = isinstance(values, list) and set(map(type, values)) <= {int, float}
        if not numbers or len(values) != length:
            raise self.error("logprobs", f"{length} numbers, one for each completion id")
        if not all(map(math.isfinite, values)) or (
            values and not -_MAX_FLOAT32 <= min(values) <= max(values) <= MAX_LOGPROB
        ):
            raise self.error(
                "logprobs", "finite natural logarithms of probabilities, which are at most 0"
            )
        return tuple(map(float, values))

    def reward(self) -> float | None:
        """Return the reward, 1 and 0 for what is right and wrong; None for null or no column."""
        value = self._get("reward")
        if isinstance(value, str):
            value = VERDICTS.get(value.strip().lower(), value)
        if value is None or value == "":
            return None
        try:
            number = math.nan if isinstance(value, list | dict | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= _MAX_FLOAT32:
            raise self.error(
                "reward",
                f"a finite number, one of {', '.join(VERDICTS)}, or null where there is none "
                "(NaN is no reward: write null, or fix what computed it)",
            )
        return number

    def graded(self) -> bool:
        """Return whether topr graded the row: then its reward is one, and no verdict."""
        ours = self._columns.reward == "reward" and has_column(self._row, "answer")
        return ours and str(value_at(self._row, "grade")) in _OUTCOMES

    def finish(self, words: Mapping[str, Finish]) -> Finish | None:
        """Return how the completion ended; None where the row does not say."""
        try:
            reason = self._get("finish_reason")
            return read_finish(as_object(reason) or reason, words)
        except DataError as error:
            column = self._columns.finish_reason
            raise DataError(f"{self.place}: column {column} (finish_reason): {error}") from error

    def verdict(self, column: str) -> bool:
        """Return what a column of true and false holds."""
        found = VERDICTS.get(str(value_at(self._row, column)).lower())
        if found is None:
            raise DataError(
                f"{self.place}: column {column} holds {value_at(self._row, column)!r:.80}, "
                "expected true or false"
            )
        return found

    def _get(self, field: str) -> Any:
        column = getattr(self._columns, field)
        value = value_at(self._row, column) if column else None
        if isinstance(value, float) and value != value and field != "reward":
            return None
        if not isinstance(value, str):
            return value
        if field in TEXT:
            try:
                return as_messages(value)
            except DataError as error:
                raise DataError(f"{self.place}: {error}") from error
        return _parsed(value) if field in _PARTS else value

    def _list(self, field: str) -> Any:
        """Return a list, its entries Python's own, or whatever else is there."""
        values = self._get(field)
        if not isinstance(values, list | tuple):
            return values
        own = set(map(type, values)) <= {int, float}
        return list(values) if own else [plain(value) for value in values]


def are_verdicts(rewards: Collection[float | None], *, graded: bool) -> bool:
    """Return whether a whole column says what is right and what is wrong, and has no rewards of its
    own: every value is 0 or 1 (or such a word), and none is a reward that topr gave. A wrong one
    then has the reward -1. Import and training go by this.
    """
    return not graded and set(rewards) <= {0.0, 1.0, None}


class Grades:
    """Rewards as grades: see `are_verdicts`."""

    def __init__(self, rows: Rows, columns: ColumnMap) -> None:
        """Look at every reward of a resolved `ColumnMap` once.

        Raises:
            DataError: a reward is neither a finite number nor a verdict.

        """
        self._there = bool(columns.reward)
        # Every row, also after the first number that is no verdict: a bad one is an error now.
        readers = (
            RowReader(row, columns, place=place) for place, row in (rows if self._there else ())
        )
        found = {(reader.reward(), reader.graded()) for reader in readers}
        self.verdicts = self._there and are_verdicts(
            {number for number, _ in found}, graded=any(graded for _, graded in found)
        )
        """Every value is right or wrong, and no reward of its own."""

    def read(self, row: RowReader) -> Grade | None:
        """Return the grade of one row; None for null or no column."""
        return _grade(row.reward(), self.verdicts) if self._there else None


def read_grades(table: pa.Table, columns: ColumnMap) -> list[Grade | None]:
    """Return a grade for each row from the reward column; None for null or no column."""
    rows = Rows.of(table)
    grades = Grades(rows, columns)
    return [grades.read(RowReader(row, columns, place=place)) for place, row in rows]


def _parsed(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text  # refused as what it is


def _message(turn: Any) -> Message | None:
    # Rows read from one table have the keys of all rows, null where they were not given.
    given = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {}
    if set(given) != {"role", "content"} or not all(isinstance(v, str) for v in given.values()):
        return None
    return Message(**given)


def _grade(number: float | None, verdict: bool) -> Grade | None:
    if number is None:
        return None
    outcome = Outcome.CORRECT if number > 0 else Outcome.WRONG
    reward = (1.0 if number > 0 else -1.0) if verdict else number
    return Grade(outcome=outcome, reward=reward, answer=None)
