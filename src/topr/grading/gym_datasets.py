"""The datasets of reasoning_gym: which are refused, how one is opened, what a scorer is given.

The one module that touches the package. It makes no problems and reads no completions. Scorers are
given text that a model wrote, and some of them evaluate it: see `_GUARDS`. Call nothing here that
scores outside of a process that can be killed.
"""

import ast
import copy
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from functools import lru_cache
from importlib import metadata
from typing import Any

from topr.errors import ConfigError, ToprError

PACKAGE = "reasoning-gym"
ENTRY = "entry"
"""Column of rollouts with what a scorer needs of a problem: see `Entry`."""
REFUSED: dict[str, str] = {
    "composite": "it is what task.datasets makes",
    "boxnet": "it has no reference answers, and its scorer fails on what is not a plan",
    "coin_flip": "its scorer takes 0 for every probability",
    "game_of_life_halting": "its scorer takes any text for the right answer",
    "propositional_logic": "its scorer takes what follows from anything, such as (P ∧ ¬P) from "
    "premises that contradict each other",
    "puzzle24": "its scorer does not look at which numbers an answer is made of",
    "rush_hour": "it has no reference answers, so that nothing shows whether its scorer is right",
}
"""Datasets that cannot be trained on, and why."""
_REFERENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "graph_color": lambda found: json.dumps(found["possible_answer"]),
    "rubiks_cube": lambda found: str(found["example_correct_answer"]),
}
"""Where any of many answers is right, the one that the generator found is in an item's metadata."""

_ARITHMETIC = re.compile(r"[\d\s+*/().-]{1,200}")
_POLYNOMIAL = re.compile(r"(?:\d{1,20}|\b[a-z]\b|[\s+*/^().-]){1,2000}")
_FORMULA = re.compile(
    r"(?:\d{1,20}(?:\.\d{1,20})?|\b(?:[a-zA-Z]|exp|log|ln|sqrt|pi|a?(?:sin|cos|tan)h?|sec|csc|cot)\b"
    r"|[\s+*/^()-]){1,2000}"
)
_COMPLEX = re.compile(r"[\d\s+.*()ijIJ-]{1,200}")
_LIST_OF_NUMBERS = re.compile(r"[\d\s\[\],.'\"+-]{1,20000}")
_GUARDS: dict[str, re.Pattern[str]] = {
    # These give an answer to sympy's parse_expr, which evaluates it as Python.
    "countdown": _ARITHMETIC,
    "polynomial_multiplication": _POLYNOMIAL,
    "simple_integration": _FORMULA,
    "intermediate_integration": _FORMULA,
    # And these take "nan" for any number.
    "complex_arithmetic": _COMPLEX,
    "number_sorting": _LIST_OF_NUMBERS,
}
"""Datasets whose scorers must not be given any text, and all the text that they are given: numbers,
operators and names of functions, no attributes, no strings, no calls of anything else. Other text
scores 0."""
_EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Datasets whose scorers call `eval` on the answer, to accept a Python list in the place of text.
Their modules are given `ast.literal_eval` under that name, which builds lists and calls nothing."""


@lru_cache(maxsize=1)
def version() -> str:
    """Return which version of the package is installed.

    Raises:
        ConfigError: none is.

    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"the task reasoning_gym needs the package {PACKAGE}, which is not installed here: "
            f"install it (pip install '.[{PACKAGE}]' in topr's checkout, or pip install {PACKAGE})"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One problem as a scorer needs it, and how its score becomes a reward."""

    dataset: str
    parameters: Mapping[str, Any]
    version: str
    """Of the package that made the problem."""
    question: str
    answer: str
    """The reference answer."""
    metadata: Mapping[str, Any]
    reward: str
    """`threshold` or `linear`: see `topr.grading.gym`."""
    threshold: float
    label: bool
    """The prompt ends in the words that announce an answer: what is written first is the answer."""

    def to_json(self) -> str:
        """Return it as text, for a column of rollouts."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(_packed(fields), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Entry | None":
        """Return what `to_json` wrote; None for another text."""
        try:
            return cls(**_unpacked(json.loads(text)))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def open_dataset(name: str, parameters: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """Return a dataset of the package.

    Raises:
        ConfigError: it is unknown or refused, or has no such parameter or value.

    """
    version()
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    check_name(name, DATASETS)
    fields = DATASETS[name][1].__dataclass_fields__
    own = sorted(fields.keys() - {"seed", "size"})
    unknown = sorted(parameters.keys() - set(own))
    if unknown:
        raise ConfigError(
            f"dataset {name!r} has no parameter {unknown[0]!r}: it has {', '.join(own)}. (How many "
            "problems, and with which seed, are settings of the task.)"
        )
    given = {key: _as_default(value, fields[key].default) for key, value in parameters.items()}
    try:
        dataset = reasoning_gym.create_dataset(name, seed=seed, size=size, **given)
    except (AssertionError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"dataset {name!r} refuses the parameters {dict(parameters)}: {error or 'no reason'}"
        ) from error
    if name in _EVALUATED:
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def check_name(name: str, known: Mapping[str, Any]) -> None:
    """Refuse a dataset that the package does not have, or that cannot be trained on.

    Raises:
        ConfigError: it is unknown or refused.

    """
    if name in REFUSED:
        raise ConfigError(
            f"dataset {name!r} of reasoning_gym is refused: {REFUSED[name]}. Choose another"
        )
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
        raise ConfigError(f"reasoning_gym {version()} has no dataset {name!r}: {hint}")


def reference(name: str, item: Mapping[str, Any]) -> str:
    """Return the reference answer of an item, as text; "" where there is none."""
    answer = item["answer"]
    if answer is None and name in _REFERENCES:
        return _REFERENCES[name](item["metadata"])
    return "" if answer is None else str(answer)


def score(entry: Entry, answer: str) -> float:
    """Return the dataset's own score of an answer, from 0 to 1. A process may hang or die of it.

    Raises:
        ToprError: the dataset cannot be opened.
        Exception: whatever the scorer raises on text that it cannot read.

    """
    guard = _GUARDS.get(entry.dataset)
    if guard is not None and guard.fullmatch(answer) is None:
        return 0.0
    dataset = _opened(entry.dataset, json.dumps(_packed(entry.parameters)))
    item: dict[str, Any] = {"question": entry.question, "metadata": entry.metadata}
    item["answer"] = None if entry.dataset in _REFERENCES else entry.answer
    # A copy: some scorers write into it.
    found = float(dataset.score_answer(answer, copy.deepcopy(item)))
    if not found >= 0.0:
        return 0.0
    # Parts that add up to more than 1 by rounding (spell_backward) are parts, not the whole.
    return found if found <= 1.0 else 1.0 - 1e-9


@lru_cache(maxsize=32)
def _opened(name: str, parameters: str) -> Any:
    return open_dataset(name, _unpacked(json.loads(parameters)), seed=0, size=1)


def _as_default(value: Any, default: Any) -> Any:
    """Return a date or a time where the parameter's default is one: recipes have it as text."""
    if not isinstance(value, str) or not isinstance(default, date | time):
        return value
    try:
        return type(default).fromisoformat(value)
    except ValueError as error:
        raise ConfigError(f"{value!r} is no {type(default).__name__}: {error}") from error


def _packed(value: Any) -> Any:
    """Return a value as JSON has it, with tuples and keys that are not text marked."""
    if isinstance(value, tuple):
        return {"__tuple__": [_packed(each) for each in value]}
    if isinstance(value, list):
        return [_packed(each) for each in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): _packed(each) for key, each in value.items()}
        return {"__items__": [[_packed(key), _packed(each)] for key, each in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "item"):
        return value.item()  # a scalar of numpy
    raise ToprError(f"an item of reasoning_gym holds {value!r:.60}, which JSON has no form for")


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if isinstance(value, dict):
        if value.keys() == {"__tuple__"}:
            return tuple(_unpacked(value["__tuple__"]))
        if value.keys() == {"__items__"}:
            return {_unpacked(key): _unpacked(each) for key, each in value["__items__"]}
        return {key: _unpacked(each) for key, each in value.items()}
    return value
