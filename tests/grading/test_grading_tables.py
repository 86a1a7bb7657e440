"""Grades as columns, and what becomes of completions that were cut off."""

import pyarrow as pa
import pytest

from topr.config.sections import GradeConfig
from topr.errors import DataError
from topr.grading import counts, grade_table
from topr.records import Grade, Outcome

ONE = GradeConfig(workers=1)
ROWS = {
    "id": [1, 2, 3, 4, 5],
    "completion": ["#### 5", "#### 6", "no idea", None, "#### 5"],
    "gold": ["5", "5", "5", "5", None],
    "finish_reason": ["stop", "stop", "length", "stop", "length"],
}


def test_columns_are_added_beside_the_inputs_own():
    table = grade_table(pa.table(ROWS), "numeric", ONE)
    assert table.column_names == [*ROWS, "grade", "reward", "answer"]
    assert table.select(list(ROWS)).equals(pa.table(ROWS))
    assert table["grade"].to_pylist() == [
        "correct", "wrong", "truncated", "unparseable", "gold_unparseable",
    ]  # fmt: skip
    assert table["reward"].to_pylist() == [1.0, -1.0, -1.0, -1.0, None]
    assert table["answer"].to_pylist() == ["5", "6", None, None, None]
    assert table.schema.field("reward").type == pa.float32()
    assert counts(table) == {
        "correct": 1, "wrong": 1, "unparseable": 1, "truncated": 1, "gold_unparseable": 1,
    }  # fmt: skip


def test_columns_that_wait_for_grades_are_filled_in_their_place():
    empty = pa.table({"grade": pa.nulls(1, pa.string()), "completion": ["#### 5"], "gold": [5]})
    table = grade_table(empty.replace_schema_metadata({"a": "b"}), "numeric", ONE)
    assert table.column_names == ["grade", "completion", "gold", "reward", "answer"]
    assert table["grade"].to_pylist() == ["correct"]
    assert table.schema.metadata == {b"a": b"b"}
    with pytest.raises(DataError, match="'grade' already holds values"):
        grade_table(table, "numeric", ONE)


def test_gold_answers_in_the_column_that_grading_writes_are_kept_as_gold():
    given = pa.table({"completion": ["#### 5", "#### 6"], "answer": ["5", "5"]})
    table = grade_table(given, "numeric", ONE, gold_column="answer")
    assert table.column_names == ["completion", "gold", "grade", "reward", "answer"]
    assert table["gold"].to_pylist() == ["5", "5"]
    assert table["answer"].to_pylist() == ["5", "6"]
    with pytest.raises(DataError, match="'answer' already holds values"):
        grade_table(given.append_column("gold", given["answer"]), "numeric", ONE)
    with pytest.raises(DataError, match=r"no column 'answer'.*--gold"):
        grade_table(given.drop_columns(["answer"]), "numeric", ONE, gold_column="answer")


@pytest.mark.parametrize(
    ("rule", "grades", "rewards"),
    [
        ("wrong", ["truncated", "truncated", "correct", "gold_unparseable"], [-1, -1, 1, None]),
        ("grade", ["correct", "unparseable", "correct", "gold_unparseable"], [1, -1, 1, None]),
        ("drop", ["truncated", "truncated", "correct", "gold_unparseable"], [None, None, 1, None]),
    ],
)
def test_a_truncated_completion(rule, grades, rewards):
    table = pa.table(
        {
            "completion": ["#### 5", "and", "#### 5", "#### 5"],
            "gold": ["5", "5", "5", "five?"],
            "finish_reason": ["length", "length", "stop", "length"],
        }
    )
    graded = grade_table(table, "numeric", GradeConfig(workers=1, truncated=rule))
    assert graded["grade"].to_pylist() == grades
    assert graded["reward"].to_pylist() == rewards
    assert graded["answer"].to_pylist() == ["5", None, "5", None]


def test_a_users_function_sees_the_other_columns_and_needs_no_gold():
    table = pa.table({"completion": ["5 it is", "6"], "answer_": ["5", "5"], "n": [1, 2]})
    with pytest.raises(DataError, match=r"no column 'gold'.*completion, answer_, n"):
        grade_table(table, "numeric", ONE)
    table = table.rename_columns(["text", "prompt", "points"]).append_column("gold", [["1", "2"]])
    graded = grade_table(table, "grading_rewards:column_names", ONE, completion_column="text")
    assert graded["reward"].to_pylist() == [1.0, 2.0]


def test_a_users_function_gets_the_gold_answers_as_answer():
    table = pa.table({"completion": ["5 it is", "6"], "gold": ["5", "5"]})
    for rows in (table, table.append_column("answer", pa.nulls(2, pa.string()))):
        graded = grade_table(rows, "grading_rewards:contains_gold", ONE)
        assert graded["reward"].to_pylist() == [1.0, -0.5]
        assert graded["answer"].to_pylist() == [None, None]


def test_text_that_no_file_takes_is_made_writable(tmp_path):
    import pyarrow.parquet as pq

    graded = grade_table(pa.table({"completion": ["x"], "gold": ["x"]}), "exact", ONE)
    pq.write_table(graded, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["grade"].to_pylist() == ["correct"]


def test_counts_of_grades_keep_the_order_of_outcomes():
    grades = [Grade(outcome=o, reward=None, answer=None) for o in (Outcome.WRONG, Outcome.CORRECT)]
    assert list(counts(grades).items()) == [("correct", 1), ("wrong", 1)]
