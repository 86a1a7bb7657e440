"""What one row holds: columns by name, also fields of nested ones, as Python's own values.

What a reference answer means is in `golds`; which columns other tools have, in `topr.interop`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

import pyarrow as pa

from topr.errors import DataError
from topr.records.golds import json_in


def plain(value: Any) -> Any:
    """Return a value of numpy, torch or pandas as Python's own; any other as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def clean_text(text: str) -> str:
    """Return `text` with lone surrogates replaced by U+FFFD, so that UTF-8 can hold it.

    >>> clean_text("half of a pair: \\ud83d")
    'half of a pair: �'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean(value: Any) -> Any:
    """Return a value of JSON with lone surrogates in its text replaced: slow, and rarely needed.

    >>> clean({"a": ["\\ud83d", 1]})
    {'a': ['�', 1]}
    """
    return json.loads(clean_text(json.dumps(value, ensure_ascii=False)))


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """Return what a row holds in a column, or in a field of a nested one; None where it is not.

    >>> value_at({"reward_model": {"ground_truth": "72"}}, "reward_model.ground_truth")
    '72'
    """
    return plain(_find(row, column)[1])


def column_values(table: pa.Table, column: str) -> list[Any] | None:
    """Return a column of a table, or a field of a nested one; None where it is not there."""
    if column in table.column_names:
        return cast("list[Any]", table.column(column).to_pylist())
    outer = [name for name in table.column_names if column.startswith(f"{name}.")]
    rows: list[Mapping[str, Any]] = table.select(outer).to_pylist() if outer else []
    if not any(has_column(row, column) for row in rows):
        return None
    return [value_at(row, column) for row in rows]


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Return whether a row has a column, or a field of a nested one, be it null."""
    return _find(row, column)[0]


def nested_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of a row's columns, those of objects with their fields.

    >>> nested_names({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    ['a', 'b.c', 'b.d.e']
    """
    names = []
    for name, value in row.items():
        found = as_object(value)
        names += [f"{name}.{inner}" for inner in nested_names(found)] if found else [name]
    return names


def _find(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    if column in row:
        return True, row[column]
    for place, sign in enumerate(column):  # a column's own name may hold dots
        found = as_object(row.get(column[:place])) if sign == "." else None
        if found is not None:
            there, value = _find(found, column[place + 1 :])
            if there:
                return True, value
    return False, None


def as_object(value: Any) -> Mapping[str, Any] | None:
    """Return an object, also one that is written as text."""
    found = json_in(value, "{") if isinstance(value, str) else value
    return found if isinstance(found, Mapping) else None


_CHAT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")


def as_messages(value: Any) -> Any:
    """Return messages that are written as text as a list; any other value as it is.

    >>> as_messages('[{"role": "user", "content": "1+1?"}]')
    [{'role': 'user', 'content': '1+1?'}]

    Raises:
        DataError: they are written in another way than JSON, such as Python's.

    """
    if not isinstance(value, str) or not _CHAT.match(value):
        return value
    found = json_in(value, "[")
    if found is None:
        raise DataError(
            f"messages are written as text, but not as JSON: {value!r:.60}. Write them as JSON, or "
            "as a list of objects"
        )
    return found
