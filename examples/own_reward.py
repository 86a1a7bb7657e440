"""A reward function of your own, from Python and in a recipe.

    python examples/own_reward.py

The function has TRL's signature: lists in, one number (or None) per completion out. In a recipe:

    task: {name: jsonl, train_file: problems.jsonl, grader: "own_reward:short_and_right"}

and `topr run` finds the module in the working directory.
"""

import re
from collections.abc import Sequence
from typing import Any

import topr

ROWS = [
    {"prompt": "2 + 3 =", "completion": "5", "gold": "5"},
    {"prompt": "2 + 3 =", "completion": "well, 2 plus 3 makes, as we all know, 5", "gold": "5"},
    {"prompt": "2 + 3 =", "completion": "6", "gold": "5"},
    {"prompt": "2 + 3 =", "completion": "", "gold": "5"},
]


def short_and_right(
    completions: Sequence[str], gold: Sequence[str], **columns: Any
) -> list[float | None]:
    """+1 for a right answer of at most five words, -1 for any other text, None for no text.

    Other columns of the rows come by name: `prompt`, `problem_id`, or what your file has.
    """
    rewards: list[float | None] = []
    for text, answer in zip(completions, gold, strict=True):
        numbers = re.findall(r"-?\d+", text)
        right = bool(numbers) and numbers[-1] == answer and len(text.split()) <= 5
        rewards.append(None if not text.strip() else 1.0 if right else -1.0)
    return rewards


def main() -> None:
    graded = topr.grade(ROWS, "own_reward:short_and_right")
    for row in graded:
        print(f"{row['reward']!s:>5}  {row['grade']:<9} {row['completion']!r}")


if __name__ == "__main__":
    main()
