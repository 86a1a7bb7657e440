"""Rows on disk: read once, in parts, and mapped into memory."""

import gc
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tiny import tiny_tokenizer
from topr.errors import DataError
from topr.stages.train_sources import GradedRows
from topr.training.data import prepare_rows
from topr.training.mapped_rows import PART, column_of, column_parts, numbers_of, with_column

ROWS = 2 * PART + 7


def row(number):
    """Three rows of each prompt, and some that cannot be trained on."""
    return {
        "prompt_ids": [9, 10 + number // 3 % 100, number // 300],
        "completion_ids": [5 + number % 50] * (1 + number % 9),
        "logprobs": [-0.5] * (1 + number % 9),
        "reward": None if number % 10 == 4 else (-1.0) ** number,
        "revision": "a" if number % 2 else None,
    }


def prepared(folder, rows=ROWS):
    # A generator: rows are read once.
    return prepare_rows((row(number) for number in range(rows)), tiny_tokenizer(), folder=folder)


def test_rows_of_many_parts_are_the_rows_that_were_given(tmp_path):
    data, composition = prepared(tmp_path)
    kept = [number for number in range(ROWS) if number % 10 != 4]
    assert numbers_of(data, "row").tolist() == kept
    assert (composition.rows, composition.unscored) == (len(kept), ROWS - len(kept))
    positions = [0, len(kept) - 1, 1, PART - 1, PART, PART + 1]
    for found, number in zip(
        data.__getitems__(positions), map(kept.__getitem__, positions), strict=True
    ):
        expected = row(number)
        assert {name: found[name] for name in expected} == expected
    groups = numbers_of(data, "group").tolist()
    prompts = [tuple(row(number)["prompt_ids"]) for number in kept]
    assert groups == [list(dict.fromkeys(prompts)).index(prompt) for prompt in prompts]


def test_nothing_but_what_is_touched_is_in_memory_and_nothing_stays_on_disk(tmp_path):
    gc.collect()
    before = pa.total_allocated_bytes()
    data, _ = prepared(tmp_path, 10 * PART)
    with_logprobs = with_column(data, "behavior_logprobs", column_of(data, "logprobs"))
    assert with_logprobs[3]["behavior_logprobs"] == with_logprobs[3]["logprobs"]
    assert sum(part.nbytes for part in column_parts(data, "completion_ids")) > 50_000
    gc.collect()
    assert pa.total_allocated_bytes() - before < 1_000
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="no rows to train on: 1 have no reward"):
        prepare_rows([row(4)], tiny_tokenizer(), folder=tmp_path)
    with suppress(ZeroDivisionError):
        prepare_rows((row(1 // n) for n in (1, 0)), tiny_tokenizer(), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_selection_has_the_columns_of_its_rows(tmp_path):
    data, _ = prepared(tmp_path)
    chosen = data.select([5, 2, PART + 3])
    assert numbers_of(chosen, "row").tolist() == [data[i]["row"] for i in (5, 2, PART + 3)]
    parts = list(column_parts(chosen, "prompt_ids"))
    assert [ids for part in parts for ids in part.to_pylist()] == chosen["prompt_ids"][:]


def in_parquet(rows, folder):
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=PART // 2)
    return GradedRows([folder / "rows.parquet"])


def in_wide_types(rows, _):
    """As other writers have them: 64 bits, lists with 64-bit offsets, a part of a larger set."""
    table = pa.Table.from_pylist([*rows[:1], *rows])
    kinds = {"completion_ids": pa.int64(), "logprobs": pa.float64()}
    for name, kind in kinds.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(pa.large_list(kind)))
    return Dataset(table).select(range(1, len(table)))


SOURCES = [in_parquet, in_wide_types, lambda rows, _: Dataset.from_list(rows)]


@pytest.mark.parametrize("source", SOURCES)
def test_rows_in_arrow_are_read_as_lists_are(tmp_path, source):
    rows = [row(number) for number in range(ROWS)]
    rows[5]["logprobs"] = None
    expected, composition = prepare_rows(rows, tiny_tokenizer())
    found, same = prepare_rows(source(rows, tmp_path), tiny_tokenizer())
    assert composition == same
    assert found.to_list() == expected.to_list()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "cell",
    [
        {"completion_ids": [5, -1]}, {"completion_ids": [99_999]}, {"completion_ids": [5, None]},
        {"prompt_ids": []}, {"logprobs": [-0.5] * 9}, {"logprobs": [0.5]},
        {"logprobs": [float("nan")]}, {"logprobs": [float("-inf")]},
    ],
    ids=str,
)  # fmt: skip
def test_rows_in_arrow_are_refused_as_lists_are(tmp_path, source, cell):
    rows = [row(0), row(9) | cell]
    with pytest.raises(DataError) as expected:
        prepare_rows(rows, tiny_tokenizer())
    assert "row 1" in str(expected.value)
    with pytest.raises(DataError) as found:
        prepare_rows(source(rows, tmp_path), tiny_tokenizer())
    assert str(found.value) == str(expected.value)
