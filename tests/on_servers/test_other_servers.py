"""The server engine on servers that are not vLLM's: their tokens and numbers beside the trainer's.

Run by `make test-llama-cpp` and `make test-sglang`, which make these servers and say by an
environment variable where they are; skipped elsewhere.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import topr, write_jsonl
from tiny import EOS, save_tiny, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Request, open_engine
from topr.engines.sampling import sampled_log_probs
from topr.engines.server import ServerEngine
from topr.models.loading import load_model
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import read_table

pytestmark = pytest.mark.timeout(600)
HERE = Path(__file__).parent
MADE_BY = {"LLAMA_CPP": "make test-llama-cpp", "SGLANG": "make test-sglang"}
TOKENIZER = tiny_tokenizer()
REQUESTS = tuple(
    Request(problem_id=text, prompt=text, prompt_ids=tuple(TOKENIZER(text)["input_ids"]), n=8)
    for text in ("Hi", "The answer is", "Ann has 12 pens, and buys a few more.", "2 + 2 =")
)
SAMPLING = SamplingParams(max_tokens=24, seed=3)
TOLERANCE = 1e-4
"""Nats per token between a server and the trainer, both float32 on a CPU."""
Drawn = dict[tuple[str, int], Rollout]


def command(server: str) -> list[str]:
    """Return what starts a server; SGLANG is the Python that has it, LLAMA_CPP a source folder."""
    where = os.environ[server]
    script = str(HERE / f"serve_{server.lower()}.py")
    words = [where, script] if server == "SGLANG" else [sys.executable, script, where]
    return [*words, "{model}", "{host}", "{port}"]


@pytest.fixture(scope="module", params=list(MADE_BY))
def server(request: pytest.FixtureRequest) -> str:
    if request.param not in os.environ:
        pytest.skip(f"{request.param} says of no server: `{MADE_BY[request.param]}` makes one")
    return str(request.param)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    return save_tiny(path, hidden_size=128, initializer_range=0.2, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def engine(server: str, model_path: Path) -> Iterator[ServerEngine]:
    values = {"command": command(server), "concurrency": 8, "patience": 120.0}
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as own:
        assert isinstance(own, ServerEngine)
        yield own


def draw(engine: ServerEngine, sampling: SamplingParams = SAMPLING) -> Drawn:
    rollouts = list(engine.generate(REQUESTS, sampling))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts) == 32
    return drawn


def test_it_is_seen_what_the_server_gives(server: str, engine: ServerEngine) -> None:
    capabilities = engine._capabilities
    assert (capabilities.takes_extra, capabilities.takes_ids, capabilities.gives_ids) == (True,) * 3
    llama_cpp = server == "LLAMA_CPP"
    assert (capabilities.llama_cpp, engine.records_logprobs) == (llama_cpp, not llama_cpp)
    assert capabilities.counts_temperature
    # llama.cpp overlooks a stop string behind half a character, which is all a random model writes.
    assert capabilities.keeps_stops or llama_cpp
    assert (capabilities.counts_top_p, capabilities.counts_top_k) == (llama_cpp, llama_cpp)


def test_every_token_is_there(server: str, engine: ServerEngine) -> None:
    """Also those that end within a character, of which a random model writes many."""
    sampling = replace(SAMPLING, max_tokens=8 if server == "LLAMA_CPP" else 24)
    drawn: dict[Any, Rollout] = {}
    for seed in range(3):
        for key, rollout in draw(engine, replace(sampling, seed=seed)).items():
            drawn[key, seed] = rollout
    for rollout in drawn.values():
        ids = rollout.completion_ids
        assert EOS not in ids[:-1]
        stopped = rollout.finish_reason is FinishReason.STOP
        assert (ids[-1] == EOS) == stopped
        assert stopped or len(ids) == sampling.max_tokens
    assert {rollout.finish_reason for rollout in drawn.values()} == set(FinishReason)
    within = sum(rollout.logprobs is None for rollout in drawn.values())
    assert within < len(drawn)
    assert (within > 0) == (server == "LLAMA_CPP")


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6, "temperature": 0.9}]
)
def test_logprobs_are_those_of_the_sampled_distribution(
    server: str, engine: ServerEngine, model_path: Path, changes: dict[str, Any]
) -> None:
    """Or there are none: SGLang's are those before top-k and top-p."""
    model = load_model(ModelConfig(path=str(model_path), device="cpu"))
    gaps: list[float] = []
    for rollout in draw(engine, replace(SAMPLING, max_tokens=5, **changes)).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1]
        chosen = torch.tensor(rollout.completion_ids)[:, None]
        expected = sampled_log_probs(logits, rollout.sampling).gather(-1, chosen)[:, 0]
        assert expected.isfinite().all()  # what was drawn is within the cuts
        if rollout.logprobs is not None:
            gaps += (np.asarray(rollout.logprobs) - expected.numpy()).tolist()
    if server == "SGLANG" and changes.keys() & {"top_k", "top_p"}:
        assert not gaps
    else:
        assert len(gaps) > 20
        assert max(map(abs, gaps)) < TOLERANCE


def test_the_seed_fixes_the_samples(server: str, engine: ServerEngine) -> None:
    if server == "SGLANG":
        pytest.skip("SGLang reads seeds where inference is deterministic, which needs a GPU")
    first, again, other = draw(engine), draw(engine), draw(engine, replace(SAMPLING, seed=4))
    same = [first[key].completion_ids == again[key].completion_ids for key in first]
    assert sum(same) > 28  # all but what another batch rounds otherwise
    assert first["Hi", 0].completion_ids != other["Hi", 0].completion_ids


def test_greedy_is_greedy(engine: ServerEngine, model_path: Path) -> None:
    model = load_model(ModelConfig(path=str(model_path), device="cpu"))
    for rollout in draw(engine, replace(SAMPLING, temperature=0.0, max_tokens=6)).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1]
        assert tuple(logits.argmax(dim=-1).tolist()) == rollout.completion_ids
        assert set(rollout.logprobs or ()) == {0.0}


def test_a_stop_string_ends_at_the_token_that_completes_it(engine: ServerEngine) -> None:
    stop = "a"
    stopped = [r for r in draw(engine, replace(SAMPLING, stop=(stop,))).values()
               if stop in r.completion]  # fmt: skip
    assert len(stopped) > 2
    for rollout in stopped:
        assert stop not in TOKENIZER.decode(list(rollout.completion_ids[:-1]))
        assert rollout.finish_reason is FinishReason.STOP


REWARD = """
def long_enough(completions, answer, **columns):
    return [1.0 if len(text) > 14 else -1.0 for text in completions]
"""
RECIPE = """
task:
  name: jsonl
  train_file: problems.jsonl
  test_problems: 4
  grader: rewards:long_enough
model: {path: MODEL, device: cpu}
generate:
  engine: server
  server: {command: COMMAND, concurrency: 8, patience: 120}
  n: 4
  max_tokens: 16
grade: {workers: 1, truncated: grade}
train: {behavior_logprobs: recompute, max_steps: 2, batch_size: 8, optim: adamw_torch}
evaluate: {n: 2, pass_at: [1], bootstrap: 100}
"""


def test_a_run_serves_each_model_that_it_trains(
    server: str, model_path: Path, tmp_path: Path
) -> None:
    problems = [{"prompt": f"Write {number} words.", "answer": "any"} for number in range(12)]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    recipe = RECIPE.replace("COMMAND", json.dumps(command(server)))
    recipe = recipe.replace("MODEL", str(model_path))
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    topr(tmp_path, "run", "recipe.yaml", "-o", "run")
    drawn = read_table(tmp_path / "run/iteration-01/rollouts").to_pylist()
    assert len(drawn) == 8 * 4
    served = [
        {row["model"] for row in read_table(tmp_path / f"run/{name}/evaluation").to_pylist()}
        for name in ("iteration-00", "iteration-01")
    ]
    assert served == [{str(model_path)}, {"run/iteration-01/model"}]
