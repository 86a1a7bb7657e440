"""What graded completions tell before anything is trained on them."""

import logging

import pyarrow as pa
import pytest

from tiny_rollouts import tiny_rollout
from topr.config import GradeConfig
from topr.errors import DataError
from topr.grading.survey import LOOKED_AT, Concern, first_look, survey
from topr.records import FinishReason, Grade, Outcome
from topr.stages.grade import refuse_none_right, warn_of_concerns
from topr.store import rollouts_to_table, write_shard

C, W, U, N = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.UNSCORED
REWARDS = {C: 1.0, W: -1.0, U: -1.0, N: None}


def table(*rows, text="It goes on and on", graded=True) -> pa.Table:
    """Rows of (problem, outcome, whether it is truncated)."""
    return rollouts_to_table(
        tiny_rollout(
            problem_id=problem,
            sample=number,
            completion=text,
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            gold="18",
            grade=grade(outcome) if graded else None,
        )
        for number, (problem, outcome, cut) in enumerate(rows)
    )


def grade(outcome: Outcome) -> Grade:
    return Grade(outcome=outcome, reward=REWARDS[outcome], answer="4" if outcome is W else None)


def found(*rows, **options):
    return survey(lambda columns: [table(*rows, **options).select(columns)])


@pytest.mark.parametrize(
    ("rows", "concerns"),
    [
        ([("a", C, 0), ("a", W, 0)], []),
        ([("a", C, 1), ("a", W, 0)], []),  # a half is not most
        ([("a", C, 1), ("b", W, 1), ("c", W, 0)], [Concern.TRUNCATED]),
        ([("a", C, 0), ("b", U, 0), ("c", U, 0)], [Concern.UNREADABLE]),
        ([("a", W, 0), ("b", W, 0)], [Concern.NONE_RIGHT]),
        ([("a", U, 1), ("b", U, 1)], list(Concern)),
        ([("a", N, 0), ("b", N, 0)], []),  # nothing can be said of any
        ([("a", N, 0), ("b", W, 0)], [Concern.NONE_RIGHT]),
    ],
)
def test_what_is_wrong_is_counted(rows, concerns):
    assert list(found(*rows).concerns) == concerns


def test_rewards_that_differ_teach_something_although_none_is_right():
    """A linear reward below the threshold is negative, and better than a lower one."""
    rows = table(("a", W, 0), ("a", W, 0))
    low = rows.set_column(rows.column_names.index("reward"), "reward", pa.array([-1.0, -0.5]))
    assert survey(lambda columns: [low.select(columns)]).concerns == ()
    at_threshold = table(("a", C, 0))
    zero = at_threshold.set_column(rows.column_names.index("reward"), "reward", pa.array([0.0]))
    assert survey(lambda columns: [zero.select(columns)]).concerns == ()


def test_counts_go_over_all_parts():
    parts = [table(("a", C, 0), ("a", U, 1)), table(("b", W, 1), ("b", U, 1))]
    whole = survey(lambda columns: [part.select(columns) for part in parts])
    assert (whole.rows, whole.truncated, whole.unreadable, whole.right) == (4, 3, 2, 1)


def test_two_examples_of_different_problems_show_the_end_of_the_text_harmlessly():
    text = "x" * 500 + "\n\x1b[2Jso it is \u202e18"
    rows = [("a", C, 0), ("a", W, 1), ("a", W, 1), ("b", W, 1), ("c", W, 1)]
    lines = str(found(*rows, text=text)).splitlines()
    assert lines[0].startswith("most completions are truncated: 4 of 5 reached the token limit")
    assert [line.split(",")[0] for line in lines[1:3]] == ["  a", "  b"]
    assert lines[3].startswith("What to change: raise generate.max_tokens")
    for line in lines[1:3]:
        assert "gold answer '18'" in line
        assert "answer read '4'" in line
        assert line.endswith(r"\n\x1b[2Jso it is \u202e18'")
        assert len(line) < 300


def test_a_finished_store_is_warned_of_or_refused(tmp_path, caplog):
    write_shard(tmp_path / "bad", 0, table(("a", W, 0), ("b", W, 0)))
    write_shard(tmp_path / "good", 0, table(("a", W, 0), ("b", C, 0)))
    with caplog.at_level(logging.WARNING):
        warn_of_concerns(tmp_path / "good")
        assert not caplog.records
        warn_of_concerns(tmp_path / "bad")
    assert "no completion is right" in caplog.text
    refuse_none_right(tmp_path / "good", "numeric", GradeConfig())
    refuse_none_right(tmp_path / "bad", "numeric", GradeConfig(none_right="warn"))
    # Whoever gives rewards of his own may mean them otherwise.
    refuse_none_right(tmp_path / "bad", "my_rewards:penalty", GradeConfig())
    with pytest.raises(
        DataError, match=r"(?s)no completion in .* is right.*grade\.none_right=warn"
    ):
        refuse_none_right(tmp_path / "bad", "numeric", GradeConfig())


def test_the_key_changes_no_hash():
    assert GradeConfig(none_right="warn").fixed() == GradeConfig().fixed()


def test_a_first_look_grades_some_completions_over_the_whole_shard(caplog):
    rows = [(f"p{number}", W, 1) for number in range(3 * LOOKED_AT)]
    look = first_look("numeric", GradeConfig(workers=1), None)
    with caplog.at_level(logging.WARNING):
        look(table(*rows, graded=False))
    assert f"{LOOKED_AT} of {LOOKED_AT} reached the token limit" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        look(table(("p", C, 0), text="The answer is 18.", graded=False))
    assert not caplog.records
