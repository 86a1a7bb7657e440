"""Kinds of faults that public reports name in graders, as cases in the shared data."""

import json
from collections import Counter

from topr.grading import GRADERS

GRADER_OF = {"gsm8k": "numeric", "math": "math"}


def test_nothing_wrong_is_rewarded_and_nearly_all_that_is_right(shared_data):
    with (shared_data / "grading_reports.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) > 600
    false_rewards, misses = [], Counter()
    for row in rows:
        reward = GRADERS[GRADER_OF[row["grader"]]](row["completion"], row["gold"], False).reward
        if row["kind"] == "empty-gold":  # neither reward nor punishment is right
            misses[row["kind"]] += reward is not None
        elif reward == 1.0 and not row["expected"]:
            false_rewards.append((row["kind"], row["completion"], row["gold"]))
        else:
            misses[row["kind"]] += (reward == 1.0) != row["expected"]
    assert false_rewards == []
    assert misses.total() <= 0.02 * len(rows), misses
