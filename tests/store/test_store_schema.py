"""The rollout table: nothing is lost in it, and nothing that does not fit gets through."""

import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from topr.errors import DataError
from topr.records import FinishReason, Grade, Outcome, Rollout, SamplingParams
from topr.store import ROLLOUT_SCHEMA, rollouts_to_table, table_to_rollouts

ALPHABET = "ab 01\n\t\r\0\\\"',{}<&é中🙂\u2028\u0301\ufeff"


def float32(value: float) -> float:
    return float(np.float32(value))


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(ALPHABET, k=rng.randrange(20)))


def random_ids(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.choices([0, 1, 127_999, 2**31 - 1], k=length))


def random_rollout(rng: random.Random) -> Rollout:
    length = rng.randrange(6)
    grade = Grade(
        outcome=rng.choice(list(Outcome)),
        reward=rng.choice([None, 1.0, -1.0, float32(0.1)]),
        answer=rng.choice([None, "", "18", random_text(rng)]),
    )
    return Rollout(
        problem_id=random_text(rng),
        sample=rng.randrange(64),
        prompt=random_text(rng),
        prompt_ids=random_ids(rng, rng.randrange(4)),
        completion=random_text(rng),
        completion_ids=random_ids(rng, length),
        logprobs=rng.choice([None, tuple(float32(-rng.expovariate(1.0)) for _ in range(length))]),
        finish_reason=rng.choice(list(FinishReason)),
        sampling=SamplingParams(
            temperature=rng.random(),
            top_p=rng.random(),
            top_k=rng.randrange(500),
            max_tokens=rng.randrange(1, 4096),
            stop=rng.choice([(), ("\n\n",), ("Question:", random_text(rng))]),
            seed=rng.choice([0, 2**63 - 1, -(2**63)]),
        ),
        model=random_text(rng),
        revision=rng.choice([None, "", "5f3a"]),
        engine="scripted",
        iteration=rng.randrange(10),
        gold=rng.choice([None, "", "18"]),
        grade=rng.choice([None, grade]),
        question=rng.choice([None, "", random_text(rng)]),
    )


@pytest.fixture
def rollouts() -> list[Rollout]:
    rng = random.Random(0)
    return [random_rollout(rng) for _ in range(200)]


@pytest.fixture
def table(rollouts: list[Rollout]) -> pa.Table:
    return rollouts_to_table(rollouts)


def replaced(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, array)


def test_rollouts_survive_the_table_exactly(rollouts: list[Rollout]) -> None:
    assert {r.logprobs is None for r in rollouts} == {True, False}
    assert any(r.completion == "" for r in rollouts)
    table = rollouts_to_table(iter(rollouts))
    assert table.schema.equals(ROLLOUT_SCHEMA, check_metadata=True)
    assert list(table_to_rollouts(table)) == rollouts


def test_no_rollouts_make_an_empty_table_of_the_same_schema() -> None:
    table = rollouts_to_table([])
    assert table.schema.equals(ROLLOUT_SCHEMA, check_metadata=True)
    assert list(table_to_rollouts(table)) == []


def test_a_slice_and_chunks_give_their_own_rows(rollouts: list[Rollout], table: pa.Table) -> None:
    assert list(table_to_rollouts(table.slice(37, 11))) == rollouts[37:48]
    joined = pa.concat_tables([table.slice(0, 50), table.slice(50)])
    assert list(table_to_rollouts(joined)) == rollouts


def test_logprobs_are_stored_in_float32(rollouts: list[Rollout]) -> None:
    # 0.1 is no float32: the nearest one is 0.1 + 1.49e-9.
    one = replace(rollouts[0], completion_ids=(1,), logprobs=(-0.1,))
    (back,) = table_to_rollouts(rollouts_to_table([one]))
    assert back.logprobs == (-0.10000000149011612,)


def test_a_lone_surrogate_does_not_lose_the_rollouts(rollouts: list[Rollout]) -> None:
    one = replace(rollouts[0], completion="half \ud83d, whole 🙂")
    (back,) = table_to_rollouts(rollouts_to_table([one]))
    assert back.completion == "half \ufffd, whole 🙂"


def test_other_writers_types_are_cast(rollouts: list[Rollout], table: pa.Table) -> None:
    foreign = {
        "sample": pa.int64(),
        "prompt": pa.large_string(),
        "completion": pa.string_view(),
        "model": pa.dictionary(pa.int32(), pa.string()),
        "prompt_ids": pa.large_list(pa.int64()),
        "completion_ids": pa.large_list(pa.int64()),
        "logprobs": pa.large_list(pa.float64()),
        "reward": pa.float64(),
    }
    for name, kind in foreign.items():
        table = replaced(table, name, table.column(name).cast(kind))
    # Fields of a struct in another order, with Python's own widths.
    samplings = [dict(reversed(s.items())) for s in table.column("sampling").to_pylist()]
    table = replaced(table, "sampling", pa.array(samplings))
    table = table.replace_schema_metadata(None).select(sorted(table.column_names))
    assert list(table_to_rollouts(table)) == rollouts


def test_a_newer_schema_is_refused_with_both_versions(table: pa.Table) -> None:
    newer = table.replace_schema_metadata({b"topr.schema": b"3"})
    with pytest.raises(DataError, match=r"version 3, .* up to version 2: upgrade topr"):
        next(table_to_rollouts(newer))


def test_a_missing_column_is_named_with_what_was_found(table: pa.Table) -> None:
    with pytest.raises(DataError, match=r"no column prompt_ids, model: it has problem_id, sample"):
        next(table_to_rollouts(table.drop_columns(["prompt_ids", "model"])))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sample", [0, 2**40], "sample has type int64, which cannot be read as int32"),
        ("sample", [0, 0.5], "sample has type double"),
        ("prompt", ["", None], r"prompt holds a null \(first in row 2\)"),
        ("finish_reason", ["stop", "tired"], r"holds none of stop, length \(first in row 2\)"),
        ("grade", [None, "maybe"], r"grade holds none of correct, .* \(first in row 2\)"),
        ("completion_ids", [[], [1, None]], "completion_ids holds a list with a null"),
        ("logprobs", [None, [-1.0] * 9], r"number of logprobs is not that .* row 2\)"),
        ("sampling", [{"top_k": 1}] * 2, r"sampling.temperature is missing or null"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    table: pa.Table, name: str, values: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        next(table_to_rollouts(replaced(table.slice(0, 2), name, pa.array(values))))


def test_rollouts_with_too_few_logprobs_are_not_stored(rollouts: list[Rollout]) -> None:
    with pytest.raises(DataError, match="logprobs"):
        rollouts_to_table([replace(rollouts[0], completion_ids=(1, 2), logprobs=(-1.0,))])
