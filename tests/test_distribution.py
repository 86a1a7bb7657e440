"""Whether recorded numbers are those of the sampled distribution: the same answer everywhere."""

import pyarrow as pa
import pytest

from tiny import EOS, tiny_tokenizer
from topr.errors import DataError
from topr.interop import ColumnMap, import_rollouts, read_rows, write_rows
from topr.records import SamplingParams
from topr.records.distribution import distribution
from topr.store.schema import conform, rollouts_to_table
from topr.training.behavior import recorded
from topr.training.data import prepare_rows

PLAIN = [
    None,
    {},
    {"temperature": 1},
    {"temperature": 0.7, "top_p": 1.0, "top_k": 0},
    {"temperature": None, "top_p": None, "min_p": None, "logit_bias": None},
    {"top_k": -1},  # vLLM's word for off
    {"min_p": 0.0, "repetition_penalty": 1.0, "typical_p": 1.0, "presence_penalty": 0},
    {"logit_bias": {}, "bad_words": [], "guided_decoding": "", "allowed_token_ids": None},
    {
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 3,
        "n": 8,
        "do_sample": True,
        "use_beam_search": False,
    },
]
CHANGED = [
    {"top_k": 50},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
    {"logit_bias": {"5": 2}},
    {"bad_words": ["no"]},
    {"num_beams": 4},
    {"min_tokens": 3},
    {"no_repeat_ngram_size": 3},
    {"a_new_way_to_cut": 0.3},
]
GREEDY = [{"temperature": 0}, {"temperature": 0.0, "top_k": 5}, {"do_sample": False}]


@pytest.mark.parametrize("sampling", PLAIN, ids=str)
def test_what_training_scores(sampling):
    assert distribution(sampling).scored


@pytest.mark.parametrize("sampling", CHANGED, ids=str)
def test_what_makes_it_another_one(sampling):
    found = distribution({"temperature": 0.7, **sampling})
    assert (found.scored, found.greedy, found.temperature) == (False, False, 0.7)
    assert next(iter(sampling)) in found.changes[0]


@pytest.mark.parametrize("sampling", GREEDY, ids=str)
def test_where_nothing_is_sampled(sampling):
    assert distribution(sampling).greedy
    assert not distribution(sampling).scored


@pytest.mark.parametrize("temperature", [-1, float("nan"), float("inf"), "hot", True])
def test_what_is_no_temperature(temperature):
    with pytest.raises(DataError, match="expected a number of 0 or more"):
        distribution({"temperature": temperature})


def row(sampling):
    return {
        "prompt": "2 + 2 =", "completion": " 4", "completion_ids": [9, 10, EOS],
        "logprobs": [-0.5, -0.25, -1.0], "reward": 1.0, "sampling": sampling,
    }  # fmt: skip


def trained_on(rows, **arguments):
    return prepare_rows(rows, tiny_tokenizer(), **arguments)


def imported(sampling):
    rollouts = import_rollouts(
        pa.Table.from_pylist([row(sampling)]),
        columns=ColumnMap(), tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    return rollouts_to_table(rollouts)


@pytest.mark.parametrize("sampling", PLAIN, ids=str)
def test_rows_of_the_scored_distribution_keep_their_numbers(sampling):
    for rows in ([row(sampling)], imported(sampling).to_pylist()):
        table, _ = trained_on(rows)
        assert recorded(table)[0].as_py() == [-0.5, -0.25, -1.0]


@pytest.mark.parametrize("sampling", CHANGED, ids=str)
def test_numbers_of_another_distribution_are_refused_and_may_be_recomputed(sampling):
    """Whether rows come as they are, through a file, or through an import."""
    for rows in ([row(sampling)], imported(sampling).to_pylist()):
        table, composition = trained_on(rows)
        assert composition.rows == 1
        with pytest.raises(DataError, match="behavior_logprobs=recompute"):
            recorded(table)


def test_a_file_of_rows_is_no_way_round(tmp_path):
    write_rows(tmp_path / "rows.parquet", pa.Table.from_pylist([row({"min_p": 0.1})]))
    with pytest.raises(DataError, match="behavior_logprobs=recompute"):
        recorded(trained_on(read_rows(tmp_path / "rows.parquet").to_pylist())[0])


def test_rollouts_do_not_lose_a_parameter_that_they_have_no_place_for():
    table = imported({})
    said = table.column("sampling").to_pylist()[0]
    at = table.column_names.index("sampling")

    def with_(extra):
        return table.set_column(at, "sampling", pa.array([said | extra]))

    assert conform(with_({"min_p": 0.0}), where="here").schema == table.schema
    with pytest.raises(DataError, match=r"here: column sampling says min_p=0\.1"):
        conform(with_({"min_p": 0.1}), where="here")


def test_an_import_records_the_rest(caplog):
    (kept,) = imported({"temperature": 0.7, "min_p": 0.1, "top_k": -1}).to_pylist()
    assert kept["logprobs"] is None
    assert SamplingParams(**kept["sampling"] | {"stop": ()}) == SamplingParams(temperature=0.7)


@pytest.mark.parametrize("sampling", GREEDY, ids=str)
def test_greedy_rows_are_left_out_and_counted(sampling, caplog):
    for greedy in (row(sampling), *imported(sampling).to_pylist()):
        rows, composition = trained_on([row({}), greedy, row({})])
        assert (composition.greedy, composition.rows) == (1, 2)
        assert rows["row"] == [0, 2]
        assert "1 completions were sampled at temperature 0" in caplog.text
        with pytest.raises(DataError, match="1 were sampled at temperature 0"):
            trained_on([greedy])
        # Where no ratio is formed they are as good as any.
        rows, composition = trained_on([greedy], keep_greedy=True)
        assert (composition.greedy, rows["temperature"]) == (0, [1.0])
