"""The server engine on vLLM's own server: its numbers beside the trainer's, and a kill.

Run by `make test-vllm`, in an environment that has vllm; skipped elsewhere.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from transformers import GenerationConfig

from command_line import read_jsonl, topr
from tiny import PAD, TURN_END, save_tiny, tiny_model, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Request, check_engine, open_engine
from topr.engines.sampling import sampled_log_probs
from topr.engines.server import ServerEngine
from topr.engines.server_process import VLLM
from topr.models.loading import load_model
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import read_table
from topr.training.fitting import forward_of
from topr.training.recompute import recompute

pytestmark = pytest.mark.timeout(900)
ARGUMENTS = [
    "--gpu-memory-utilization", "0.1", "--enforce-eager",
    # On a CPU, vLLM 0.32 ends when a prompt with a seed is prefilled in parts.
    "--no-enable-chunked-prefill",
]  # fmt: skip
TOKENIZER = tiny_tokenizer()
PROMPTS = ("Hi", "The answer is", "Ann has 12 pens, and buys a few more.", "2 + 2 =")
FURTHER_EOS = (TURN_END, *range(200, 215))
"""Of the generation config alone: so many that a random model often ends."""
TOLERANCE = 1e-4
"""Nats per token between vLLM and the trainer, both float32 on a CPU."""
SAMPLING = SamplingParams(max_tokens=24, seed=3)
Drawn = dict[tuple[str, int], Rollout]


def request(prompt: str, n: int = 8) -> Request:
    ids = tuple(TOKENIZER(prompt)["input_ids"])
    return Request(problem_id=f"id-{prompt}", prompt=prompt, prompt_ids=ids, n=n)


REQUESTS = tuple(request(prompt) for prompt in PROMPTS)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_tiny(
        tmp_path_factory.mktemp("model"),
        hidden_size=128,
        initializer_range=0.2,
        max_position_embeddings=1024,
    )
    GenerationConfig(eos_token_id=list(FURTHER_EOS), pad_token_id=PAD).save_pretrained(path)
    return path


class Process:
    """A vLLM server on a port that stays the same."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        words = [word.replace("{model}", str(model)).replace("{dtype}", "float32") for word in VLLM]
        words = [w.replace("{host}", "127.0.0.1").replace("{revision}", "main") for w in words]
        self.command = [w.replace("{port}", str(self.port)) for w in words] + ARGUMENTS
        self.log = log
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True
            )

    def answered(self) -> int:
        """Return how many completions it has given, by its log."""
        return self.log.read_text().count('"POST /v1/completions HTTP/1.1" 200')

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(model_path, tmp_path_factory.mktemp("server") / "log")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def engine(server: Process, model_path: Path) -> Iterator[ServerEngine]:
    values = {"url": f"http://127.0.0.1:{server.port}/v1", "patience": 300.0, "concurrency": 4}
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as opened:
        assert isinstance(opened, ServerEngine)
        yield opened


def draw(engine: ServerEngine, sampling: SamplingParams = SAMPLING) -> Drawn:
    rollouts = list(engine.generate(REQUESTS, sampling))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts) == sum(request.n for request in REQUESTS)
    return drawn


def test_it_is_seen_what_vllm_gives(engine: ServerEngine, model_path: Path) -> None:
    assert engine._served_name == str(model_path)
    seen = engine._capabilities
    assert (seen.takes_extra, seen.takes_ids, seen.keeps_stops) == (True, True, True)
    assert (seen.gives_ids, engine.records_logprobs) == (True, True)
    assert (seen.counts_temperature, seen.counts_top_p, seen.counts_top_k) == (True, True, True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_that_the_trainer_computes(
    engine: ServerEngine, model_path: Path, temperature: float
) -> None:
    drawn = draw(engine, replace(SAMPLING, temperature=temperature))
    rows = [
        {
            "group": PROMPTS.index(rollout.prompt),
            "prompt_ids": rollout.prompt_ids,
            "completion_ids": rollout.completion_ids,
            "temperature": temperature,
        }
        for rollout in drawn.values()
    ]
    model = load_model(ModelConfig(path=str(model_path), device="cpu"))
    kept = Dataset.from_list(rows)
    ours = list(recompute(model, kept, forward=forward_of(model, kept)))
    theirs = [np.asarray(rollout.logprobs, np.float32) for rollout in drawn.values()]
    assert sum(map(len, ours)) > 200
    assert np.concatenate(theirs).min() < -3  # not only near 0, where all would agree
    np.testing.assert_allclose(np.concatenate(theirs), np.concatenate(ours), atol=TOLERANCE)


def test_numbers_of_another_distribution_are_seen(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `--logprobs-mode processed_logprobs` vLLM's are those of the plain softmax."""
    words = [word for word in VLLM if word not in ("--logprobs-mode", "processed_logprobs")]
    values = {"command": [*words, *ARGUMENTS], "patience": 300.0}
    config = GenerateConfig(engine="server", server=values, temperature=0.7, top_k=5)  # type: ignore[arg-type]
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as opened:
        assert isinstance(opened, ServerEngine)
        assert not opened.records_logprobs
        assert "leave out temperature=0.7 and top_k=5, as vLLM" in caplog.text
        plain = draw(opened)
        cut = draw(opened, replace(SAMPLING, temperature=0.7))
    assert all(rollout.logprobs is not None for rollout in plain.values())
    assert all(rollout.logprobs is None for rollout in cut.values())


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.6}])
def test_a_cut_distribution_is_recorded_renormalised(
    engine: ServerEngine, model_path: Path, cut: dict[str, Any]
) -> None:
    model = load_model(ModelConfig(path=str(model_path), device="cpu"))
    for rollout in draw(engine, replace(SAMPLING, **cut)).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1]
        chosen = torch.tensor(rollout.completion_ids)[:, None]
        expected = sampled_log_probs(logits, rollout.sampling).gather(-1, chosen)[:, 0]
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=TOLERANCE)


def test_completions_end_with_any_eos_or_at_the_limit(engine: ServerEngine) -> None:
    ends = {2, *FURTHER_EOS}
    drawn = draw(engine)
    for rollout in drawn.values():
        assert not ends & set(rollout.completion_ids[:-1])
        if rollout.finish_reason is FinishReason.STOP:
            assert rollout.completion_ids[-1] in ends
        else:
            assert len(rollout.completion_ids) == SAMPLING.max_tokens
    assert {rollout.finish_reason for rollout in drawn.values()} == set(FinishReason)
    last = {rollout.completion_ids[-1] for rollout in drawn.values()}
    assert len(last & set(FURTHER_EOS)) > 2  # not those of the model's config alone


def test_stop_strings_stay(engine: ServerEngine) -> None:
    free = draw(engine)
    stop = next(r.completion[2:4] for r in free.values() if r.completion[:6].isascii() and
                len(r.completion) > 8)  # fmt: skip
    hits = 0
    for key, rollout in draw(engine, replace(SAMPLING, stop=(stop, "never"))).items():
        size = len(rollout.completion_ids)
        assert rollout.completion_ids == free[key].completion_ids[:size]
        if stop in free[key].completion:
            hits += 1
            assert stop in rollout.completion
            assert stop not in TOKENIZER.decode(list(rollout.completion_ids[:-1]))
            assert rollout.finish_reason is FinishReason.STOP
    assert hits


def test_the_seed_fixes_the_samples(engine: ServerEngine) -> None:
    first = draw(engine)
    assert same_tokens(draw(engine), first)
    assert not same_tokens(draw(engine, replace(SAMPLING, seed=4)), first)


def test_a_kill_in_the_middle_loses_and_doubles_nothing(
    engine: ServerEngine, server: Process
) -> None:
    sampling = replace(SAMPLING, max_tokens=100, seed=5)
    undisturbed = draw(engine, sampling)
    drawn: list[Rollout] = []
    for rollout in engine.generate(REQUESTS, sampling):
        drawn.append(rollout)
        if len(drawn) == 3:
            server.kill()
            time.sleep(1)
            before = server.answered()
            server.start()
    assert len(drawn) == len(undisturbed) == 32
    assert server.answered() - before >= 32 - 3 - 4 - 4  # those after the kill, most of them
    assert same_tokens({(r.problem_id, r.sample): r for r in drawn}, undisturbed)


@pytest.fixture(scope="module")
def gsm8k_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer knows the words of GSM8K: eight examples are 900 tokens."""
    questions = [row["question"] for row in read_jsonl(shared_data / "gsm8k_train.jsonl.gz")]
    tokenizer = TOKENIZER.train_new_from_iterator(questions, 2048)
    path = tmp_path_factory.mktemp("gsm8k-model")
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 128, "max_position_embeddings": 2048}
    tiny_model(vocab_size=len(tokenizer), **size).save_pretrained(path)
    return path


def test_the_gsm8k_recipe_evaluates_on_a_server_of_its_own(
    gsm8k_model: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Real questions after eight examples, drawn as the recipe says, fewer of them and shorter. The
    model is small and knows no answer."""
    topr(
        tmp_path, "eval", "gsm8k", "-m", gsm8k_model, "-o", "evaluated",
        f"task.train_file={(shared_data / 'gsm8k_train.jsonl.gz').resolve()}",
        f"task.test_file={(shared_data / 'gsm8k_test.jsonl.gz').resolve()}",
        "evaluate.problems=20", "evaluate.n=4", "evaluate.max_tokens=256",
        "generate.engine=server", "generate.server.patience=300",
        f"generate.server.arguments={json.dumps(ARGUMENTS)}",
    )  # fmt: skip
    evaluated = json.loads((tmp_path / "evaluated/evaluation.json").read_text())
    assert evaluated["problems"] == 20
    rows = read_table(tmp_path / "evaluated/evaluation").to_pylist()
    drawn = {(r["problem_id"], r["sample"], r["sampling"]["temperature"]) for r in rows}
    assert len(drawn) == len(rows) == 20 * (4 + 1)
    for row in rows:
        assert (row["engine"], row["model"]) == ("server", str(gsm8k_model))
        assert row["sampling"]["top_k"] == (500 if row["sampling"]["temperature"] else 0)
        assert row["prompt"].count("Question: ") == 9
        assert 700 < len(row["prompt_ids"]) < 1400
        assert len(row["logprobs"]) == len(row["completion_ids"]) <= 256
        assert row["grade"] is not None
    assert max(len(row["completion_ids"]) for row in rows) > 100


def test_the_command_line_draws_from_a_server_that_is_there(
    server: Process, model_path: Path, shared_data: Path, tmp_path: Path
) -> None:
    topr(
        tmp_path, "eval", "gsm8k", "-m", model_path, "-o", "evaluated",
        f"task.train_file={(shared_data / 'gsm8k_train.jsonl.gz').resolve()}",
        f"task.test_file={(shared_data / 'gsm8k_test.jsonl.gz').resolve()}",
        "task.few_shot=0", "evaluate.problems=4", "evaluate.n=2", "evaluate.max_tokens=16",
        "generate.engine=server", f"generate.server.url=http://127.0.0.1:{server.port}",
    )  # fmt: skip
    rows = read_table(tmp_path / "evaluated/evaluation").to_pylist()
    assert len(rows) == 4 * (2 + 1)


def same_tokens(one: Drawn, other: Drawn) -> bool:
    return {k: r.completion_ids for k, r in one.items()} == {
        k: r.completion_ids for k, r in other.items()
    }


def test_topr_starts_and_ends_one(model_path: Path) -> None:
    values = {"arguments": ARGUMENTS, "patience": 300.0}
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    model = ModelConfig(path=str(model_path))
    check_engine(model, config)
    with closing(open_engine(model, config)) as opened:
        assert isinstance(opened, ServerEngine)
        assert opened.records_logprobs
        assert len(draw(opened)) == sum(request.n for request in REQUESTS)
        assert opened._served is not None
        url = f"{opened._served.url}/models"
        guard = psutil.Process(opened._served._process.pid)
        started = [guard, *guard.children(recursive=True)]
        assert len(started) >= 3  # what watches it, the server, its engine
    with pytest.raises(httpx2.ConnectError), httpx2.Client(trust_env=False) as client:
        client.get(url)
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
