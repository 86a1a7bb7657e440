"""A user's own reward function, by name: `module:function`.

    def reward(completions: list[str], **columns: list) -> list[float | None]

Functions that TRL gives text (not chat messages) work as they are: `completions` is passed by its
name, and `prompts`, where a function has that parameter, is the column `prompt`. Other columns have
the table's names.

It is called with one completion at a time (lists of length 1), so that a completion that hangs
costs itself alone and the result cannot depend on how completions are spread over workers.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from topr.errors import GradingError
from topr.records import Grade, Outcome
from topr.user_code import load_attribute

RewardFunction = Callable[..., Any]


def load_function(name: str) -> RewardFunction:
    """The function that `module:function` names. The working directory is importable.

    Raises:
        GradingError: the name has another form, or the module or function is not there.

    """
    if ":" not in name:
        raise GradingError(
            f"grader {name!r} is neither built in nor of the form `module:function`: "
            "write for example `my_rewards:score`"
        )
    function = load_attribute(name, what="grader", error=GradingError)
    if not callable(function):
        raise GradingError(f"grader {name!r} is not callable: it is {function!r}")
    return cast("RewardFunction", function)


@cache
def parameters_of(function: RewardFunction) -> frozenset[str]:
    """Return the names of a function's parameters; none where Python cannot tell."""
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()


def score(function: RewardFunction, completion: str, columns: Mapping[str, Any]) -> Grade:
    """The grade of one completion: CORRECT where the reward is positive, UNSCORED for None.

    Raises:
        GradingError: the function fails, or returns anything but one number or None.

    """
    values = {name: [value] for name, value in columns.items()}
    named = parameters_of(function)
    if "prompts" in named and "prompt" in values:
        values.setdefault("prompts", values["prompt"])
    try:
        if "completions" in named:
            rewards = function(completions=[completion], **values)
        else:
            rewards = function([completion], **values)
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's code raises is reported as theirs
        raise GradingError(f"the reward function raised {type(error).__name__}: {error}") from error
    try:
        rewards = list(rewards)
    except TypeError:
        raise GradingError(
            f"the reward function returned {rewards!r}, expected a list with one reward"
        ) from None
    if len(rewards) != 1:
        raise GradingError(f"the reward function returned {len(rewards)} rewards for 1 completion")
    reward = rewards[0]
    if reward is None:
        return Grade(outcome=Outcome.UNSCORED, reward=None, answer=None)
    if not isinstance(reward, numbers.Real) and hasattr(reward, "item"):
        reward = reward.item()  # a scalar of numpy or torch
    if not isinstance(reward, numbers.Real) or not math.isfinite(value := float(reward)):
        raise GradingError(
            f"the reward function returned {reward!r}, expected a finite number or None"
        )
    outcome = Outcome.CORRECT if value > 0 else Outcome.WRONG
    return Grade(outcome=outcome, reward=value, answer=None)
