"""The tokenizer and the base model: round trips, the warm-up's gradient, the cache."""

import json
import multiprocessing
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from topr.config import ArithmeticConfig
from topr.tasks.arithmetic import base, warming
from topr.tasks.arithmetic.base import base_model
from topr.tasks.arithmetic.demonstrations import solution
from topr.tasks.arithmetic.problems import region, stream
from topr.tasks.arithmetic.tokenizer import build_tokenizer
from topr.tasks.base import Split


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOPR_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def tiny(*, seed: int = 0, steps: int = 3, **task: int) -> ArithmeticConfig:
    warmup = {
        "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24,
        "steps": steps, "batch_size": 8, "learning_rate": 0.02, "seed": seed,
    }  # fmt: skip
    return ArithmeticConfig.model_validate({"name": "arithmetic", "warmup": warmup, **task})


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_text_makes_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 120 <= len(tokenizer) <= 136
    for split in Split:
        for problem in islice(stream(split, seed=0, min_steps=2, max_steps=4), 500):
            for text in (problem.text, solution(problem)):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.decode(ids) == text
                assert len(ids) == len(text.split())
                assert tokenizer.unk_token_id not in ids


def test_prompt_and_completion_apart_or_together(tokenizer: PreTrainedTokenizerFast) -> None:
    problem = next(stream(Split.TRAIN, seed=0, min_steps=2, max_steps=4))
    apart = [*tokenizer(problem.text)["input_ids"], *tokenizer(solution(problem))["input_ids"]]
    for between in ("", " ", "\n"):
        assert tokenizer(f"{problem.text}{between}{solution(problem)}")["input_ids"] == apart


def test_numbers_are_one_token_each_and_the_end_is_hidden(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = tokenizer("The answer is 27 <eos>")["input_ids"]
    assert len(ids) == 5
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The answer is 27"
    assert tokenizer("60 zebras")["input_ids"] == [tokenizer.unk_token_id] * 2


def test_saved_base_loads_as_any_model_does(tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[int, int, float]] = []
    directory = base_model(tiny(), progress=lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    model = AutoModelForCausalLM.from_pretrained(directory)
    loaded = AutoTokenizer.from_pretrained(directory)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert model.config.vocab_size == len(loaded)
    assert model.generation_config.eos_token_id == loaded.eos_token_id
    assert model.generation_config.pad_token_id == loaded.pad_token_id
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    prompt = loaded("Ann has 12 pens . buys 3 more . How many pens now ?", return_tensors="pt")
    text = loaded.decode(model.generate(**prompt, max_new_tokens=4)[0])
    assert text.startswith("Ann has 12 pens . buys 3 more . How many pens now ? ")


def test_same_config_same_weights_and_the_cache_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = base_model(tiny())
    again: list[int] = []
    assert base_model(tiny(), progress=lambda done, total, loss: again.append(done)) == first
    assert again == []
    monkeypatch.setenv("TOPR_CACHE", str(cache / "other"))
    second = base_model(tiny())
    assert second != first
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_problems_seed_and_counts_share_a_base_and_the_rest_does_not() -> None:
    first = base_model(tiny(steps=1))
    assert base_model(tiny(steps=1, train_problems=5, test_problems=7)) == first
    others = [tiny(steps=2), tiny(steps=1, seed=1), tiny(steps=1, max_steps=3)]
    assert len({first, *map(base_model, others)}) == 4


def test_problems_own_seed_shares_a_base() -> None:
    first, other = tiny(steps=1), tiny(steps=1).model_copy(update={"seed": 5})
    assert base_model(first) == base_model(other)


def test_the_code_of_the_package_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first = base_model(tiny(steps=1))
    real = base.CODE
    monkeypatch.setattr(base, "CODE", real[1:])
    assert base_model(tiny(steps=1)) != first


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    base_model(tiny(), threads=1)
    assert torch.equal(torch.rand(3), expected)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    base_model(tiny(steps=1), threads=before + 1)
    assert torch.get_num_threads() == before


def test_demonstrations_are_of_training_problems_only(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    batches = islice(base._batches(tiny(), tokenizer), 60)
    prompts = {tokenizer.decode(prompt) for batch in batches for prompt, _ in batch}
    assert len(prompts) > 400
    held_out = {
        problem.text
        for split in (Split.VALIDATION, Split.TEST)
        for problem in islice(stream(split, seed=0, min_steps=2, max_steps=4), 2000)
    }
    assert prompts.isdisjoint(held_out)
    assert {region(skeleton_of(prompt)) for prompt in prompts} == {Split.TRAIN}


def skeleton_of(question: str) -> str:
    """Read the skeleton off the words, by the table of wordings."""
    first, *clauses, _ = question.split(" . ")
    parts = [first.split()[2]]
    for clause in clauses:
        numbers = re.findall(r"\d+", clause)
        losing = clause.split()[0] in ("loses", "gives", "sells")
        if clause == "doubles them":
            parts.append("D")
        elif len(numbers) == 1:
            parts.append(("-" if losing else "+") + numbers[0])
        else:
            size, portions = numbers if "friends" in clause else reversed(numbers)
            parts.append(f"{'M' if losing else 'P'}{portions}x{size}")
    return " ".join(parts)


def test_gradient_is_that_of_one_unpadded_sequence_at_a_time(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Padding changes nothing: the plain mean over all completion tokens."""
    config = tiny()
    rows = next(base._batches(config, tokenizer))
    model = base._build(config.warmup, tokenizer)
    loss = warming.backward(model, rows, tokenizer.pad_token_id)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    losses = []
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        losses.append(-logprobs.gather(1, torch.tensor(completion)[:, None]).flatten())
    expected = torch.cat(losses).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_completions_end_and_learning_happens(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = next(base._batches(tiny(), tokenizer))
    assert all(completion[-1] == tokenizer.eos_token_id for _, completion in rows)
    losses: list[float] = []
    base_model(tiny(steps=60), progress=lambda done, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 1


def test_rate_rises_then_falls_to_a_twentieth() -> None:
    rates = [warming.rate(step, 1050) for step in range(1050)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[49] == rates[50] == max(rates) == 1.0
    assert rates[550] == pytest.approx(1 - 0.95 / 2)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    assert warming.rate(1050, 1050) == pytest.approx(0.05)


class StoppedError(Exception):
    """Stands for a kill in the middle."""


def stop(done: int, total: int, loss: float) -> None:
    if done == 2:
        raise StoppedError


def test_a_build_that_is_stopped_leaves_nothing_and_starts_again(cache: Path) -> None:
    with pytest.raises(StoppedError):
        base_model(tiny(), progress=stop)
    assert list(cache.rglob("*")) == []
    assert (base_model(tiny()) / "base.json").is_file()


def test_no_scratch_stays_behind_and_a_broken_base_is_made_anew(cache: Path) -> None:
    directory = base_model(tiny())
    expected = weights(directory)
    assert list((cache / "bases").iterdir()) == [directory]
    (directory / "base.json").unlink()
    (directory / "model.safetensors").write_bytes(b"half")
    assert base_model(tiny()) == directory
    assert weights(directory).keys() == expected.keys()
    made_from = json.loads((directory / "base.json").read_text())
    assert made_from["warmup"]["hidden_size"] == 16


def test_of_two_builds_at_once_one_is_kept(cache: Path) -> None:
    """The second to end finds the first one's model in its place, and takes that."""
    config = tiny()
    inside: list[Path] = []

    def other_is_faster(done: int, total: int, loss: float) -> None:
        if done == total:
            inside.append(base_model(config))

    directory = base_model(config, progress=other_is_faster)
    assert inside == [directory]
    assert list((cache / "bases").iterdir()) == [directory]
    assert (directory / "base.json").is_file()


@pytest.mark.slow
def test_two_processes_at_once() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(base_model, [tiny(), tiny()])
    assert first == second
    assert AutoModelForCausalLM.from_pretrained(first).config.hidden_size == 16
