"""Typed values out of other tools' rows; errors name the row, the column and what it holds."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from topr.errors import DataError
from topr.interop.column_map import TEXT, ColumnMap
from topr.interop.reasoning import DETAIL_KEYS, reasoning_of
from topr.interop.row_files import RowStream
from topr.records import Grade, Message, Outcome, SamplingParams, Several
from topr.records.distribution import Distribution, distribution
from topr.records.golds import json_in, read_gold
from topr.store.cells import as_messages, as_object, has_column, plain, value_at
from topr.store.schema import MAX_LOGPROB
from topr.tokenization.ends import Finish, read_finish
from topr.tokenization.prompts import REASONING_KEYS

VERDICTS = {
    **dict.fromkeys(("true", "yes", "correct", "right"), True),
    **dict.fromkeys(("false", "no", "incorrect", "wrong"), False),
}

_MAX_INT32, _MAX_FLOAT32 = 2**31 - 1, 3.4028234e38
"""The largest numbers that a rollout can hold."""
_PARTS = ("sampling", "prompt_ids", "completion_ids", "logprobs")
"""Fields of lists and objects: as text (CSV has nothing else) they are JSON, and empty is null."""
_SAMPLING = tuple(each.name for each in dataclasses.fields(SamplingParams))
_KINDS = {"i": int, "u": int, "f": float}
"""The types of numpy's numbers."""
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_ANSWER_KEYS = {"role", "content", *REASONING_KEYS, *DETAIL_KEYS}


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
        found = value_at(self._row, column)
        return self._error(field, f" holds {found!r:.80}, expected {expected}")

    def _error(self, field: str, problem: object) -> DataError:
        column = getattr(self._columns, field, "") or field
        return DataError(f"{self.place}: column {column} ({field}){problem}")

    def there(self, field: str) -> bool:
        """Return whether the row has anything there."""
        return self._get(field) is not None

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

    def integer(self, field: str) -> int | None:
        """Return a whole number, also from text; None for null or no column."""
        if self._get(field) in (None, ""):
            return None
        try:
            number = int(self.text(field))
        except ValueError as error:
            raise self.error(field, "a whole number") from error
        if abs(number) > _MAX_INT32:
            raise self.error(field, f"a whole number up to {_MAX_INT32}")
        return number

    def turns(self, field: str) -> str | tuple[Message, ...]:
        """Return text, or the messages of a chat, one of which must be there."""
        value = self._get(field)
        if not isinstance(value, list):
            return self.text(field)
        messages = [_without_nulls(turn) for turn in value]
        fits = all(set(m) == {"role", "content"} and _texts(m.values()) for m in messages)
        if not messages or not fits:
            raise self.error(field, "text, or messages with the keys role and content, both text")
        return tuple(Message(**message) for message in messages)

    def written(self) -> str:
        """Return the completion's text: a chat's is that of its one message."""
        message = self._answer()
        if message is None:
            return self.text("completion")
        content = message.get("content")
        return content if isinstance(content, str) else ""  # truncated while it reasoned

    def reasoning(self) -> str | bool | None:
        """Return the reasoning before the completion's text; None if there is none, True if the row
        does not say what it was.
        """
        found = self._get("reasoning")
        if isinstance(found, str) and found.strip():
            return found
        if (in_message := reasoning_of(self._answer() or {})) is not None:
            return in_message
        if found is True:
            return True
        if found not in (None, "", False) and not isinstance(found, str):
            raise self.error("reasoning", 'text (reasoning="" leaves the column out)')
        return None

    def _answer(self) -> Mapping[str, Any] | None:
        """Return the one message that a chat's completion is; None where it is text."""
        value = self._get("completion")
        if not isinstance(value, list | Mapping):
            return None
        turns = value if isinstance(value, list) else [value]
        turn = _without_nulls(turns[0]) if len(turns) == 1 else {}
        texts = _texts(v for name, v in turn.items() if name not in DETAIL_KEYS)
        known = texts and {"role"} < set(turn) <= _ANSWER_KEYS
        if not known or turn["role"] != "assistant":
            raise self.error("completion", "one message of the assistant (tool calls are not read)")
        return turn

    def sampling(self, default: SamplingParams) -> SamplingParams:
        """Return how the completion was sampled; what the row does not say is as in `default`."""
        drawn, given = self.drawn(), self._sampling()
        known = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
        if "temperature" in known or drawn.greedy:
            known["temperature"] = drawn.temperature
        if "stop" in known:
            stop = known["stop"]
            known["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        known |= {name: int(known[name]) for name in ("top_k", "max_tokens", "seed") & known.keys()}
        if known.get("top_k") == -1:  # vLLM's word for off
            known["top_k"] = 0
        return dataclasses.replace(default, **known)

    def drawn(self) -> Distribution:
        """Return the distribution that was sampled; what the row does not say is as by default."""
        try:
            return distribution(self._sampling())
        except DataError as error:
            raise self.error("sampling", str(error)) from error

    def _sampling(self) -> Mapping[str, Any]:
        given = self._get("sampling")
        if not isinstance(given, Mapping | None):
            raise self.error("sampling", "an object such as {temperature: 0.7, top_p: 1.0}")
        return {name: plain(value) for name, value in (given or {}).items()}

    def gold(self, several: Several) -> str | None:
        """Return the reference answer; None for null or no column."""
        try:
            return read_gold(self._get("gold"), several)
        except DataError as error:
            raise self._error("gold", f": {error}") from error

    def finish(self, words: Mapping[str, Finish]) -> Finish | None:
        """Return how the completion ended; None where the row does not say."""
        reason = self._get("finish_reason")
        try:
            return read_finish(as_object(reason) or reason, words)
        except DataError as error:
            raise self._error("finish_reason", f": {error}") from error

    def verdict(self, column: str) -> bool:
        """Return what a column of true and false holds."""
        value = value_at(self._row, column)
        found = VERDICTS.get(str(value).lower())
        if found is None:
            raise DataError(
                f"{self.place}: column {column} holds {value!r:.80}, expected true or false"
            )
        return found

    def ids(self, field: str, vocabulary: int) -> Sequence[int] | None:
        """Return token ids of so large a vocabulary: a tuple, or the array that the row has. None
        for null or no column. Those of a completion may be none.
        """
        values = self._numbers(field, {int}, "a list of token ids")
        if values is None:
            return None
        if not len(values) and field == "prompt_ids":
            raise self.error(field, "at least one token id")
        self.check_ids(values, field, vocabulary)
        return values if isinstance(values, np.ndarray) else tuple(values)

    def check_ids(self, ids: Sequence[int], field: str, vocabulary: int) -> None:
        """Refuse ids that a vocabulary of this size does not have."""
        if not len(ids):
            return
        low, high = (ids.min(), ids.max()) if isinstance(ids, np.ndarray) else (min(ids), max(ids))
        if not 0 <= low <= high < vocabulary:
            raise DataError(
                f"{self.place}: {field} holds {low if low < 0 else high}, but the model knows "
                f"{vocabulary} tokens, numbered from 0: were these completions made with another "
                "model's tokenizer?"
            )

    def logprobs(self, length: int) -> Sequence[float] | None:
        """Return one log-probability for each of `length` tokens, as `ids` does."""
        expected = f"{length} numbers, one for each completion id"
        values = self._numbers("logprobs", {int, float}, expected)
        if values is None:
            return None
        if len(values) != length:
            raise self.error("logprobs", expected)
        numbers = np.asarray(values, dtype=np.float64)
        low, high = numbers.min(initial=0.0), numbers.max(initial=0.0)
        if not (low >= -_MAX_FLOAT32 and high <= MAX_LOGPROB):  # nor where one is NaN
            raise self.error(
                "logprobs", "finite natural logarithms of probabilities, which are at most 0"
            )
        return values if isinstance(values, np.ndarray) else tuple(numbers.tolist())

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
                "(NaN is not a reward: write null, or fix what computed it)",
            )
        return number

    def graded(self) -> bool:
        """Return whether topr graded the row: then its reward is one, and not a verdict."""
        ours = self._columns.reward == "reward" and has_column(self._row, "answer")
        return ours and str(value_at(self._row, "grade")) in _OUTCOMES

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
        if field in _PARTS:
            return json_in(value, "", otherwise=value) if value.strip() else None
        return value

    def _numbers(self, field: str, kinds: set[type], expected: str) -> Sequence[Any] | None:
        """Return a list of numbers of these types, also where they are numpy's; None for null. An
        array of them is returned as it is: as Python's own they take most of the time.
        """
        given = self._row.get(getattr(self._columns, field))
        if (
            isinstance(given, np.ndarray)
            and given.ndim == 1
            and _KINDS.get(given.dtype.kind) in kinds
        ):
            return cast("Sequence[Any]", given)
        values = self._get(field)
        if isinstance(values, list | tuple):
            own = set(map(type, values)) <= kinds
            values = values if own else [plain(value) for value in values]
            if own or set(map(type, values)) <= kinds:
                return values
        if values is None:
            return None
        raise self.error(field, expected)


def are_verdicts(rewards: Collection[float | None], *, graded: bool) -> bool:
    """Return whether a whole column says what is right and what is wrong, and has no rewards of its
    own: every value is 0 or 1 (or such a word), and none is a reward that topr gave. A wrong one
    then has the reward -1. Import and training go by this.
    """
    return not graded and set(rewards) <= {0.0, 1.0, None}


def as_grade(reward: float | None, *, verdicts: bool) -> Grade | None:
    """Return what a row's reward says: see `are_verdicts`."""
    if reward is None:
        return None
    right = reward > 0
    return Grade(
        outcome=Outcome.CORRECT if right else Outcome.WRONG,
        reward=(1.0 if right else -1.0) if verdicts else reward,
        answer=None,
    )


def read_grades(table: pa.Table, columns: ColumnMap) -> list[Grade | None]:
    """Return a grade for each row from the reward column; None for null or no column."""
    readers = [RowReader(row, columns, place=place) for place, row in RowStream.of(table)]
    rewards = [reader.reward() for reader in readers]
    verdicts = are_verdicts(rewards, graded=any(reader.graded() for reader in readers))
    return [as_grade(reward, verdicts=verdicts) for reward in rewards]


def _without_nulls(turn: Any) -> dict[str, Any]:
    """Return a message's own keys: rows read from one table have those of all rows, null where they
    were not given. What is not a message has none.
    """
    return {k: v for k, v in turn.items() if v is not None} if isinstance(turn, Mapping) else {}


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
