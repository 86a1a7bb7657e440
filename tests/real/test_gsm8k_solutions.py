"""Real solutions by four language models, through the command line: grade, import, grade, curate,
train with TOPR on recomputed behaviour log-probabilities. The model is a toy made from a config.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from command_line import read_jsonl, topr, write_jsonl
from topr.store import read_table

pytestmark = pytest.mark.slow

TEMPLATE = r"Question: {prompt}\nAnswer:\n"
TRAIN, HELD_OUT = slice(0, 16), slice(16, 48)  # questions, each with four solutions


def make_model(path: Path, texts: list[str]) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",  # noqa: S106 - a token of the vocabulary
        eos_token="</s>",  # noqa: S106
    ).save_pretrained(path)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps of the worked example in docs/own-data.md."""
    folder = tmp_path_factory.mktemp("solutions")
    rows = read_jsonl(shared_data / "gsm8k_model_solutions.jsonl.gz")
    questions = sorted({row["question_id"] for row in rows})
    for name, part in (("train", TRAIN), ("held_out", HELD_OUT)):
        chosen = set(questions[part])
        write_jsonl(folder / f"{name}.jsonl", [row for row in rows if row["question_id"] in chosen])
    reference = read_jsonl(shared_data / "gsm8k_train.jsonl.gz")[:500]
    make_model(folder / "model", [f"{row['question']}\n{row['answer']}" for row in reference])
    said = topr(
        folder, "import", "train.jsonl", "-o", "imported", "--tokenizer", "model",
        "--template", TEMPLATE, "--reward", "",
    )  # fmt: skip
    assert "64 of 64 have no log-probabilities" in said.stdout
    topr(folder, "grade", "imported", "-o", "graded", "--task", "gsm8k")
    topr(folder, "curate", "graded", "-o", "dataset")
    topr(
        folder, "train", "dataset", "-m", "model", "-o", "trained", "--device", "cpu",
        "train.behavior_logprobs=recompute", "train.num_train_epochs=10",
        "train.global_batch_size=16", "train.optim=adamw_torch", "train.learning_rate=2e-3",
    )  # fmt: skip
    return folder


def test_grades_are_the_labels(folder: Path) -> None:
    topr(
        folder, "grade", "held_out.jsonl", "-o", "labelled.jsonl", "--task", "gsm8k",
        "--completion", "solution",
    )  # fmt: skip
    graded = read_jsonl(folder / "labelled.jsonl")
    assert len(graded) == 128
    assert {row["is_correct"] for row in graded} == {True, False}
    assert [row["grade"] == "correct" for row in graded] == [row["is_correct"] for row in graded]


def test_no_question_is_trained_on_and_held_out(folder: Path) -> None:
    trained = read_table(folder / "dataset")
    held_out = read_jsonl(folder / "held_out.jsonl")
    assert len(set(trained["problem_id"].to_pylist())) == 16
    assert len({row["question_id"] for row in held_out}) == 32
    assert not {row["question_id"] for row in held_out} & set(trained["problem_id"].to_pylist())
    prompts = "\n".join(trained["prompt"].to_pylist())
    assert not any(row["question"] in prompts for row in held_out)


def test_imported_rollouts_end_and_keep_their_text(folder: Path) -> None:
    trained = read_table(folder / "dataset").to_pylist()
    source = read_jsonl(folder / "train.jsonl")
    assert [row["completion"] for row in trained] == [row["solution"] for row in source]
    assert [row["reward"] for row in trained] == [1.0 if r["is_correct"] else -1.0 for r in source]
    assert all(row["completion_ids"][-1] == 1 for row in trained)
    assert all(row["prompt"].startswith("Question: ") for row in trained)
    assert all(row["prompt"].endswith("\nAnswer:\n") for row in trained)


def test_positives_rise_and_negatives_fall_without_collapse(folder: Path) -> None:
    log = read_jsonl(folder / "trained/training/log.jsonl")
    assert [line["step"] for line in log] == list(range(1, 41))
    # An unchanged model: log rho is 0 on the first batch.
    assert log[0]["log_ratio/positive"] == pytest.approx(0, abs=1e-4)
    assert log[0]["log_ratio/negative"] == pytest.approx(0, abs=1e-4)
    epoch = log[-4:]
    positive = sum(line["log_ratio/positive"] for line in epoch) / 4
    negative = sum(line["log_ratio/negative"] for line in epoch) / 4
    assert positive > 5
    assert negative < -1
    # The taper lets go of negatives: a negative that has left is hardly pushed any more.
    assert sum(line["weight/negative"] for line in epoch) / 4 < 0.5
    assert all(line["weight/positive"] == 1 for line in log)


def test_the_examples_show_both_models(folder: Path) -> None:
    table = pq.read_table(folder / "trained/training/examples.parquet")
    assert table.num_rows == 64
    for row in table.to_pylist():
        assert len(row["behavior_logprobs"]) == len(row["policy_logprobs"]) == len(row["tokens"])
        assert "".join(row["tokens"][:-1]) == row["completion"] or "�" in "".join(row["tokens"])
