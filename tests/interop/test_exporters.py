"""Rollouts in other tools' shapes: what goes out comes back, where the shape carries it."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from tiny import EOS, tiny_tokenizer
from tiny_rollouts import tiny_grade, tiny_rollout
from topr.errors import ConfigError, DataError
from topr.interop import (
    EXPORTS,
    ColumnMap,
    RowStream,
    export_rollouts,
    import_rollouts,
    open_source,
    write_rollouts,
    write_rows,
)
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import read_table, rollouts_to_table, table_to_rollouts

TOKENIZER = tiny_tokenizer(chat_template=True)
REWARDS = {"a": [1.0, -1.0, -1.0, None], "b": [1.0, 1.0], "c": [-1.0]}
SAMPLING = SamplingParams(temperature=0.5, top_k=9, max_tokens=7, stop=("\n",), seed=3)


def rollout(problem: str, sample: int, reward: float | None) -> Rollout:
    prompt, completion = f"{problem}=", f" {problem}{sample}"
    cut = sample == 2
    ids = tuple(TOKENIZER(completion, add_special_tokens=False)["input_ids"])
    return tiny_rollout(
        problem_id=f"p-{problem}",
        sample=sample,
        prompt=prompt,
        prompt_ids=tuple(TOKENIZER(prompt)["input_ids"]),
        completion=completion,
        completion_ids=ids if cut else (*ids, EOS),
        logprobs=None if cut else (-0.5,) * (len(ids) + 1),
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        sampling=SAMPLING,
        model="writer",
        iteration=4,
        gold="1",
        question=f"What is {problem}?",
        grade=None if reward is None else tiny_grade(reward),
    )


ROLLOUTS = [
    rollout(problem, sample, reward)
    for problem, rewards in REWARDS.items()
    for sample, reward in enumerate(rewards)
]
TABLE = rollouts_to_table(ROLLOUTS)


def back(folder: Path, name: str, suffix: str) -> list[Rollout]:
    """Export to a file, and import that file as the command line does."""
    path = folder / f"out{suffix}"
    write_rows(path, export_rollouts(TABLE, name).table)
    given = open_source(RowStream.open(path), ColumnMap())
    assert given.format == name.removesuffix("-kto")
    write_rollouts(given, folder / "in", tokenizer=TOKENIZER, fingerprint="m", details={})
    return list(table_to_rollouts(read_table(folder / "in")))


def essence(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    return [
        (r.problem_id, r.sample, r.prompt_ids, r.completion_ids, r.gold, r.finish_reason, r.grade)
        for r in rollouts
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json.gz"])
def test_our_own_shape_comes_back_whole(tmp_path: Path, suffix: str) -> None:
    assert back(tmp_path, "topr", suffix) == ROLLOUTS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_groups_carry_ids_log_probabilities_and_sampling(tmp_path: Path, suffix: str) -> None:
    found = back(tmp_path, "grouped", suffix)
    assert essence(found) == essence(ROLLOUTS)
    assert [r.logprobs for r in found] == [r.logprobs for r in ROLLOUTS]
    assert {(r.sampling, r.iteration, r.model) for r in found} == {(SAMPLING, 4, "writer")}


def test_trl_carries_text_and_rewards(tmp_path: Path) -> None:
    found = back(tmp_path, "trl", ".jsonl")
    assert essence(found) == essence(ROLLOUTS)  # this tokenizer's text makes the round trip
    assert {r.logprobs for r in found} == {None}


def test_kto_leaves_out_what_has_no_label(tmp_path: Path) -> None:
    made = export_rollouts(TABLE, "trl-kto")
    assert made.table["label"].to_pylist() == [True, False, False, True, True, False]
    assert (made.without_reward, made.truncated) == (1, 1)
    graded = [r for r in ROLLOUTS if r.grade]
    assert essence(back(tmp_path, "trl-kto", ".parquet")) == essence(graded)


def test_pairs_are_of_one_problem_and_use_each_completion_once() -> None:
    rows = export_rollouts(TABLE, "trl-dpo").table.to_pylist()
    (pair,) = rows
    told = {"prompt": "a=", "chosen": " a0", "rejected": " a1", "problem_id": "p-a"}
    assert {name: pair[name] for name in told} == told
    with pytest.raises(DataError, match="pairs need a right and a wrong one"):
        export_rollouts(TABLE.slice(4), "trl-dpo")


def test_verl_gets_one_row_a_problem_as_its_loader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "verl.parquet"
    write_rows(path, export_rollouts(TABLE, "verl", data_source="openai/gsm8k").table)
    # RLHFDataset._read_files_and_tokenize loads it like this, and renders doc["prompt"] like that.
    rows = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert [row["data_source"] for row in rows] == ["openai/gsm8k"] * 3
    assert rows[0]["reward_model"] == {"ground_truth": "1", "style": "rule"}
    assert TOKENIZER.apply_chat_template(
        rows[0]["prompt"], add_generation_prompt=True, tokenize=False
    ).startswith("<|im_start|>user\nWhat is a?")
    found = back(tmp_path, "verl", ".jsonl")
    assert [(r.problem_id, r.completion) for r in found] == [
        (r.problem_id, r.completion) for r in ROLLOUTS
    ]
    assert [r.finish_reason for r in found] == [r.finish_reason for r in ROLLOUTS]
    assert [r.grade.reward if r.grade else None for r in found] == [
        reward for rewards in REWARDS.values() for reward in rewards
    ]


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="no format 'tinker' to write, only topr, grouped"):
        export_rollouts(TABLE, "tinker")
    with pytest.raises(DataError, match="the rollouts has no column"):
        export_rollouts(TABLE.drop_columns(["prompt"]), "trl")


def test_every_shape_is_documented() -> None:
    table = Path(__file__).parents[2] / "docs/tables/formats-out.csv"
    for name in EXPORTS:
        assert f"\n`{name}`," in table.read_text(encoding="utf-8")


def test_hidden_state_is_not_needed_to_import_what_was_exported() -> None:
    """The Python way: no files at all."""
    rows = export_rollouts(TABLE, "trl").table
    found = list(import_rollouts(rows, columns=ColumnMap(), tokenizer=TOKENIZER))
    assert essence(found) == essence(ROLLOUTS)
