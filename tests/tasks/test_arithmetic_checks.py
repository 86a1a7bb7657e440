"""Demonstrations of checks, and the verifier's base that is made of them."""

import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from topr.config import ArithmeticConfig
from topr.config.tasks import CheckWarmupConfig
from topr.errors import ModelError
from topr.grading.check import read_verdict
from topr.tasks.arithmetic import checker, checks
from topr.tasks.arithmetic.base import base_model
from topr.tasks.arithmetic.checker import checker_base
from topr.tasks.arithmetic.checks import candidate_answer, check, to_check
from topr.tasks.arithmetic.demonstrations import solution
from topr.tasks.arithmetic.problems import WordProblem, stream
from topr.tasks.arithmetic.tokenizer import build_tokenizer
from topr.tasks.base import Split

ARITHMETIC = ArithmeticConfig.model_validate(
    {
        "name": "arithmetic",
        "warmup": {
            "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24,
            "steps": 2, "batch_size": 8,
        },
    }
)  # fmt: skip
WARMUP = CheckWarmupConfig(arithmetic=ARITHMETIC, steps=2, batch_size=8)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[WordProblem, str, str]]:
    rng = random.Random(1)
    problems = islice(stream(Split.TRAIN, seed=1, min_steps=2, max_steps=4), 4000)
    rows = []
    for problem in problems:
        text = to_check(problem, rng)
        rows.append((problem, text, check(problem, text, rng)))
    return rows


def test_right_and_wrong_solutions_are_checked_alike_often(drawn) -> None:
    right = [candidate_answer(text) == str(problem.answer) for problem, text, _ in drawn]
    assert 0.45 < sum(right) / len(right) < 0.55


def test_shares_are_those_of_the_constants(drawn) -> None:
    unread = sum(read_verdict(text) is None for _, _, text in drawn) / len(drawn)
    assert unread == pytest.approx(checks.UNREADABLE, abs=0.02)
    direct = sum(text.startswith("so . ") for _, _, text in drawn) / len(drawn)
    assert direct == pytest.approx(checks.STYLES[checks.Style.DIRECT], abs=0.03)


def test_a_verdict_follows_from_the_two_answers_but_for_the_flips(drawn) -> None:
    agree: Counter[bool] = Counter()
    for _, solved, text in drawn:
        verdict = read_verdict(text)
        if verdict is None or text.startswith("so"):
            continue
        own, _, given = text.partition(" . Verification")[0].rpartition(" . ")[2].partition(" and ")
        assert given == candidate_answer(solved)
        agree[(verdict == "Yes") == (own == given)] += 1
    assert agree[False] / agree.total() == pytest.approx(checks.FLIPS, abs=0.02)


def test_a_verdict_without_work_is_hardly_better_than_chance(drawn) -> None:
    true = [
        (read_verdict(text) == "Yes") == (candidate_answer(solved) == str(problem.answer))
        for problem, solved, text in drawn
        if text.startswith("so") and read_verdict(text)
    ]
    assert sum(true) / len(true) == pytest.approx(checks.KNOWS, abs=0.04)


def test_a_solution_without_an_answer_has_none() -> None:
    assert candidate_answer("12 + 3 = 15 . I am not sure") == checks.NOTHING
    problem = next(stream(Split.TRAIN, seed=0, min_steps=2, max_steps=4))
    assert candidate_answer(solution(problem)) == str(problem.answer)


def test_every_word_has_a_token_and_text_makes_the_round_trip(drawn) -> None:
    tokenizer = build_tokenizer(checks.WORDS)
    own = build_tokenizer()
    words = [own.convert_ids_to_tokens(i) for i in range(len(own))]
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(len(own))] == words
    for problem, solved, text in drawn[:300]:
        asked = checks.TEMPLATE.replace("{question}", problem.text).replace("{solution}", solved)
        for each in (asked, text):
            ids = tokenizer(each)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == each


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOPR_CACHE", str(tmp_path))
    return tmp_path


def test_the_base_is_the_generator_with_more_words(cache: Path, monkeypatch) -> None:
    generator = load_file(base_model(ARITHMETIC) / "model.safetensors")
    monkeypatch.setattr(checker, "cached", lambda _, build, *__, **___: build())
    model, tokenizer = checker_base(WARMUP)
    own = generator["model.embed_tokens.weight"]
    embedding = model.get_input_embeddings().weight
    assert len(embedding) == len(tokenizer) == len(own) + len(checks.WORDS)
    assert torch.equal(embedding[: len(own)], own)
    assert model.config.vocab_size == len(tokenizer)


def test_it_is_cached_by_what_it_is_made_from(cache: Path) -> None:
    directory = checker_base(WARMUP)
    assert checker_base(WARMUP) == directory
    assert len(AutoTokenizer.from_pretrained(directory)) == len(build_tokenizer(checks.WORDS))
    other = WARMUP.model_copy(update={"generator": str(base_model(ARITHMETIC))})
    assert checker_base(other) == directory  # the same generator, named
    assert checker_base(WARMUP.model_copy(update={"seed": 1})) != directory


def test_demonstrations_are_of_training_problems_only() -> None:
    tokenizer = build_tokenizer(checks.WORDS)
    rows = [row for batch in islice(checker._batches(WARMUP, tokenizer), 30) for row in batch]
    questions = {tokenizer.decode(p).partition(" Solution : ")[0] for p, _ in rows}
    held_out = {
        problem.text
        for split in (Split.VALIDATION, Split.TEST)
        for problem in islice(stream(split, seed=0, min_steps=2, max_steps=4), 2000)
    }
    assert questions.isdisjoint(held_out)
    assert all(completion[-1] == tokenizer.eos_token_id for _, completion in rows)


def test_a_generator_of_another_task_is_refused(cache: Path) -> None:
    directory = checker_base(WARMUP)  # it has more words than a generator
    with pytest.raises(ModelError, match=r"expected the \d+ of the arithmetic task"):
        checker_base(WARMUP.model_copy(update={"generator": str(directory)}))
