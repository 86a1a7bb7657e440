"""The server engine on `transformers serve`, which takes text and gives text.

Run by `make test-vllm`, whose environment has what that server needs; skipped elsewhere.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from tiny import EOS, PAD, save_tiny, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Request, open_engine
from topr.engines.server import ServerEngine
from topr.records import FinishReason, Rollout, SamplingParams

pytestmark = pytest.mark.timeout(600)
TOKENIZER = tiny_tokenizer()
REQUESTS = tuple(
    Request(problem_id=text, prompt=text, prompt_ids=tuple(TOKENIZER(text)["input_ids"]), n=6)
    for text in ("Hi", "The answer is", "2 + 2 =")
)
SAMPLING = SamplingParams(max_tokens=24, seed=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    model = save_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)
    sampled = {"do_sample": True, "top_k": 0, "eos_token_id": EOS, "pad_token_id": PAD}
    values = {
        "command": [
            sys.executable, "-m", "transformers.cli.transformers", "serve", "{model}",
            "--host", "{host}", "--port", "{port}",
        ],
        "model": "{model}", "concurrency": 1, "patience": 300.0,
        "extra_body": {"generation_config": json.dumps(sampled)},
    }  # fmt: skip
    config = GenerateConfig(engine="server", server=values)  # type: ignore[arg-type]
    with closing(open_engine(ModelConfig(path=str(model)), config)) as opened:
        assert isinstance(opened, ServerEngine)
        yield opened


@pytest.fixture(scope="module")
def drawn(engine: ServerEngine) -> list[Rollout]:
    return list(engine.generate(REQUESTS, SAMPLING))


def test_every_completion_is_drawn_once_and_is_tokenised_here(drawn: list[Rollout]) -> None:
    keys = {(rollout.problem_id, rollout.sample) for rollout in drawn}
    assert len(drawn) == len(keys) == 18
    assert len({rollout.completion for rollout in drawn}) > 12  # it samples
    for rollout in drawn:
        ids = list(rollout.completion_ids)
        if rollout.finish_reason is FinishReason.STOP:
            assert ids.pop() == EOS
        # A byte that is no text comes as a replacement character, of three.
        assert len(ids) <= 3 * SAMPLING.max_tokens
        assert ids == TOKENIZER(rollout.completion)["input_ids"]


def test_it_is_seen_that_it_gives_no_logprobs(engine: ServerEngine, drawn: list[Rollout]) -> None:
    assert not engine.records_logprobs
    assert not engine._capabilities.gives_ids
    assert all(rollout.logprobs is None for rollout in drawn)
