"""The row table: rows as people have them, a small file of each kind, through the command line.

Each is imported with the right count, rewards and ends, or refused with what to do, before anything
is written. Shapes are those of the tools' and data sets' own documentation.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from command_line import write_jsonl
from tiny import BOS, EOS, TURN_END, save_tiny, tiny_tokenizer
from topr.cli import app
from topr.errors import DataError, ToprError
from topr.interop import ColumnMap, RowStream, import_rollouts
from topr.store import read_manifest, read_table, table_to_rollouts

Row = dict[str, Any]
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content.strip() }}\n</think>\n\n"
    "{% endif %}"
    "{{ m.content.lstrip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3's template writes a thought."""


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of several ends, and one whose chat template knows thoughts."""
    folder = tmp_path_factory.mktemp("table")
    save_tiny(folder / "model", chat_template=True)
    generation = folder / "model" / "generation_config.json"
    known = json.loads(generation.read_text())
    generation.write_text(json.dumps(known | {"eos_token_id": [EOS, BOS]}))
    save_tiny(folder / "thinks")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    tokenizer.save_pretrained(folder / "thinks")
    return folder


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of rows, and what an import makes of it."""

    rows: list[Row]
    arguments: tuple[str, ...] = ()
    requests: list[Row] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    """Of each rollout: as many as there must be."""
    ended: str = ""
    """Of each rollout a letter: y or n."""
    said: str = ""
    """Part of what the command prints."""
    refused: str = ""
    """Pattern of the error instead."""
    model: str = "model"


ASKED = {"role": "user", "content": "1+1?"}
STEPS = {"prompt": "1+1?", "completions": ["1 and 1.", "Is 2."], "labels": [True, False]}
OPENR1 = {  # open-r1/OpenR1-Math-220k
    "problem": "1+1?",
    "solution": "By counting, 2.",
    "answer": "2",
    "uuid": "a-1",
    "generations": ["<think>one</think> 2", "<think>two", "3"],
    "finish_reasons": ["stop", "length", None],
    "correctness_math_verify": [True, False, None],
    "correctness_llama": None,
    "is_reasoning_complete": [True, False, True],
    "correctness_count": 1,
    "messages": [ASKED, {"role": "assistant", "content": "2"}],
}
DUMP = {"input": "user\n1+1?\nassistant\n", "output": "2", "gts": "2", "score": 1.0}
VERL = {
    "data_source": "d",
    "prompt": [ASKED],
    "reward_model": {"style": "rule", "ground_truth": ["2"]},
    "responses": ["2", "3"],
    "scores": [1.0, 0.0],
}
TRACE = {"prompt_tokens": [5, 6], "response_tokens": [7, EOS], "reward": 1.0}
PAIR = {"prompt": "1+1?", "completion": "2"}


def batch(message: Row | None = None, *, body: Row | None = None, **choice: Any) -> list[Row]:
    given = {"index": 0, "message": message, "finish_reason": "stop"} | choice
    body = {"model": "m", "choices": [given]} | (body or {})
    return [{"custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}]


REQUEST = [{"custom_id": "a", "body": {"messages": [ASKED]}}]
THOUGHT = {"role": "assistant", "content": "\n\n2", "reasoning_content": "\none\n"}
HIDDEN = {"usage": {"completion_tokens_details": {"reasoning_tokens": 9}}}

KINDS: dict[str, Kind] = {
    # Finish reasons
    "every word for an end": Kind(
        rows=[
            PAIR | {"finish_reason": word}
            for word in ("stop", "eos", "eos_token", "end_turn", "STOP", "COMPLETE", "endoftext")
        ],
        rewards=[None] * 7, ended="yyyyyyy",
    ),
    "every word for cut off": Kind(
        rows=[
            PAIR | {"finish_reason": word}
            for word in (
                "length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length",
                "incomplete", "max_new_tokens", "FinishReason.MAX_TOKENS", "limit",
                "model_context_window_exceeded",
            )
        ],
        rewards=[None] * 10, ended="n" * 10,
    ),
    "SGLang's objects": Kind(
        rows=[
            PAIR | {"finish_reason": reason}
            for reason in ({"type": "stop", "matched": 2}, {"type": "length", "length": 9})
        ],
        rewards=[None, None], ended="yn",
    ),
    "an unknown word": Kind(
        rows=[PAIR, PAIR | {"finish_reason": "abort"}],
        refused=r"row 2: .*'abort' is unknown.*--finish-reason 'abort=stop' .*=drop",
    ),
    "an unknown word that the user explains": Kind(
        rows=[PAIR | {"finish_reason": word} for word in ("abort", "worn", "done")],
        arguments=("--finish-reason", "abort=drop", "--finish-reason", "worn=length",
                   "--finish-reason", "done=stop"),
        rewards=[None, None], ended="ny", said="1 are left out because of their finish reason",
    ),
    "a meaning that is none": Kind(
        rows=[PAIR], arguments=("--finish-reason", "abort=maybe"), refused="not WORD=MEANING",
    ),
    "a column that says whether it ended": Kind(
        rows=[PAIR | {"done": value} for value in (True, False)],
        arguments=("--ends", "done"), rewards=[None, None], ended="yn",
    ),
    "an end in the text": Kind(
        rows=[PAIR | {"completion": text} for text in ("2 </s>", "2<|im_end|>\n", "2</s> 3</s>")],
        rewards=[None] * 3, ended="yyy", said="1 continue after an end token",
    ),
    "ids of a model with several ends": Kind(
        rows=[{"prompt": "p", "completion_ids": [9, end]} for end in (EOS, BOS, TURN_END, 9)],
        rewards=[None] * 4, ended="yyyn",
    ),
    # Lists of completions
    "steps": Kind(rows=[STEPS], refused="TRL's stepwise supervision.*--format grouped"),
    "steps that are completions": Kind(
        rows=[STEPS], arguments=("--format", "grouped"), rewards=[1.0, -1.0], ended="yy",
    ),
    "steps of a problem": Kind(
        rows=[{"problem": "1+1?", "completions": ["1 and 1.", "Is 2."], "labels": [True, False]}],
        refused="TRL's stepwise supervision.*--format grouped",
    ),
    "steps in a column for one": Kind(
        rows=[{"prompt": "1+1?", "completion": ["1 and 1.", "Is 2."], "labels": [True, False]}],
        refused="TRL's stepwise supervision.*--format grouped",
    ),
    "steps with their scores": Kind(
        rows=[{"question": "1+1?", "responses": ["1 and 1.", "2."], "step_scores": [1.0, 0.0]}],
        refused="TRL's stepwise supervision.*--format grouped",
    ),
    "steps that the user names": Kind(
        rows=[{"problem": "1+1?", "steps": ["1 and 1.", "Is 2."]}],
        arguments=("--completion", "steps"), refused="stepwise supervision.*--format grouped",
    ),
    "OpenR1": Kind(rows=[OPENR1], rewards=[None] * 3, ended="yny"),
    "OpenR1 with its verdicts": Kind(
        rows=[OPENR1], arguments=("--reward", "correctness_math_verify"),
        rewards=[1.0, -1.0, None], ended="yny",
    ),
    "OpenR1 with a column for its ends": Kind(
        rows=[OPENR1 | {"finish_reasons": None}], arguments=("--ends", "is_reasoning_complete"),
        rewards=[None] * 3, ended="yny",
    ),
    "verdicts that are not there": Kind(
        rows=[OPENR1, OPENR1], arguments=("--reward", "correctness_llama"), rewards=[None] * 6,
        ended="ynyyny",
    ),
    "a list under a name of the user's": Kind(
        rows=[{"question": "1+1?", "samples_of_8b": ["2", "3"], "ok": [1, 0]}],
        arguments=("--completion", "samples_of_8b", "--reward", "ok"), rewards=[1.0, -1.0],
        ended="yy",
    ),
    "a list in a column for one": Kind(
        rows=[{"prompt": "1+1?", "completion": ["2", "3"], "scores": [0.5, -0.5]}],
        rewards=[0.5, -0.5], ended="yy",
    ),
    "completions that are objects": Kind(
        rows=[{"instruction": "1+1?", "completions": [
            {"model": "a", "response": "2", "score": 4.0}, {"model": "b", "response": "3",
                                                            "score": -1.0}]}],
        rewards=[4.0, -1.0], ended="yy",
    ),
    "completions that are messages": Kind(
        rows=[{"prompt": [ASKED], "completions": [
            {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}],
            "rewards": [True, False]}],
        rewards=[1.0, -1.0], ended="yy",
    ),
    "as many rewards as there should not be": Kind(
        rows=[{"prompt": "p", "completions": ["2", "3"], "rewards": [1.0]}],
        refused=r"row 1: rewards holds \[1.0\], expected a list of 2",
    ),
    "two lists that could be it": Kind(
        rows=[{"prompt": "p", "responses": ["2"], "generations": ["3"]}],
        refused="any of the columns responses, generations: say which, --completion",
    ),
    "whole chats": Kind(
        rows=[{"messages": [ASKED, {"role": "assistant", "content": a}], "reward": r}
              for a, r in (("2", 1), ("3", 0))],
        rewards=[1.0, -1.0], ended="yy",
    ),
    "a chat without an answer": Kind(
        rows=[{"messages": [ASKED]}], refused="row 1: messages holds .*whose last message is the",
    ),
    "a chat that the user answers": Kind(
        rows=[{"messages": [ASKED, ASKED]}], refused="row 1: .*one message of the assistant",
    ),
    "a chat as text": Kind(
        rows=[{"prompt": json.dumps([ASKED]), "completion": "2"}], rewards=[None], ended="y",
    ),
    "a chat as Python's text": Kind(
        rows=[PAIR, {"prompt": str([ASKED]), "completion": "2"}],
        refused="row 2: messages are written as text, but not as JSON",
    ),
    "verl's objects as text": Kind(
        rows=[VERL | {"reward_model": json.dumps(VERL["reward_model"]), "extra_info": "{}"}],
        rewards=[1.0, -1.0], ended="yy",
    ),
    "ids that leave their end out": Kind(
        rows=[TRACE | {"response_tokens": [7], "finish_reason": "stop"}], rewards=[1.0], ended="y",
        said="1 say that they ended by themselves, but their ids have no end token",
    ),
    # Which column it is
    "a reference solution and a response": Kind(
        rows=[{"problem": "1+1?", "solution": "By counting, 2.", "response": "3"}],
        refused="completion may be in any of the columns solution, response.*--completion COLUMN",
    ),
    "an instruction and its input": Kind(
        rows=[{"instruction": "Add.", "input": "1+1", "output": "2"}],
        refused="prompt may be in any of the columns instruction, input.*--prompt COLUMN",
    ),
    "nested columns": Kind(
        rows=[{"data": {"question": "1+1?"}, "completion": "2", "reward_model": '{"a": {"b": 1}}',
               "x": {"y": "1"}}],
        arguments=("--prompt", "data.question", "--reward", "reward_model.a.b", "--gold", "x.y"),
        rewards=[1.0], ended="y",
    ),
    "a nested column that is not there": Kind(
        rows=[PAIR | {"x": {"y": 1}}], arguments=("--gold", "x.z"), refused="no column 'x.z'",
    ),
    # Nulls
    "a dump without its step": Kind(rows=[DUMP, DUMP | {"score": 0}], rewards=[1, -1], ended="yy"),
    "a dump with a step of null": Kind(rows=[DUMP | {"step": None}], rewards=[1], ended="y"),
    "a trace without its step": Kind(rows=[TRACE], rewards=[1.0], ended="y"),
    "nulls everywhere": Kind(
        rows=[
            PAIR | dict.fromkeys(
                ("sample", "iteration", "problem_id", "model", "finish_reason", "reward", "gold",
                 "sampling", "prompt_ids", "completion_ids", "logprobs", "reasoning_content")
            ),
            PAIR | {"sample": 0}, PAIR | {"sample": None},
        ],
        refused="row 2: column sample .* a number that no other row",
    ),
    "samples with and without numbers": Kind(
        rows=[PAIR | {"sample": n} for n in (0, None, 2, None)], rewards=[None] * 4, ended="yyyy",
    ),
    # Rewards
    "booleans": Kind(rows=[PAIR | {"reward": b} for b in (True, False)], rewards=[1, -1],
                     ended="yy"),
    "NaN": Kind(rows=[PAIR | {"reward": 1.0}, PAIR | {"reward": float("nan")}],
                refused=r"row 2: column reward .* holds nan, expected a finite number"),
    "NaN behind what is no verdict": Kind(
        rows=[PAIR | {"reward": 0.5}, PAIR | {"reward": float("nan")}],
        refused=r"row 2: column reward .* holds nan",
    ),
    "infinity": Kind(rows=[PAIR | {"reward": float("inf")}], refused="holds inf, expected a fin"),
    "NaN as text": Kind(rows=[PAIR | {"reward": "NaN"}], refused="holds 'NaN', expected a finite"),
    "a list for one completion": Kind(
        rows=[PAIR | {"reward": [1.0, 0.0]}], refused=r"column reward .* holds \[1.0, 0.0\]",
    ),
    "an object": Kind(
        rows=[PAIR | {"reward": {"score": 1.0, "acc": True}}],
        refused=r"column reward .* expected a finite number",
    ),
    "a field of an object": Kind(
        rows=[PAIR | {"reward": {"score": 0.25, "acc": True}}],
        arguments=("--reward", "reward.score"), rewards=[0.25], ended="y",
    ),
    # Numbers
    "a completion's negative id": Kind(
        rows=[{"prompt": "p", "completion_ids": [9, -1]}],
        refused=r"row 1: completion_ids holds -1, but the model knows \d+ tokens",
    ),
    "an id of another model": Kind(
        rows=[{"prompt_ids": [99999], "completion": "2"}],
        refused=r"row 1: prompt_ids holds 99999.*another model's tokenizer",
    ),
    "a prompt without ids": Kind(
        rows=[{"prompt_ids": [], "completion": "2"}], refused="row 1: .*at least one token id",
    ),
    "probabilities for logarithms": Kind(
        rows=[{"prompt": "p", "completion_ids": [9], "logprobs": [0.5]}],
        refused="row 1: .*natural logarithms of probabilities, which are at most 0",
    ),
    "a reward that no float holds": Kind(
        rows=[PAIR | {"reward": 10**400}], refused="row 1: column reward .* finite number",
    ),
    "a sample that no integer holds": Kind(
        rows=[PAIR | {"sample": 2**40}], refused="row 1: column sample .* a whole number up to",
    ),
    "a stop that is a number": Kind(
        rows=[PAIR | {"sampling": {"stop": 5}}], refused=r"row 1: .*stop 5: expected text",
    ),
    "a top_p that is text": Kind(
        rows=[PAIR | {"sampling": {"top_p": "0.9"}}], refused="top_p '0.9': expected a number from",
    ),
    "a top_p of two": Kind(
        rows=[PAIR | {"sampling": {"top_p": 2}}], refused="top_p 2: expected a number from 0 to 1",
    ),
    "a limit that is text": Kind(
        rows=[PAIR | {"sampling": {"max_tokens": "x"}}], refused="max_tokens 'x': expected a whole",
    ),
    "a top_p of three for all": Kind(
        rows=[PAIR], arguments=("--top-p", "3"), refused="top_p 3.0: expected a number from 0 to",
    ),
    "a top_k of minus two for all": Kind(
        rows=[PAIR], arguments=("--top-k", "-2"), refused="top_k -2: expected a whole number of -1",
    ),
    "whole numbers as floats": Kind(
        rows=[PAIR | {"sampling": {"top_k": 0.0, "max_tokens": 9.0}, "sample": 0.0}],
        rewards=[None], ended="y",
    ),
    "half a character": Kind(
        rows=[PAIR | {"completion": "2 \ud83d", "gold": "\ud83d"}], rewards=[None], ended="y",
    ),
    "cells of CSV": Kind(
        rows=[PAIR | {"sampling": '{"top_p": 1.0}', "logprobs": "", "completion_ids": "",
                      "last_token_id": f"{EOS}", "reward": "True", "sample": "",
                      "finish_reason": '{"type": "length"}'}],
        rewards=[1.0], ended="n",
    ),
    # Gold answers
    "golds in lists": Kind(
        rows=[VERL, VERL | {"reward_model": {"ground_truth": '["2"]'}}],
        rewards=[1.0, -1.0, 1.0, -1.0], ended="yyyy",
    ),
    "several golds": Kind(
        rows=[PAIR, PAIR | {"gold": ["1/2", "0.5"]}],
        refused=r"row 2: column gold \(gold\): holds 2 different answers.*--several-golds any",
    ),
    "several golds, any of them": Kind(
        rows=[PAIR | {"gold": ["1/2", "0.5"]}], arguments=("--several-golds", "any"),
        rewards=[None], ended="y",
    ),
    "a gold that is an object": Kind(
        rows=[PAIR | {"gold": {"value": 1}}], refused=r"\(dict\), expected text or a number",
    ),
    # Reasoning kept apart
    "a thought that no template writes": Kind(
        rows=batch(THOUGHT), requests=REQUEST,
        refused="row 1: .*its reasoning .*--reasoning-marks.*return_token_ids.*--drop-reasoning",
    ),
    "a thought that the template writes": Kind(
        rows=batch(THOUGHT), requests=REQUEST, model="thinks", rewards=[None], ended="y",
        said="1 came with their reasoning in a separate field",
    ),
    "a thought that the user writes": Kind(
        rows=batch(THOUGHT), requests=REQUEST, rewards=[None], ended="y",
        arguments=("--reasoning-marks", "<think>{reasoning}</think>"), said="put back before",
    ),
    "a thought that is left out": Kind(
        rows=batch(THOUGHT), requests=REQUEST, rewards=[None], ended="y",
        arguments=("--drop-reasoning",), said="1 are imported without their reasoning",
    ),
    "a thought beside ids": Kind(
        rows=batch(THOUGHT, token_ids=[*ids_of("<t>one</t>2"), TURN_END]), requests=REQUEST,
        rewards=[None], ended="y",
    ),
    "a thought that was cut off": Kind(
        rows=batch({"content": None, "reasoning": "one"}, finish_reason="length"),
        requests=REQUEST, model="thinks", rewards=[None], ended="n",
    ),
    "a thought that the server keeps": Kind(
        rows=batch({"content": "2"}, body=HIDDEN), requests=REQUEST, model="thinks",
        refused="the server hides the model's reasoning.*--drop-reasoning",
    ),
    "a thought in a column": Kind(
        rows=[PAIR | {"reasoning": "one"}], refused="row 1: .*its reasoning .*--reasoning ''",
    ),
    "a column that is no thought": Kind(
        rows=[PAIR | {"reasoning": "one"}], arguments=("--reasoning", ""), rewards=[None],
        ended="y",
    ),
    "a thought in a message": Kind(
        rows=[{"prompt": [ASKED], "completion": [THOUGHT]}], model="thinks", rewards=[None],
        ended="y", said="it is put back before the text",
    ),
    "a thought under any name": Kind(
        rows=batch({"content": "\n\n2", "thinking": "one"}), requests=REQUEST, model="thinks",
        rewards=[None], ended="y", said="it is put back before the text",
    ),
    "a thought in parts": Kind(
        rows=batch({"content": "\n\n2", "reasoning_details": [
            {"type": "reasoning.text", "text": "o"}, {"type": "reasoning.text", "text": "ne"}]}),
        requests=REQUEST, model="thinks", rewards=[None], ended="y", said="put back before",
    ),
    "a thought with a hidden part": Kind(
        rows=batch({"content": "2", "reasoning": "in short", "reasoning_details": [
            {"type": "reasoning.summary", "summary": "in short"}]}),
        requests=REQUEST, model="thinks", refused="row 1: .*the server hides the model's reasoning",
    ),
    "a thought in a message's parts": Kind(
        rows=[{"prompt": [ASKED], "completion": [{"role": "assistant", "content": "2",
               "thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}]}],
        model="thinks", refused="row 1: .*the server hides the model's reasoning",
    ),
    "a thought that is no text": Kind(
        rows=batch({"content": "2", "reasoning_trace": {"a": 1}}), requests=REQUEST,
        refused=r"row 1: reasoning_trace holds \{'a': 1\}, expected text",
    ),
    "answers in parts of text": Kind(
        rows=batch({"content": [{"type": "text", "text": "2"}]}), requests=REQUEST,
        rewards=[None], ended="y",
    ),
    "no answer at all": Kind(
        rows=[row | {"error": {"code": 500}} for row in batch({"content": "2"}) * 3],
        requests=REQUEST, refused="of 3 answers none is a completion",
    ),
    "a choice that is text": Kind(
        rows=batch(body={"choices": ["2"]}), requests=REQUEST,
        refused="row 1: the choice '2' holds no message",
    ),
    "a message that is text": Kind(
        rows=batch(body={"choices": [{"message": "2"}]}), requests=REQUEST,
        refused="row 1: the choice .* holds no message",
    ),
    "requests without names": Kind(
        rows=batch({"content": "2"}), requests=[{"body": {}}],
        refused="requests, row 1: custom_id holds None",
    ),
    "log-probabilities of another shape": Kind(
        rows=batch({"content": "2"}, token_ids=[9], logprobs={"content": [1.0]},
                   finish_reason="length"),
        requests=[REQUEST[0] | {"body": REQUEST[0]["body"] | {"temperature": 1, "top_p": 1}}],
        refused="row 1: a value is not what the format openai-batch has there",
    ),
    "answers of another endpoint": Kind(
        rows=[{"custom_id": "a", "error": None, "response": {
            "status_code": 200, "body": {"output": [{"type": "message"}]}}}],
        requests=REQUEST, refused="/v1/responses.*expected one of /v1/chat/completions",
    ),
    "a stop that may be a stop string": Kind(
        rows=batch({"content": "2"}), requests=[REQUEST[0] | {"body": REQUEST[0]["body"]
                                                              | {"stop": ["\n"]}}],
        rewards=[None], ended="y", said="1 do not say how they ended",
    ),
    "an end that the server names": Kind(
        rows=[*batch({"content": "2"}, matched_stop=BOS)], requests=REQUEST, rewards=[None],
        ended="y",
    ),
    "a stop string that vLLM names": Kind(
        rows=batch({"content": "2"}, stop_reason="\n"), requests=REQUEST, rewards=[None],
        ended="y",
    ),
}  # fmt: skip


def take(folder: Path, kind: Kind, output: str) -> str:
    """Run the command in this process and return what it prints."""
    write_jsonl(folder / "rows.jsonl", kind.rows)
    further: list[str] = []
    if kind.requests:
        write_jsonl(folder / "requests.jsonl", kind.requests)
        further = ["--requests", str(folder / "requests.jsonl")]
    arguments = [
        "import", str(folder / "rows.jsonl"), "-o", str(folder / output),
        "--tokenizer", str(folder / kind.model), *further, *kind.arguments,
    ]  # fmt: skip
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


@pytest.mark.parametrize("name", KINDS)
def test_the_row_table(folder: Path, name: str) -> None:
    kind, output = KINDS[name], name.replace(" ", "-").replace("/", "-")
    if kind.refused:
        with pytest.raises(ToprError, match=f"(?s){kind.refused}"):
            take(folder, kind, output)
        assert not list((folder / output).glob("*.parquet"))
        return
    said = " ".join(take(folder, kind, output).split())
    found = list(table_to_rollouts(read_table(folder / output)))
    assert [r.grade.reward if r.grade else None for r in found] == kind.rewards
    assert "".join("y" if r.finish_reason == "stop" else "n" for r in found) == kind.ended
    assert kind.said in said
    manifest = read_manifest(folder / output)
    assert manifest is not None
    assert manifest.rows == len(kind.rewards)


def test_thoughts_come_back_as_the_model_writes_them(folder: Path) -> None:
    written = {}
    for name in KINDS:
        if "thought" not in name or KINDS[name].refused:
            continue
        take(folder, KINDS[name], f"again-{name.replace(' ', '-')}")
        (one,) = table_to_rollouts(read_table(folder / f"again-{name.replace(' ', '-')}"))
        text = tiny_tokenizer().decode(one.completion_ids)
        written[name.removeprefix("a thought ").removeprefix("that ")] = text
    assert written == {
        "the template writes": "<think>\none\n</think>\n\n2<|im_end|>",
        "the user writes": "<think>\none\n</think>\n\n2<|im_end|>",
        "is left out": "\n\n2<|im_end|>",
        "beside ids": "<t>one</t>2<|im_end|>",
        "was cut off": "<think>\none",
        "a column that is no thought": "2</s>",
        "in a message": "<think>\none\n</think>\n\n2<|im_end|>",
        "under any name": "<think>\none\n</think>\n\n2<|im_end|>",
        "in parts": "<think>\none\n</think>\n\n2<|im_end|>",
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"finish_reason": "worn"}, {"gold": ["1", "2"]}, {"reasoning": "one"}, {"reward": [1]},
        {"completion": None}, {"prompt": []}, {"sample": "x"}, {"iteration": 0.5},
        {"sampling": [1]}, {"completion_ids": ["a"]}, {"model": [1]},
        {"completion_ids": [1], "logprobs": []},
    ],
)  # fmt: skip
def test_the_last_row_is_read_before_anything_is_made_of_the_first(bad: Row) -> None:
    rows = RowStream.of([*[PAIR | {"prompt": f"{n}"} for n in range(1000)], PAIR | bad])
    with pytest.raises(DataError, match="row 1001"):  # before the first is asked for
        import_rollouts(rows, columns=ColumnMap(), tokenizer=tiny_tokenizer())


def test_a_stop_string_is_no_end_of_the_model(folder: Path) -> None:
    take(folder, KINDS["a stop string that vLLM names"], "stopped")
    (one,) = table_to_rollouts(read_table(folder / "stopped"))
    assert list(one.completion_ids) == ids_of("2")
    take(folder, KINDS["an end that the server names"], "named")
    (one,) = table_to_rollouts(read_table(folder / "named"))
    assert list(one.completion_ids) == [*ids_of("2"), BOS]


def test_values_of_numpy_and_pandas_are_pythons_own() -> None:
    row = {
        "prompt": "p",
        "prompt_ids": np.array([5, 6]),
        "completion_ids": np.array([7, EOS], dtype=np.int32),
        "logprobs": np.array([-0.5, -0.25], dtype=np.float32),
        "reward": np.float32(0.5),
        "sample": np.int64(3),
        "gold": np.array(["2"]),
    }
    settings: Row = {"columns": ColumnMap(), "tokenizer": tiny_tokenizer()}
    (one,) = import_rollouts(RowStream.of([row]), **settings)
    assert (one.prompt_ids, one.completion_ids, one.logprobs) == ((5, 6), (7, EOS), (-0.5, -0.25))
    assert (one.sample, one.gold, one.grade and one.grade.reward) == (3, "2", 0.5)
    with pytest.raises(DataError, match=r"row 1: column reward .* holds nan"):
        list(import_rollouts(RowStream.of([row | {"reward": np.float64("nan")}]), **settings))


def test_pandas_writes_an_empty_cell_as_null(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": "p", "completion": ["a", "b"], "reward": [0.5, None]})
    frame.to_parquet(tmp_path / "rows.parquet")
    found = import_rollouts(
        RowStream.open(tmp_path / "rows.parquet"), columns=ColumnMap(), tokenizer=tiny_tokenizer(),
    )  # fmt: skip
    assert [r.grade and r.grade.reward for r in found] == [0.5, None]
