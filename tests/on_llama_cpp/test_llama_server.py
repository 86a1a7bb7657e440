"""The server engine on llama.cpp's own server: its tokens and numbers beside the trainer's.

Run by `make test-llama-cpp`, which builds that server; skipped where LLAMA_CPP names no build.
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
from topr.models import load_model
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import read_table

SOURCE = os.environ.get("LLAMA_CPP", "")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SOURCE, reason="no llama.cpp here: `make test-llama-cpp` builds it"),
]
SERVE = Path(__file__).parent / "serve.py"
COMMAND = [sys.executable, str(SERVE), SOURCE, "{model}", "{host}", "{port}"]
TOKENIZER = tiny_tokenizer()
REQUESTS = tuple(
    Request(problem_id=text, prompt=text, prompt_ids=tuple(TOKENIZER(text)["input_ids"]), n=8)
    for text in ("Hi", "The answer is", "Ann has 12 pens, and buys a few more.", "2 + 2 =")
)
SAMPLING = SamplingParams(max_tokens=24, seed=3)
TOLERANCE = 1e-4
"""Nats per token between llama.cpp and the trainer, both float32 on a CPU."""
Drawn = dict[tuple[str, int], Rollout]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    return save_tiny(path, hidden_size=128, initializer_range=0.2, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[ServerEngine]:
    values = {"command": COMMAND, "concurrency": 8, "patience": 120.0}
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    with closing(open_engine(ModelConfig(path=str(model_path)), config)) as opened:
        assert isinstance(opened, ServerEngine)
        yield opened


def draw(engine: ServerEngine, sampling: SamplingParams = SAMPLING) -> Drawn:
    rollouts = list(engine.generate(REQUESTS, sampling))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts) == 32
    return drawn


def test_it_is_seen_what_llama_cpp_gives(engine: ServerEngine) -> None:
    abilities = engine._abilities
    assert (abilities.takes_further, abilities.takes_ids, abilities.gives_ids) == (True,) * 3
    assert (abilities.lists_tokens, engine.records_logprobs) == (True, True)
    assert not abilities.keeps_stops


def test_every_token_is_there(engine: ServerEngine) -> None:
    """Also those that end within a character, of which a random model writes many."""
    sampling = replace(SAMPLING, max_tokens=8)
    drawn = draw(engine, sampling)
    within = 0
    for rollout in drawn.values():
        ids = rollout.completion_ids
        assert EOS not in ids[:-1]
        stopped = rollout.finish_reason is FinishReason.STOP
        assert (ids[-1] == EOS) == stopped
        assert stopped or len(ids) == sampling.max_tokens
        within += rollout.logprobs is None
    assert {rollout.finish_reason for rollout in drawn.values()} == set(FinishReason)
    assert 0 < within < len(drawn)


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6, "temperature": 0.9}]
)
def test_logprobs_are_those_of_the_sampled_distribution(
    engine: ServerEngine, model_path: Path, changes: dict[str, Any]
) -> None:
    model = load_model(ModelConfig(path=str(model_path), device="cpu"))
    gaps = []
    for rollout in draw(engine, replace(SAMPLING, max_tokens=5, **changes)).values():
        if rollout.logprobs is None:
            continue
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(rollout.prompt_ids) - 1 : -1]
        chosen = torch.tensor(rollout.completion_ids)[:, None]
        expected = sampled_log_probs(logits, rollout.sampling).gather(-1, chosen)[:, 0]
        gaps += (np.asarray(rollout.logprobs) - expected.numpy()).tolist()
    assert len(gaps) > 20
    assert max(map(abs, gaps)) < TOLERANCE


def test_the_seed_fixes_the_samples(engine: ServerEngine) -> None:
    first, again, other = draw(engine), draw(engine), draw(engine, replace(SAMPLING, seed=4))
    same = [first[key].completion_ids == again[key].completion_ids for key in first]
    assert sum(same) > 28  # all but what another batch rounds otherwise
    assert first[("Hi", 0)].completion_ids != other[("Hi", 0)].completion_ids


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


def test_a_run_serves_each_model_that_it_trains(model_path: Path, tmp_path: Path) -> None:
    problems = [{"prompt": f"Write {number} words.", "answer": "any"} for number in range(12)]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    recipe = RECIPE.replace("COMMAND", json.dumps(COMMAND)).replace("MODEL", str(model_path))
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    topr(tmp_path, "run", "recipe.yaml", "-o", "run")
    drawn = read_table(tmp_path / "run/iteration-01/rollouts").to_pylist()
    assert len(drawn) == 8 * 4
    served = [
        {row["model"] for row in read_table(tmp_path / f"run/{name}/evaluation").to_pylist()}
        for name in ("iteration-00", "iteration-01")
    ]
    assert served == [{str(model_path)}, {"run/iteration-01/model"}]
