"""Drawing on CUDA: the log-probabilities of a plain forward pass, whatever the company."""

import pytest
import torch

from tiny import tiny_tokenizer
from topr.engines.base import Request
from topr.engines.transformers import TransformersEngine
from topr.records import SamplingParams

ARCHITECTURES = ["llama", "qwen3", "gemma", "gpt_neox"]


def draw(model, batch_size=8):
    engine = TransformersEngine(model, tiny_tokenizer(), model_name="tiny", batch_size=batch_size)
    requests = [
        Request(problem_id=f"p{p}", prompt="", prompt_ids=tuple(range(20, 25 + 4 * p)), n=6)
        for p in range(5)
    ]
    sampling = SamplingParams(max_tokens=40, temperature=0.9)
    return {(r.problem_id, r.sample): r for r in engine.generate(requests, sampling)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_are_those_of_a_plain_forward(cuda, model_on, architecture):
    model = model_on(architecture)
    for rollout in draw(model).values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids], device=cuda)
        with torch.no_grad():
            table = (model(sequence).logits[0].double() / 0.9).log_softmax(-1)
        start = len(rollout.prompt_ids)
        tokens = torch.tensor(rollout.completion_ids, device=cuda)
        expected = table[start - 1 : -1].gather(1, tokens[:, None]).squeeze(1)
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_batch_size_does_not_change_the_samples(model_on):
    model = model_on()
    one, many = draw(model, 4), draw(model, 30)
    assert {k: r.completion_ids for k, r in one.items()} == {
        k: r.completion_ids for k, r in many.items()
    }
