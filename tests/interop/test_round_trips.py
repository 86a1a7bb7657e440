"""What is imported, exported and imported again is the same; training reads a row as import does.

The ends are what text loses: each completion here ends in another way.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tiny import BOS, CHAT_TEMPLATE, EOS, TURN_END, TURN_START, tiny_tokenizer
from tiny_rollouts import tiny_grade, tiny_rollout
from topr.errors import DataError
from topr.interop import (
    ColumnMap,
    ImportOptions,
    RowStream,
    export_rollouts,
    import_rollouts,
    open_source,
    read_rows,
    write_rollouts,
    write_rows,
)
from topr.records import FinishReason, Rollout, SamplingParams, Several
from topr.store import read_table, rollouts_to_table, table_to_rollouts
from topr.training.data import prepare_rows

STOP = ("\n\n",)
EOS_IDS = (EOS, TURN_START)
"""As a generation config names several: here one that the tokenizer does not call an end."""
ENDS: dict[str, tuple[tuple[int, ...], FinishReason]] = {
    "end of text": ((EOS,), FinishReason.STOP),
    "end of turn": ((TURN_END,), FinishReason.STOP),
    "another end of the model": ((TURN_START,), FinishReason.STOP),
    "cut off": ((), FinishReason.LENGTH),
    "stop string": ((), FinishReason.STOP),
    "an end at the limit": ((EOS,), FinishReason.LENGTH),
}
PIECES = [
    "a",
    " the",
    "12",
    "é🙂",
    "\n",
    " = ",
    "</",
    "s>",
    "<s",
    "{x}",
    "\\frac{1}{2}",
    '"',
    "|im",
]
CHATS = [
    [{"role": "user", "content": "1+1?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
]


def with_bos(tokenizer: Any) -> Any:
    """Put a beginning before plain text, which this chat template does not write."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


TOKENIZERS = {
    "plain": tiny_tokenizer(chat_template=True),
    "adds a beginning": with_bos(tiny_tokenizer(chat_template=True)),
    "template begins": with_bos(tiny_tokenizer(chat_template=True)),
}
TOKENIZERS["template begins"].chat_template = "<s>" + CHAT_TEMPLATE


def made(tokenizer: Any, seed: int = 0) -> list[Rollout]:
    """Imported prompts, each answered in every way."""
    asked = [{"prompt": prompt, "completion": "x"} for prompt in (*CHATS, "1+1=", "Q: é\nA:")]
    prompts = import_rollouts(RowStream.of(asked), columns=ColumnMap(), tokenizer=tokenizer)
    draw = random.Random(seed)
    rollouts = []
    for prompt in prompts:
        for number, (name, (end, reason)) in enumerate(ENDS.items()):
            text = "".join(draw.choices(PIECES, k=draw.randrange(1, 9)))
            text = text.replace("</s>", "").replace("<s>", "") or "x"
            text += STOP[0] if name == "stop string" else ""
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            rollouts.append(
                tiny_rollout(
                    problem_id=prompt.problem_id,
                    sample=number,
                    prompt=prompt.prompt,
                    prompt_ids=prompt.prompt_ids,
                    completion=text,
                    completion_ids=(*ids, *end),
                    finish_reason=reason,
                    sampling=SamplingParams(temperature=0.5, stop=STOP),
                    model="writer",
                    iteration=3,
                    gold='["1", "one"]',
                    grade=tiny_grade(1.0 if number % 2 else -1.0),
                )
            )
    return rollouts


def essence(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    found = [
        (r.problem_id, r.completion_ids, r.finish_reason, r.grade and r.grade.reward, r.gold)
        for r in rollouts
    ]
    return sorted(found, key=repr)


@pytest.mark.parametrize("tokenizer_name", TOKENIZERS)
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, ".jsonl") for name in ("topr", "grouped", "trl", "trl-kto", "trl-dpo", "verl")),
        *((name, ".parquet") for name in ("topr", "grouped", "trl-kto", "trl-dpo", "verl")),
        *((name, ".csv") for name in ("trl", "trl-dpo")),  # it has no lists of lists
    ],
)
def test_ids_and_ends_come_back(
    tmp_path: Path, name: str, suffix: str, tokenizer_name: str
) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]
    rollouts = made(tokenizer)
    write_rows(tmp_path / f"out{suffix}", export_rollouts(rollouts_to_table(rollouts), name).table)
    given = open_source(RowStream.open(tmp_path / f"out{suffix}"), ColumnMap())
    options = ImportOptions(eos_ids=EOS_IDS, several_golds=Several.ANY)
    write_rollouts(
        given, tmp_path / "in", tokenizer=tokenizer, fingerprint="m", details={},
        options=options,
    )  # fmt: skip
    found = list(table_to_rollouts(read_table(tmp_path / "in")))
    assert essence(found) == essence(rollouts)
    if name == "verl":  # it carries the question alone
        return
    prompts = {r.problem_id: (r.prompt, r.prompt_ids) for r in rollouts}
    assert {r.problem_id: (r.prompt, r.prompt_ids) for r in found} == prompts
    if name != "trl-dpo":
        assert {(r.sampling, r.model, r.iteration) for r in found} == {
            (rollouts[0].sampling, "writer", 3)
        }


TEXTS: list[dict[str, Any]] = [
    {"completion": "2"},
    {"completion": "2 </s>"},
    {"completion": "2</s></s> and more"},
    {"completion": "2<|im_end|>\n"},
    {"completion": "2<|im_start|>"},  # an end by the generation config
    {"completion": "2", "finish_reason": "length"},
    {"completion": "2</s>", "finish_reason": "length"},
    {"completion": "2", "finish_reason": "MAX_TOKENS"},
    {"completion": "2", "finish_reason": "max_output_tokens"},
    {"completion": "2", "finish_reason": "end_turn"},
    {"completion": "2", "finish_reason": "stop_sequence"},
    {"completion": "2", "finish_reason": {"type": "stop", "matched": "\n"}},
    {"completion": "2\n", "finish_reason": "stop", "sampling": {"stop": ["\n"]}},
    {"completion": "2", "last_token_id": TURN_START},
    {"completion": "2", "last_token_id": 99, "finish_reason": "stop"},
    {"completion": "2", "last_token_id": 99},
    {"completion": "2", "last_token_id": f"{TURN_START}"},  # as CSV has it
    {"completion": "2", "last_token_id": float(TURN_START)},  # as pandas does
    {"completion": "2", "last_token_id": ""},
    {"completion": "2", "last_token_id": float("nan"), "finish_reason": float("nan")},
    {"completion": "2", "sampling": '{"stop": ["2"]}', "finish_reason": "stop"},
    {"completion": "2", "finish_reason": '{"type": "stop", "matched": "\\n"}'},
    {"completion_ids": f"[9, {EOS}]", "logprobs": "[-0.5, -0.25]"},
    {"completion_ids": [9, EOS]},
    {"completion_ids": [9], "finish_reason": "stop"},
    {"completion_ids": [9, TURN_START]},
    {"completion": [{"role": "assistant", "content": "2"}]},
]


@pytest.mark.parametrize("prompt", ["1+1=", CHATS[1], "rendered", "ids"])
@pytest.mark.parametrize("tokenizer_name", TOKENIZERS)
def test_training_reads_a_row_as_import_does(tokenizer_name: str, prompt: Any) -> None:
    tokenizer = TOKENIZERS[tokenizer_name]
    chat = tokenizer.apply_chat_template(CHATS[0], add_generation_prompt=True, tokenize=False)
    asked = {"prompt": {"rendered": chat}.get(str(prompt), prompt)}
    if prompt == "ids":
        asked = {"prompt_ids": tokenizer(chat, add_special_tokens=False)["input_ids"]}
    rows = [asked | text | {"reward": 1.0} for text in TEXTS]
    imported = list(
        import_rollouts(
            RowStream.of(rows), columns=ColumnMap(), tokenizer=tokenizer,
            options=ImportOptions(eos_ids=EOS_IDS),
        )
    )  # fmt: skip
    trained, composition = prepare_rows(rows, tokenizer, eos_ids=EOS_IDS)
    assert trained["prompt_ids"] == [list(r.prompt_ids) for r in imported]
    assert trained["completion_ids"] == [list(r.completion_ids) for r in imported]
    assert trained["logprobs"] == [r.logprobs and list(r.logprobs) for r in imported]
    _, masked = prepare_rows(
        [{"finish_reason": None} | row for row in rows],
        tokenizer, eos_ids=EOS_IDS, mask_truncated=True,
    )  # fmt: skip
    cut = sum(r.finish_reason is FinishReason.LENGTH for r in imported)
    assert (masked.truncated, masked.rows) == (cut, composition.rows - cut)
    assert cut == 4


@pytest.mark.parametrize(
    ("prompt", "own"), [("1+1=", EOS), (CHATS[0], TURN_END), ("rendered", TURN_END)]
)
def test_the_end_is_there_once_and_only_where_the_model_wrote_it(prompt: Any, own: int) -> None:
    tokenizer = TOKENIZERS["plain"]
    if prompt == "rendered":
        prompt = tokenizer.apply_chat_template(CHATS[0], add_generation_prompt=True, tokenize=False)
    rows = [{"prompt": prompt} | text for text in TEXTS]
    found = import_rollouts(
        RowStream.of(rows), columns=ColumnMap(), tokenizer=tokenizer,
        options=ImportOptions(eos_ids=EOS_IDS),
    )  # fmt: skip
    two = tokenizer("2", add_special_tokens=False)["input_ids"]
    spaced = tokenizer("2 ", add_special_tokens=False)["input_ids"]
    line = tokenizer("2\n", add_special_tokens=False)["input_ids"]
    assert [list(r.completion_ids) for r in found] == [
        [*two, own], [*spaced, EOS], [*two, EOS], [*two, TURN_END], [*two, TURN_START],
        two, [*two, EOS], two, two, [*two, own], two, two, line, [*two, TURN_START], two, two,
        [*two, TURN_START], [*two, TURN_START], [*two, own], [*two, own], two, two, [9, EOS],
        [9, EOS], [9], [9, TURN_START], [*two, own],
    ]  # fmt: skip


CELLS: list[dict[str, Any]] = [
    {"reward": True}, {"reward": "wrong"}, {"sampling": '{"temperature": 0.5}'},
    {"prompt_ids": "[5, 6]"}, {"completion_ids": [22.7, 2]}, {"completion_ids": 5},
    {"completion_ids": [[5]]}, {"completion_ids": [None]}, {"completion_ids": [5, -1]},
    {"completion_ids": [5], "logprobs": "x"}, {"completion_ids": [5], "logprobs": 3},
    {"completion_ids": [5], "logprobs": [0.5]}, {"completion_ids": [99999]}, {"prompt_ids": []},
    {"sampling": {"stop": 5}}, {"sampling": {"top_p": 2}}, {"sampling": "x"}, {"sample": "x"},
    {"last_token_id": "x"}, {"last_token_id": True}, {"reward": 10**400}, {"reward": [1]},
    {"prompt": 3}, {"prompt": [3]}, {"completion": None}, {"finish_reason": "worn"},
    {"reward": 0, "grade": {"a": 1}, "answer": "2"}, {"reward": 0, "grade": "wrong", "answer": "2"},
]  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_training_and_import_take_and_refuse_the_same_cells(cell: dict[str, Any]) -> None:
    tokenizer, found = TOKENIZERS["plain"], []
    row = {"prompt": "1+1=", "completion": "2", "reward": 1} | cell
    for read in (
        lambda rows: [
            (list(r.prompt_ids), list(r.completion_ids), r.grade.reward, r.sampling.temperature)
            for r in import_rollouts(RowStream.of(rows), columns=ColumnMap(), tokenizer=tokenizer)
            if r.grade
        ],
        lambda rows: [
            (r["prompt_ids"], r["completion_ids"], r["reward"], r["temperature"])
            for r in prepare_rows(rows, tokenizer)[0]
        ],
    ):
        try:
            found.append(read([row]))
        except DataError as error:
            found.append(str(error).partition(": ")[2].partition("holds")[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["trl", "topr"])
def test_an_export_as_csv_is_trained_on_with_its_ends(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS["plain"]
    rollouts = made(tokenizer)
    write_rows(tmp_path / "o.csv", export_rollouts(rollouts_to_table(rollouts), name).table)
    rows = read_rows(tmp_path / "o.csv").to_pylist()
    trained, _ = prepare_rows(rows, tokenizer, eos_ids=EOS_IDS)
    assert trained["completion_ids"] == [list(r.completion_ids) for r in rollouts]
    assert trained["prompt_ids"] == [list(r.prompt_ids) for r in rollouts]
    assert trained["reward"] == [r.grade and r.grade.reward for r in rollouts]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("completion_ids", [5, -1], "holds -1"), ("completion_ids", [99999], "holds 99999"),
        ("prompt_ids", [], "at least one"), ("logprobs", [0.5], "at most 0"),
        ("logprobs", [float("nan")], "at most 0"), ("sample", 2**40, "does not fit"),
        ("sampling", {"top_p": 2.0}, "row 3: column sampling .* top_p 2"),
        ("prompt_ids", [2**40], "row 3: prompt_ids holds 1099511627776"),
    ],
)  # fmt: skip
def test_rollouts_are_checked_before_any_is_written(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    rows = export_rollouts(rollouts_to_table(made(TOKENIZERS["plain"])), "topr").table.to_pylist()
    if name == "logprobs":
        rows[2]["completion_ids"] = [5]
    rows[2][name] = rows[2][name] | value if isinstance(value, dict) else value
    given = open_source(RowStream.of(rows), ColumnMap())
    with pytest.raises(DataError, match=message):
        write_rollouts(
            given,
            tmp_path / "in",
            tokenizer=TOKENIZERS["plain"],
            fingerprint="m",
            details={},
        )
    assert not list((tmp_path / "in").glob("*.parquet"))
