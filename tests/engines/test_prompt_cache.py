"""Prompts that are held once for all rows: the same samples, the same log-probabilities."""

import random

import pytest
import torch
from test_transformers import draw, ending_model, engine, ids, shapes_of
from transformers import PreTrainedModel

from tiny import ARCHITECTURES
from topr.engines import transformers
from topr.engines.base import Request
from topr.engines.kv_cache import Batching
from topr.engines.transformers import TransformersEngine
from topr.errors import ModelError

BEGINNING = 40


def asked(lengths: tuple[int, ...], beginning: int = 0, n: int = 3) -> list[Request]:
    """Prompts of random ids; their first `beginning` ones are the same."""
    chance = random.Random(3)
    shared = tuple(chance.randrange(30, 250) for _ in range(beginning))
    return [
        Request(
            problem_id=f"p{number}",
            prompt="?",
            prompt_ids=(*shared, *(chance.randrange(30, 250) for _ in range(length))),
            n=n,
        )
        for number, length in enumerate(lengths)
    ]


SETS = {
    "unlike": asked((9, 3, 17, 1)),
    "begin alike": asked((9, 3, 17, 1), beginning=BEGINNING),
    "one prompt": asked((12,), n=7),
    "single tokens": asked((1, 1)),
}


def sharing(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, batch_size: int = 5
) -> TransformersEngine:
    monkeypatch.setattr(transformers, "SHARED_BYTES", 0)
    return engine(model, batch_size)


@pytest.mark.parametrize("requests", SETS.values(), ids=SETS)
def test_the_same_is_drawn_as_with_a_copy_for_each_row(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ending_model()
    expected = draw(model, requests, batch_size=5)
    opened = sharing(model, monkeypatch)
    found = draw(model, requests, opened=opened)
    assert opened.batching is Batching.SHARED
    assert ids(found) == ids(expected)
    for key, rollout in found.items():
        assert rollout.logprobs == pytest.approx(expected[key].logprobs, abs=1e-4)
    assert len({len(rollout.completion_ids) for rollout in found.values()}) > 1


def test_weights_of_float32_draw_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the probe of a training in mixed precision does: queries and keys come in float32."""
    opened = sharing(ending_model(), monkeypatch)
    draw(opened.model, SETS["unlike"], opened=opened)
    with torch.autocast("cpu", torch.bfloat16):
        found = draw(opened.model, SETS["begin alike"], opened=opened)
    assert opened.batching is Batching.SHARED
    assert all(len(rollout.completion_ids) > 0 for rollout in found.values())


def test_what_prompts_begin_with_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ending_model()
    opened = sharing(model, monkeypatch)
    draw(model, asked((2,)), opened=opened)  # the model is tried, once
    lengths = (9, 3, 17, 5)
    with shapes_of(model) as shapes:
        draw(model, asked(lengths, beginning=BEGINNING), opened=opened)
    run = [shape for shape in shapes if shape[1] > 1]
    # The last token of each prompt is a row's first; prompts lie end to end.
    assert sum(shape.numel() for shape in run) == BEGINNING + sum(n - 1 for n in lengths)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_cannot_share_does_not(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and soft caps are not for it; what is drawn is right either way."""
    model = ending_model(architecture)
    opened = sharing(model, monkeypatch)
    drawn = draw(model, SETS["begin alike"], opened=opened)
    plain = architecture in ("llama", "qwen2", "qwen3")
    assert (opened.batching is Batching.SHARED) >= plain
    for rollout in drawn.values():
        sequence = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            log_probs = model(sequence).logits[0].log_softmax(-1)
        written = torch.tensor(rollout.completion_ids)
        start = len(rollout.prompt_ids) - 1
        expected = log_probs[start:-1].gather(1, written[:, None])[:, 0]
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_short_prompts_of_a_small_model_are_not_worth_it() -> None:
    model = ending_model()
    opened = engine(model)
    draw(model, SETS["begin alike"], opened=opened)
    assert opened.batching is Batching.REFILLED


def test_float64_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ending_model().double()
    opened = sharing(model, monkeypatch)
    draw(model, SETS["unlike"], opened=opened)
    assert opened.batching is not Batching.SHARED
    with pytest.raises(ModelError, match="CPU"):
        transformers.Decoding(  # type: ignore[attr-defined]
            model, [], lambda _: None, None, eos_ids=(), stops=None, batch_size=1,
            batching=Batching.SHARED,
        )  # fmt: skip
