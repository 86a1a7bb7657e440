"""The shapes of other tools, each as its documentation or source writes it, become rollouts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiny import BOS, EOS, TURN_END, tiny_tokenizer
from topr.errors import ConfigError, DataError, RunDirectoryError
from topr.interop import FORMATS, ColumnMap, RowStream, open_source, report_import, write_rollouts
from topr.interop import import_stage as import_stage_module
from topr.interop import importers as importers_module
from topr.interop.formats import recognise
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import (
    Manifest,
    read_manifest,
    read_table,
    rollouts_to_table,
    shard_paths,
    table_to_rollouts,
    write_shard,
)

Row = dict[str, Any]
TOKENIZER = tiny_tokenizer(chat_template=True)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def take(
    folder: Path, rows: RowStream | list[Row], *, requests: list[Row] | None = None, **options: Any
) -> tuple[list[Rollout], Manifest]:
    """Import as the command line does, and return what is in the store then."""
    format_name = options.pop("format_name", None)
    columns = options.pop("columns", ColumnMap())
    given = open_source(
        RowStream.of(rows),
        columns,
        format_name=format_name,
        requests=None if requests is None else RowStream.of(requests),
    )
    settings: Row = {"tokenizer": TOKENIZER, "fingerprint": "m", "details": {}}
    manifest = write_rollouts(given, folder, **settings | options)
    return list(table_to_rollouts(read_table(folder))), manifest


def rewards(rollouts: list[Rollout]) -> list[float | None]:
    return [r.grade.reward if r.grade else None for r in rollouts]


# TRL's page on data set formats has these, the prompt-completion and unpaired preference types.
TRL = {"prompt": "The sky is", "completion": " blue."}
TRL_CHAT = {
    "prompt": [{"role": "user", "content": "What color is the sky?"}],
    "completion": [{"role": "assistant", "content": "It is blue."}],
}


def test_trl_text_and_messages(tmp_path: Path) -> None:
    rows = [TRL | {"label": True}, TRL | {"completion": " green.", "label": False}]
    found, manifest = take(tmp_path / "text", rows)
    assert manifest.details["format"] == "trl"
    assert rewards(found) == [1.0, -1.0]
    assert found[0].completion_ids == (*ids_of(" blue."), EOS)
    assert manifest.details["tokenized"] == {"prompts": 2, "completions": 2}
    assert manifest.details["ends_assumed"] == 2
    (chat,), _ = take(tmp_path / "chat", [TRL_CHAT | {"reward": 0.25}])
    assert chat.prompt.endswith("<|im_start|>assistant\n")
    assert chat.completion_ids == (*ids_of("It is blue."), TURN_END)
    assert rewards([chat]) == [0.25]


def test_trl_preferences_become_a_right_and_a_wrong_one(tmp_path: Path) -> None:
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    found, manifest = take(tmp_path / "r", [row])
    assert [(r.completion, r.sample) for r in found] == [(" blue.", 0), (" green.", 1)]
    assert rewards(found) == [1.0, -1.0]
    assert any("preferences" in line for line in report_import(manifest, "label"))


def test_grouped_rows_keep_ids_and_log_probabilities(tmp_path: Path) -> None:
    row = {
        "prompt": "1+1=",
        "completions": ["2", "3"],
        "rewards": [1.0, -0.5],
        "completion_ids": [[7, EOS], [8]],
        "logprobs": [[-0.5, -0.25], [-1.0]],
        "finish_reasons": ["stop", "length"],
        "gold": "2",
    }
    found, manifest = take(tmp_path / "r", [row])
    assert [r.completion_ids for r in found] == [(7, EOS), (8,)]
    assert [r.logprobs for r in found] == [(-0.5, -0.25), (-1.0,)]
    assert [r.finish_reason for r in found] == [FinishReason.STOP, FinishReason.LENGTH]
    assert {r.gold for r in found} == {"2"}
    assert rewards(found) == [1.0, -0.5]
    assert manifest.details["tokenized"] == {"prompts": 2, "completions": 0}
    assert manifest.details["without_logprobs"] == 0
    text = {"prompt": "1+1=", "completions": ["2", "3"], "rewards": [1, 0]}
    found, _ = take(tmp_path / "text", [text])
    assert rewards(found) == [1.0, -1.0]


# examples/data_preprocess/gsm8k.py of verl, and what main_generation adds.
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1? Let's think step by step."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 7, "answer": "1+1 = 2\n#### 2", "question": "1+1?"},
    "responses": ["1+1 = 2\n#### 2", "#### 3"],
}


def test_verl_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([VERL, VERL | {"responses": ["x"]}]), tmp_path / "g.parquet"
    )
    found, manifest = take(tmp_path / "r", RowStream.open(tmp_path / "g.parquet"))
    assert manifest.details["format"] == "verl"
    assert {(r.problem_id, r.gold) for r in found} == {("openai/gsm8k-train-7", "2")}
    assert [r.completion for r in found] == ["1+1 = 2\n#### 2", "#### 3", "x"]
    assert rewards(found) == [None, None, None]
    assert found[0].prompt.startswith("<|im_start|>user\n1+1?")
    scored, _ = take(tmp_path / "s", [VERL | {"rewards": [1.0, 0.0]}])
    assert rewards(scored) == [1.0, -1.0]
    with pytest.raises(DataError, match=r"row 1: rewards holds \[1.0\], expected a list of 2"):
        take(tmp_path / "bad", [VERL | {"rewards": [1.0]}])


def test_a_folder_of_verl_dumps_is_read_in_the_order_of_steps(tmp_path: Path) -> None:
    # RayPPOTrainer._dump_generations: one file a step, further keys from the reward function.
    for step in (10, 9):
        line = {
            "input": "user\n1+1?\nassistant\n", "output": f"at {step}", "gts": "2",
            "score": float(step == 10), "step": step, "acc": step == 10,
        }  # fmt: skip
        (tmp_path / f"{step}.jsonl").write_text(json.dumps(line) + "\n")
    found, manifest = take(tmp_path / "out", RowStream.open(tmp_path))
    assert [(r.iteration, r.completion, r.gold) for r in found] == [
        (9, "at 9", "2"),
        (10, "at 10", "2"),
    ]
    assert rewards(found) == [-1.0, 1.0]
    assert [r.sample for r in found] == [0, 1]
    assert any("special tokens" in line for line in report_import(manifest, "reward"))
    (tmp_path / "11.jsonl").write_text('{"input": "x"}\n')
    with pytest.raises(DataError, match=r"11\.jsonl, row 1: found the columns input, expected out"):
        take(tmp_path / "bad", RowStream.open(tmp_path))


def datum(prompt: list[int], completion: list[int], advantage: float, **more: Any) -> Row:
    """As tinker's `Datum` of a whole trajectory is written to JSON."""
    whole, zeros = prompt + completion, [0.0] * (len(prompt) - 1)
    tensors = {
        "target_tokens": {"data": whole[1:], "dtype": "int64", "shape": [len(whole) - 1]},
        "logprobs": {"data": zeros + [-0.5] * len(completion), "dtype": "float32"},
        "advantages": {"data": zeros + [advantage] * len(completion), "dtype": "float32"},
    }
    chunk = {"tokens": whole[:-1], "type": "encoded_text"}
    return {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": tensors | more}


def test_tinker_datums_are_cut_where_the_completion_begins(tmp_path: Path) -> None:
    prompt, completion = [BOS, *ids_of("1+1=")], [*ids_of("2"), EOS]
    mask = [0.0] * (len(prompt) - 1) + [1.0] * len(completion)
    rows = [
        datum(prompt, completion, 0.75),
        datum(prompt, completion, 0.0, mask={"data": mask, "dtype": "float32"}),
    ]
    found, manifest = take(tmp_path / "r", rows)
    assert manifest.details["format"] == "tinker"
    for rollout in found:
        assert rollout.prompt_ids == tuple(prompt)
        assert rollout.completion_ids == tuple(completion)
        assert rollout.logprobs == (-0.5,) * len(completion)
        assert rollout.completion == "2"
    assert rewards(found) == [0.75, 0.0]
    assert len({r.problem_id for r in found}) == 1
    assert any("baseline=0" in line for line in report_import(manifest, "reward"))


def test_a_tinker_datum_ends_as_its_last_token_says(tmp_path: Path) -> None:
    prompt = [BOS, *ids_of("1+1=")]
    rows = [datum(prompt, [*ids_of("2"), *end], 1.0) for end in ((EOS,), (), ())]
    found, manifest = take(tmp_path / "r", rows)
    assert [r.finish_reason.value for r in found] == ["stop", "length", "length"]
    said = "\n".join(report_import(manifest, "reward"))
    assert "3 with token ids do not say how they ended: 1 end with a token that ends" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": [0.0] * 5}, "nothing says where the completion begins"),
        ({"mask": [0, 1, 0, 1, 1]}, "several turns are in one datum"),
        ({"advantages": [0, 0, 1, 1, 2]}, "differ from token to token"),
        ({"target_tokens": [9, 9, 9, 9, 9]}, "not the input shifted by one"),
        ({"logprobs": [-1.0]}, "logprobs holds .*, expected 5 numbers"),
    ],
)
def test_a_datum_that_is_no_completion_is_named(tmp_path: Path, change: Row, message: str) -> None:
    row = datum([1, 2, 3], [4, 5, 6], 1.0, **change)
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        take(tmp_path / "r", [row])


# Lines of the batch guide: input, chat and completions output, a request that failed.
ASKED = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "gpt-3.5-turbo-0125",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello world!"},
        ],
        "max_tokens": 1000,
    },
}
ANSWERED = {
    "id": "batch_req_123",
    "custom_id": "request-1",
    "response": {
        "status_code": 200,
        "request_id": "req_123",
        "body": {
            "id": "chatcmpl-123",
            "object": "chat.completion",
            "created": 1711652795,
            "model": "gpt-3.5-turbo-0125",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello."},
                    "logprobs": {"content": [{"token": "Hello.", "logprob": -0.25, "bytes": []}]},
                    "finish_reason": "stop",
                },
                {
                    "index": 1,
                    "message": {"role": "assistant", "content": "Hello, I am"},
                    "logprobs": None,
                    "finish_reason": "length",
                },
            ],
            "usage": {"prompt_tokens": 22, "completion_tokens": 2, "total_tokens": 24},
        },
    },
    "error": None,
}
LATE = ASKED | {"custom_id": "request-2"}
FAILED = ANSWERED | {
    "custom_id": "request-2",
    "response": None,
    "error": {"code": "batch_expired", "message": "This request could not be executed."},
}


def test_openai_batches_get_their_prompts_from_the_requests(tmp_path: Path) -> None:
    found, manifest = take(tmp_path / "r", [FAILED, ANSWERED], requests=[ASKED, LATE])
    assert manifest.details["left_out"] == 1
    stopped, cut = found
    assert stopped.prompt.endswith("Hello world!<|im_end|>\n<|im_start|>assistant\n")
    assert stopped.completion_ids == (*ids_of("Hello."), TURN_END)
    assert cut.completion_ids == tuple(ids_of("Hello, I am"))
    assert [r.logprobs for r in found] == [None, None]  # of tokens whose ids nobody recorded
    assert {r.model for r in found} == {"gpt-3.5-turbo-0125"}
    assert {r.problem_id for r in found} == {"request-1"}
    assert manifest.details["ends_assumed"] == 0
    with pytest.raises(DataError, match=r"row 1: no request has the custom_id 'request-1'"):
        take(tmp_path / "other", [ANSWERED], requests=[ASKED | {"custom_id": "request-9"}])
    with pytest.raises(ConfigError, match="needs the file of requests: --requests"):
        take(tmp_path / "alone", [ANSWERED])
    with pytest.raises(ConfigError, match="takes no file of requests"):
        take(tmp_path / "too-many", [TRL], requests=[ASKED])


def test_a_batchs_answers_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "world!"}]
    asked = ASKED | {"body": {"messages": [{"role": "user", "content": parts}]}}

    def answered(custom_id: str, *choices: Row) -> Row:
        response = {"status_code": 200, "body": {"model": "m", "choices": [*choices]}}
        return {"custom_id": custom_id, "response": response, "error": None}

    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "call"}]}
    rows = [
        answered(
            "request-1",
            {"message": {"content": "Hi."}, "finish_reason": "stop"},
            {"message": {"content": "Ba"}, "finish_reason": "content_filter"},
        ),
        answered("request-2", {"message": called, "finish_reason": "tool_calls"}),
        answered("request-2", {"message": {"content": None}, "finish_reason": "stop"}),
    ]
    (one,), manifest = take(tmp_path / "r", rows, requests=[asked, LATE])
    assert (one.question, one.completion) == ("Hello world!", "Hi.")
    assert manifest.details["left_out"] == 3


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"temperature": 1, "top_p": 1}, True),
        ({"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "logit_bias": {}}, True),
        ({"temperature": 0.7, "top_p": 1}, False),
        ({"temperature": 1}, False),  # top_p may be the server's default
        ({"temperature": 1, "top_p": 1, "presence_penalty": 0.5}, False),
        ({"temperature": 1, "top_p": 1, "logit_bias": {"5": 2}}, False),
    ],
)
def test_log_probabilities_of_another_distribution_are_not_taken(
    tmp_path: Path, asked: dict[str, Any], kept: bool
) -> None:
    body = {"model": "m", "prompt": [BOS, 9, 10], **asked}
    choice = {
        "index": 0, "text": "x", "finish_reason": "stop", "token_ids": [11, EOS],
        "logprobs": {"tokens": ["x", "</s>"], "token_logprobs": [-0.5, -0.125]},
    }  # fmt: skip
    response = {"status_code": 200, "body": {"model": "m", "choices": [choice]}}
    row = {"custom_id": "a", "response": response, "error": None}
    (one,), _ = take(tmp_path / "r", [row], requests=[{"custom_id": "a", "body": body}])
    assert (one.prompt_ids, one.completion_ids) == ((BOS, 9, 10), (11, EOS))
    assert one.logprobs == ((-0.5, -0.125) if kept else None)
    assert one.sampling == SamplingParams(temperature=asked["temperature"])


def test_open_instruct_traces(tmp_path: Path) -> None:
    # RolloutRecord of open_instruct/rl_utils.py, and the metadata file next to it.
    record = {
        "step": 3, "sample_idx": 0, "prompt_idx": 0, "prompt_tokens": [BOS, *ids_of("1+1=")],
        "response_tokens": [*ids_of("2"), EOS], "reward": 10.0, "advantage": 0.5,
        "finish_reason": "stop", "dataset": "gsm8k", "ground_truth": ["2"],
        "request_info": {"num_calls": 0, "timeouts": 0}, "logprobs": [-0.5, -0.25],
    }  # fmt: skip
    cut = {"response_tokens": ids_of("3"), "reward": 0.0, "finish_reason": "length"}
    lines = [record, record | cut | {"sample_idx": 1, "logprobs": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "grpo_rollouts_000000.jsonl").write_text(text)
    (tmp_path / "grpo_metadata.jsonl").write_text('{"run_name": "grpo", "git_commit": "0"}\n')
    found, manifest = take(tmp_path / "out", RowStream.open(tmp_path))
    assert manifest.details["format"] == "open-instruct"
    assert [r.logprobs for r in found] == [(-0.5, -0.25), None]
    assert [r.completion for r in found] == ["2", "3"]
    assert [(r.gold, r.iteration, r.sample) for r in found] == [("2", 3, 0), ("2", 3, 1)]
    assert rewards(found) == [10.0, 0.0]
    assert any("1 of 2 have no log-prob" in line for line in report_import(manifest, "reward"))


def test_our_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    found, _ = take(tmp_path / "a", [TRL | {"reward": 0.5, "finish_reason": "length"}])
    rows = rollouts_to_table(found).to_pylist()
    again, manifest = take(tmp_path / "b", json.loads(json.dumps(rows)))
    assert manifest.details["format"] == "topr"
    assert again == found
    with pytest.raises(DataError, match="row 1 to row 1: a value does not fit topr's schema"):
        take(tmp_path / "c", [rows[0] | {"iteration": "no"}])
    with pytest.raises(DataError, match=r"row 1: column prompt_ids .* holds 'no'"):
        take(tmp_path / "e", [rows[0] | {"prompt_ids": "no"}])
    with pytest.raises(DataError, match="row 1 to row 1: column model holds a null"):
        take(tmp_path / "d", [rows[0] | {"model": None}])


def test_the_format_that_says_most_is_taken_and_a_tie_is_refused() -> None:
    assert recognise({"question": "q", "solution": "s"}) == "columns"
    assert recognise({"prompt": "p", "completion": "c", "reward": 1}) == "trl"
    assert recognise(VERL) == "verl"
    both = {"prompt": "p", "completion": "c", "completions": [], "rewards": []}
    with pytest.raises(DataError, match=r"fit several formats: trl .*; grouped .*--format trl"):
        recognise(both)


def test_a_format_can_be_forced_and_is_held_to(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "completions": ["a"], "rewards": [1]}
    found, _ = take(tmp_path / "r", [row], format_name="grouped", columns=ColumnMap())
    assert [r.completion for r in found] == ["a"]
    with pytest.raises(DataError, match="row 1: found the columns prompt, completion, expected"):
        take(tmp_path / "s", [TRL], format_name="grouped")
    with pytest.raises(ConfigError, match="no format 'trll', only columns, topr"):
        take(tmp_path / "t", [TRL], format_name="trll")
    with pytest.raises(DataError, match=r"row 2: completions holds 'a', expected a list"):
        take(tmp_path / "u", [row, row | {"completions": "a"}], format_name="grouped")
    with pytest.raises(DataError, match=r"row 1: rewards holds \[1, 2\], expected a list of 1"):
        take(tmp_path / "v", [row | {"rewards": [1, 2]}], format_name="grouped")
    with pytest.raises(DataError, match="there are no rows"):
        take(tmp_path / "w", [])


def test_every_format_is_documented() -> None:
    table = Path(__file__).parents[2] / "docs/tables/formats-in.csv"
    for name in FORMATS:
        assert f"\n`{name}`," in table.read_text(encoding="utf-8")


def test_an_import_is_written_in_shards_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_stage_module, "SHARD_ROWS", 3)
    monkeypatch.setattr(importers_module, "_CHUNK", 2)
    rows = [TRL | {"prompt": f"{n}", "reward": n} for n in range(8)]
    whole, manifest = take(tmp_path / "whole", rows)
    assert [path.name for path in shard_paths(tmp_path / "whole")] == list(manifest.files)
    assert len(manifest.files) == 3
    assert [r.prompt for r in whole] == [str(n) for n in range(8)]

    with pytest.raises(DataError, match="row 6: column completion"):
        take(tmp_path / "bad", [*rows[:5], rows[5] | {"completion": None}, *rows[6:]])
    assert not shard_paths(tmp_path / "bad")

    def full(folder: Path, index: int, table: pa.Table) -> None:
        if index:
            raise OSError("no space left on device")
        write_shard(folder, index, table)

    with monkeypatch.context() as patched:
        patched.setattr(import_stage_module, "write_shard", full)
        with pytest.raises(OSError, match="no space"):
            take(tmp_path / "part", rows)
    first = shard_paths(tmp_path / "part")[0].stat().st_mtime_ns
    assert read_manifest(tmp_path / "part") is None
    again, _ = take(tmp_path / "part", rows)
    assert again == whole
    assert shard_paths(tmp_path / "part")[0].stat().st_mtime_ns == first
    with pytest.raises(RunDirectoryError, match="made with other settings"):
        take(tmp_path / "part", rows, fingerprint="other")


def test_other_peoples_rollouts_are_not_overwritten(tmp_path: Path) -> None:
    take(tmp_path / "r", [TRL])
    (tmp_path / "r" / "manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match="holds rollouts already"):
        take(tmp_path / "r", [TRL])
