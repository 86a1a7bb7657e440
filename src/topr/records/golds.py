"""Reference answers: one meaning of a list of them, wherever it is read.

A gold answer is text. A problem may have several, any of which is right, if the user says so; they
are kept as the JSON text of a list of strings, which is not itself an answer. What an answer means
is for graders.
"""

import json
from typing import Any

from topr.errors import DataError
from topr.records import Several


def json_in(text: str, opening: str, otherwise: Any = None) -> Any:
    """Return the JSON value that a text is, as CSV and many data sets have lists and objects;
    `otherwise` where the text opens in another way, or is broken.

    >>> json_in('{"a": 1}', "{"), json_in("18", "{"), json_in("[2, 5)", "[", "[2, 5)")
    ({'a': 1}, None, '[2, 5)')
    """
    if not text.lstrip().startswith(opening):
        return otherwise
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def read_gold(value: Any, several: Several = Several.REFUSE) -> str | None:
    """Return a reference answer as text; None where there is none (null, NaN, an empty
    text or list).

    A list with one entry is that entry, also where it is the JSON text of a list. Text such as
    `[1, 2]`, a list of several numbers, is one answer: an interval, or a vector.

    >>> read_gold(18.0), read_gold(["72"]), read_gold("[34]"), read_gold("[2, 5)")
    ('18', '72', '34', '[2, 5)')
    >>> read_gold(["1/2", "0.5"], Several.ANY)
    '["1/2", "0.5"]'

    Raises:
        DataError: several answers with `several` at refuse, or what is not an answer.

    """
    listed = _listed(value) if isinstance(value, str) else value
    entries = listed if isinstance(listed, list | tuple) else [value]
    values = list(dict.fromkeys(_text(one) for one in entries if not _empty(one)))
    if len(values) > 1 and several is Several.REFUSE:
        raise DataError(
            f"holds {len(values)} different answers, {value!r:.80}, expected one. If any of them "
            "is right, say so: --several-golds any (in a recipe, task.several_golds=any)"
        )
    if not values:
        return None
    return values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False)


def split_gold(gold: str) -> list[str]:
    """Return the answers of which any is right: what `read_gold` put together, else the one.

    >>> split_gold('["1/2", "0.5"]'), split_gold("[1, 2]")
    (['1/2', '0.5'], ['[1, 2]'])
    """
    listed = _listed(gold) or [gold]
    return listed if all(isinstance(one, str) for one in listed) else [gold]


def _empty(value: Any) -> bool:
    # NaN, which alone differs from itself, is how pandas leaves a cell empty.
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _listed(text: str) -> list[Any] | None:
    """Return the entries of a JSON list that is not an answer: of strings, or of one value."""
    found = json_in(text, "[")
    if found is None:
        return None
    one = len(found) == 1 and not isinstance(found[0], list | dict)
    return found if one or all(isinstance(each, str) for each in found) else None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"holds {value!r:.80} ({type(value).__name__}), expected text or a number, or a list "
            "of them (a field of an object is named with a dot: reward_model.ground_truth)"
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
