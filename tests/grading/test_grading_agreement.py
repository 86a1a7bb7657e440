"""Agreement with labelled data: solutions by language models, and answers judged by people.

The bounds are a little below what docs/grading.md reports for the whole files.
"""

import gzip
import itertools
import json

import pytest

from topr.grading import GRADERS
from topr.records import Outcome


def rows_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if not row.get("disputed")]


@pytest.mark.parametrize(
    ("file", "grader", "text", "label", "answer_only", "step", "agree", "false_accepts"),
    [
        ("gsm8k_model_solutions.jsonl.gz", "numeric", "solution", "is_correct", False, 3, 1.0, 0),
        ("gsm8k_rho_solutions.jsonl.gz", "numeric", "solution", "is_correct", False, 3, 0.998, 0),
        # One label calls `52{wpm}` for 52 wrong; elsewhere a unit in braces is right.
        ("gsm8k_answer_pairs.jsonl", "numeric", "prediction", "expected", True, 1, 0.999, 1),
        ("math_model_solutions.jsonl.gz", "math", "solution", "is_correct", False, 4, 0.994, 0),
        ("math_answer_pairs.jsonl", "math", "prediction", "expected", True, 2, 0.999, 0),
    ],
)  # fmt: skip
def test_agreement(shared_data, file, grader, text, label, answer_only, step, agree, false_accepts):
    rows = rows_of(shared_data / file)[::step]
    accepted = [
        GRADERS[grader](row[text], row["gold"], answer_only).outcome is Outcome.CORRECT
        for row in rows
    ]
    right = [row[label] for row in rows]
    assert 0.2 < sum(right) / len(right) < 0.8
    pairs = list(zip(accepted, right, strict=True))
    assert sum(a and not r for a, r in pairs) <= false_accepts
    assert sum(a == r for a, r in pairs) / len(pairs) >= agree


def test_reference_solutions_of_gsm8k_reach_their_own_answers(shared_data):
    rows = rows_of(shared_data / "gsm8k_test.jsonl.gz")
    for row in rows:
        assert GRADERS["numeric"](row["answer"], row["final_answer"], False).reward == 1.0
    # Against the answer of the next question they do so only where the two are equal.
    for row, other in itertools.pairwise(rows):
        same = row["final_answer"] == other["final_answer"]
        grade = GRADERS["numeric"](row["answer"], other["final_answer"], False)
        assert (grade.outcome is Outcome.CORRECT) == same
