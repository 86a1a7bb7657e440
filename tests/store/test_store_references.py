"""Shards that leave columns in the files of another stage: read as if they held them."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiny_rollouts import tiny_rollout
from topr.errors import DataError
from topr.interop import RowStream
from topr.store import (
    copy_shard,
    read_batches,
    read_file,
    read_table,
    rollouts_to_table,
    shard_paths,
    stream_tables,
    write_choice,
    write_columns,
    write_shard,
)

GRADES = ("grade", "reward", "answer")
CHOSEN = np.array([25, 3, 4, 29, 0, 12, 13])
"""Not in order, from all shards."""


def rollout(number):
    return tiny_rollout(
        problem_id=f"p{number // 3}",
        sample=number % 3,
        completion=str(number),
        completion_ids=(number, 2),
        logprobs=(-0.5, -float(number)),
    )


def with_grades(table):
    """What grading makes of rows: three columns of theirs filled in."""
    numbers = [int(text) for text in table["completion"].to_pylist()]
    columns = {
        "grade": pa.array(["correct" if n % 2 else "wrong" for n in numbers]),
        "reward": pa.array([1.0 if n % 2 else -1.0 for n in numbers], pa.float32()),
        "answer": pa.array([str(n) for n in numbers]),
    }
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


@pytest.fixture
def run(tmp_path):
    """30 rollouts in shards of 8, their grades, and 7 chosen rows; one column is a user's own."""
    table = rollouts_to_table([rollout(number) for number in range(30)])
    table = table.append_column("level", pa.array(range(30)))
    for index, start in enumerate(range(0, 30, 8)):
        path = write_shard(tmp_path / "rollouts", index, table.slice(start, 8))
        graded = with_grades(read_table(path))
        write_columns(tmp_path / "graded", path, graded, GRADES)
    keys = read_table(tmp_path / "graded", ["problem_id", "sample", "reward"]).take(CHOSEN)
    write_choice(tmp_path / "dataset", tmp_path / "graded", keys, CHOSEN)
    return tmp_path


def whole(run):
    return with_grades(read_table(run / "rollouts"))


def test_grades_are_read_with_the_completions_that_they_are_of(run):
    assert pq.read_schema(run / "graded/part-00001.parquet").names == [
        "problem_id", "sample", *GRADES,
    ]  # fmt: skip
    assert read_table(run / "graded").equals(whole(run))
    assert read_table(run / "graded", ["reward", "level", "sample"]).equals(
        whole(run).select(["reward", "level", "sample"])
    )
    assert read_table(run / "graded", ["grade"]).equals(whole(run).select(["grade"]))


def test_chosen_rows_are_read_in_their_order(run):
    expected = whole(run).take(CHOSEN)
    assert read_table(run / "dataset").equals(expected)
    (path,) = shard_paths(run / "dataset")
    assert read_file(path, ["completion_ids", "reward"]).equals(
        expected.select(["completion_ids", "reward"])
    )
    for rows in (2, 100):
        parts = list(stream_tables([path], rows=rows))
        assert pa.concat_tables(parts).equals(expected)
        batches = list(read_batches(path, rows=rows))
        assert max(map(len, batches)) <= rows
        assert pa.Table.from_batches(batches)["level"].to_pylist() == CHOSEN.tolist()
    assert [row["level"] for _, row in RowStream.open(run / "dataset")] == CHOSEN.tolist()


def test_rows_are_chosen_of_chosen_rows(run):
    again = np.array([5, 0])
    keys = read_table(run / "dataset", ["problem_id", "sample", "reward"]).take(again)
    write_choice(run / "fewer", run / "dataset", keys, again)
    assert read_table(run / "fewer").equals(whole(run).take(CHOSEN[again]))


def test_row_groups_without_a_chosen_row_are_left_out(run, monkeypatch):
    table = read_table(run / "graded")
    path = run / "groups.parquet"
    pq.write_table(table, path, row_group_size=5)
    rows = np.array([28, 7, 6])
    write_choice(
        run / "few", path, table.select(["problem_id", "sample", "reward"]).take(rows), rows
    )
    read = []
    batches = pq.ParquetFile.iter_batches

    def noted(file, *args, **kwargs):
        read.extend(kwargs["row_groups"])
        return batches(file, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    assert read_table(run / "few")["level"].to_pylist() == [28, 7, 6]
    assert read == [1, 5]


def test_a_run_may_be_moved_as_a_whole(run):
    expected = read_table(run / "dataset")
    (run / "elsewhere").mkdir()
    for name in ("rollouts", "graded", "dataset"):
        (run / name).rename(run / "elsewhere" / name)
    assert read_table(run / "elsewhere/dataset").equals(expected)
    (run / "link").symlink_to(run / "elsewhere/dataset")
    assert read_table(run / "link").equals(expected)


def test_rows_that_are_gone_or_changed_are_told(run):
    shard = run / "rollouts/part-00001.parquet"
    shutil.move(shard, run / "away.parquet")
    with pytest.raises(DataError, match=r"rollouts.part-00001.*8 rows.*not there") as caught:
        read_table(run / "graded")
    assert "topr export" in str(caught.value)
    other = read_table(run / "away.parquet")
    write_shard(run / "rollouts", 1, other.slice(0, 5))
    with pytest.raises(DataError, match=r"another one now.*5 rows"):
        read_table(run / "dataset")
    shard.unlink()
    # The same samples of the same problems, written by another model.
    texts = pa.array([f"{text}!" for text in other["completion"].to_pylist()])
    changed = other.set_column(other.column_names.index("completion"), "completion", texts)
    write_shard(run / "rollouts", 1, changed)
    for folder in ("graded", "dataset"):
        with pytest.raises(DataError, match="another one now"):
            read_table(run / folder, ["completion"])
    shard.unlink()
    shutil.move(run / "away.parquet", shard)
    assert read_table(run / "graded").equals(whole(run))


def test_a_file_whose_rewards_alone_were_changed_is_another_one(run):
    path, rows = run / "mine.parquet", np.array([4, 7])
    table = read_table(run / "graded")
    pq.write_table(table, path)
    write_choice(
        run / "few", path, table.select(["problem_id", "sample", "reward"]).take(rows), rows
    )
    flipped = pa.array([-reward for reward in table["reward"].to_pylist()], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("reward"), "reward", flipped), path)
    with pytest.raises(DataError, match=r"another one now|other completions"):
        read_table(run / "few", ["completion"])


def test_graded_of_one_run_does_not_fit_the_rollouts_of_another(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    table = read_table(run / "rollouts/part-00000.parquet")
    longer = pa.array(
        [[*ids, 7] for ids in table["completion_ids"].to_pylist()], pa.list_(pa.int32())
    )
    probs = pa.array(
        [[*row, -1.0] for row in table["logprobs"].to_pylist()], pa.list_(pa.float32())
    )
    for name, column in (("completion_ids", longer), ("logprobs", probs)):
        table = table.set_column(table.column_names.index(name), name, column)
    write_shard(other / "rollouts", 0, table)
    shutil.copytree(run / "graded", other / "graded")
    with pytest.raises(DataError, match="another one now"):
        read_table(other / "graded")


def test_parts_of_other_types_are_read_as_the_whole_is(run):
    table = read_table(run / "graded").slice(0, 6)
    (run / "mixed").mkdir()
    pq.write_table(table, run / "mixed/part-00000.parquet")
    wide = table.set_column(1, "sample", table["sample"].cast(pa.int64()))
    wide = wide.set_column(0, "problem_id", wide["problem_id"].cast(pa.large_string()))
    pq.write_table(wide, run / "mixed/part-00001.parquet")
    rows = np.array([10, 1])
    whole = read_table(run / "mixed")
    keys = whole.select(["problem_id", "sample", "reward"]).take(rows)
    write_choice(run / "few", run / "mixed", keys, rows)
    assert read_table(run / "few").equals(whole.take(rows))


def test_a_shard_is_copied_with_everything(run):
    (path,) = shard_paths(run / "dataset")
    copy_shard(path, run / "copy.parquet")
    shutil.rmtree(run / "rollouts")
    assert read_table(run / "copy.parquet")["level"].to_pylist() == CHOSEN.tolist()
    assert read_table(run / "copy.parquet")["answer"].to_pylist() == list(map(str, CHOSEN))


def test_a_copy_has_the_columns_of_all_files(run):
    table = read_table(run / "graded").slice(0, 4)
    nulls = table.append_column("late", pa.nulls(4))
    (run / "parts").mkdir()
    pq.write_table(nulls, run / "parts/part-00000.parquet")
    filled = nulls.set_column(nulls.num_columns - 1, "late", pa.array(list("abcd")))
    pq.write_table(
        filled.append_column("more", pa.array([1, 2, 3, 4])), run / "parts/part-00001.parquet"
    )
    rows = np.arange(8)
    keys = read_table(run / "parts", ["problem_id", "sample", "reward"])
    write_choice(run / "all", run / "parts", keys, rows)
    copy_shard(run / "all/part-00000.parquet", run / "copy.parquet")
    copy = read_table(run / "copy.parquet")
    assert copy["late"].to_pylist() == [None] * 4 + list("abcd")
    assert copy["more"].to_pylist() == [None] * 4 + [1, 2, 3, 4]
