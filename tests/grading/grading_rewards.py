"""Reward functions as a user would write them: good ones, and ones that go wrong."""

import os
import time


def contains_gold(completions, answer, **_):
    return [1.0 if a in c else -0.5 for c, a in zip(completions, answer, strict=True)]


def by_what_it_says(completions, **_):
    """Does whatever the completion asks for."""
    return [_ACTIONS[completion]() for completion in completions]


def column_names(completions, **columns):
    if sorted(columns) != ["answer", "gold", "points", "prompt"]:
        raise KeyError(sorted(columns))
    return [float(points) for points in columns["points"]]


def two_rewards(completions, **_):
    return [1.0, 1.0]


def no_list(completions, **_):
    return 1.0


def a_word(completions, **_):
    return ["good"]


def as_in_trl(prompts, completions, points, **kwargs):
    return [float(n) if p == "a" else None for p, n in zip(prompts, points, strict=True)]


def not_a_number(completions, **_):
    return [float("nan")]


def fails(completions, **_):
    raise ValueError("no luck today")


def _forever():
    while True:
        time.sleep(0.01)


def _eats():
    hoard = []
    while True:
        hoard.append(bytearray(1 << 24))


_ACTIONS = {
    "good": lambda: 2.5,
    "bad": lambda: 0.0,
    "none": lambda: None,
    "hang": _forever,
    "eat": _eats,
    "die": lambda: os._exit(3),
}
