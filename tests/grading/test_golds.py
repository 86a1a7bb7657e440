"""Gold answers of files: lists, several of them, nested columns; and what counts as cut off."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from command_line import read_jsonl, write_jsonl
from topr.cli import app
from topr.config import GradeConfig
from topr.errors import DataError
from topr.evaluation import score
from topr.grading import grade_table
from topr.grading.verdict import Verdict, any_of
from topr.records import Outcome, Several
from topr.records.golds import read_gold, split_gold

CONFIG = GradeConfig(workers=1)
ANSWER = "The answer is {}."


def graded(rows: list[dict[str, Any]], **options: Any) -> list[str]:
    table = grade_table(pa.Table.from_pylist(rows), "numeric", CONFIG, **options)
    return list(table["grade"].to_pylist())


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (None, None), (" ", None), ([], None), ("[]", None), ([None], None), (float("nan"), None),
        (72, "72"), (72.0, "72"), (0.5, "0.5"), ("72", "72"), (["72"], "72"), ('["72"]', "72"),
        ([72], "72"), (["72", "72"], "72"), ("[72]", "72"), ("[72.0]", "72"), ("[1, 2]", "[1, 2]"),
        ('["', '["'), (["x,y", None], "x,y"), ("[null]", None), ("[[1, 2]]", "[[1, 2]]"),
        (["", " "], None), (["72", ""], "72"), ('["", "72"]', "72"), (("72",), "72"),
        ("[NaN]", None), ([float("nan"), 2], "2"),
    ],
)  # fmt: skip
def test_a_gold_answer_is_text(value: Any, gold: str | None) -> None:
    assert read_gold(value) == gold
    if gold is not None:
        assert read_gold(gold) == gold
        assert split_gold(gold) == [gold]


def test_several_golds_are_kept_as_a_list_that_is_no_answer() -> None:
    kept = read_gold(["1/2", 0.5], Several.ANY)
    assert split_gold(str(kept)) == ["1/2", "0.5"]
    assert read_gold(kept, Several.ANY) == kept
    for value in (["1/2", "0.5"], kept):
        with pytest.raises(DataError, match="2 different answers"):
            read_gold(value)


@pytest.mark.parametrize("value", [True, {"a": 1}, [["1"]], [{"a": 1}], "[true]"])
def test_what_is_no_answer_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="expected text or a number"):
        read_gold(value)


def test_any_of_several_golds_is_right_and_an_unreadable_one_punishes_nobody() -> None:
    right, wrong = Verdict.of(True, "1"), Verdict.of(False, "1")
    unknown, none = Verdict.gold_unparseable(), Verdict.unparseable()
    assert any_of([wrong, right, unknown]) is right
    assert any_of([wrong, unknown]) is unknown
    assert any_of([wrong]) is wrong
    assert any_of([none, none]) is none


def test_completions_are_graded_against_any_of_several_golds() -> None:
    rows = [{"completion": ANSWER.format(n), "gold": '["12", "13"]'} for n in (12, 13, 14)]
    assert graded(rows) == ["correct", "correct", "wrong"]
    with pytest.raises(DataError, match=r"row 1: column 'gold': holds 2 different answers"):
        graded(rows, several_golds=Several.REFUSE)
    lists = [{"completion": ANSWER.format(n), "gold": ["12"]} for n in (12, 13)]
    assert graded(lists, several_golds=Several.REFUSE) == ["correct", "wrong"]


def test_a_file_is_graded_by_a_nested_column(tmp_path: Path) -> None:
    gold = {"ground_truth": ["12", "13"]}
    rows = [{"text": ANSWER.format(n), "reward_model": gold} for n in (13, 14)]
    rows = [{"out": {"text": row.pop("text")}} | row for row in rows]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    command = [
        "grade", str(tmp_path / "rows.jsonl"), "-t", "numeric", "--completion", "out.text",
        "--gold", "reward_model.ground_truth", "-o", str(tmp_path / "out.jsonl"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="2 different answers"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    CliRunner().invoke(app, [*command, "--several-golds", "any"], catch_exceptions=False)
    assert [row["grade"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["correct", "wrong"]


def test_a_file_is_graded_by_golds_as_they_stand_in_it(tmp_path: Path) -> None:
    golds = ["x", [12], 12.0, None]
    rows = [{"completion": "12", "gold": gold} for gold in golds]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["grade", str(tmp_path / "rows.jsonl"), "-t", "exact", "--answer-only"]
    CliRunner().invoke(app, [*command, "-o", str(tmp_path / "o.jsonl")], catch_exceptions=False)
    found = [row["grade"] for row in read_jsonl(tmp_path / "o.jsonl")]
    assert found == ["wrong", "correct", "correct", "gold_unparseable"]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, {"completion": "12", "gold": [1, 2]}])
    with pytest.raises(DataError, match="row 5: column 'gold': holds 2 different answers"):
        CliRunner().invoke(app, [*command, "-o", str(tmp_path / "p.jsonl")], catch_exceptions=False)


@pytest.mark.parametrize("word", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens"])
def test_every_word_for_truncated_is_one(word: str) -> None:
    row = {"completion": ANSWER.format(12), "gold": "12", "finish_reason": word}
    assert graded([row]) == [Outcome.TRUNCATED]
    assert graded([row | {"finish_reason": "end_turn"}]) == [Outcome.CORRECT]
    with pytest.raises(DataError, match=r"row 1: the finish reason 'worn' is unknown"):
        graded([row | {"finish_reason": "worn"}])
    as_they_are = GradeConfig(workers=1, truncated="grade")  # then no word matters
    table = grade_table(pa.Table.from_pylist([row]), "numeric", as_they_are)
    assert table["grade"].to_pylist() == [Outcome.CORRECT]
    scored = {
        "problem_id": "p", "completion_ids": [1], "finish_reason": word, "grade": "wrong",
        "reward": -1.0, "answer": "12", "sampling": {"temperature": 1.0},
    }  # fmt: skip
    table = pa.Table.from_pylist([scored, scored | {"finish_reason": "eos"}])
    found = score(table, pass_at=(1,), resamples=10, name="m", iteration=0, model="m", split="t")
    assert found.metrics["truncated"] == 0.5
