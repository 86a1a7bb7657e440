"""What is tried before anything is drawn, and what comes of it."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedModel

from tiny import tiny_model, tiny_tokenizer
from topr.engines import decoding, trial
from topr.engines.base import Request
from topr.engines.kv_cache import Batching
from topr.engines.transformers import TransformersEngine
from topr.engines.trial import Case, cases, find_batching, kept_bytes
from topr.errors import ModelError
from topr.models.lengths import named_lengths, positions_of
from topr.records import SamplingParams

TOKENIZER = tiny_tokenizer()
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4, "original_max_position_embeddings": 40,
}  # fmt: skip


def request(length: int, n: int = 1) -> Request:
    ids = tuple(30 + 7 * i % 200 for i in range(length))
    return Request(problem_id=f"p{length}", prompt="?", prompt_ids=ids, n=n)


def engine(model: PreTrainedModel) -> TransformersEngine:
    return TransformersEngine(model, TOKENIZER, model_name="tiny")


def test_a_config_names_its_lengths() -> None:
    assert named_lengths(LlamaConfig(max_position_embeddings=4096)) == (4096,)
    mistral = MistralConfig(sliding_window=512, max_position_embeddings=8192)
    assert named_lengths(mistral) == (512, 8192)
    longrope = LlamaConfig(max_position_embeddings=8192, rope_parameters=LONGROPE)
    assert named_lengths(longrope) == (40, 8192)
    assert positions_of(longrope) == 8192


def test_what_is_tried_goes_past_every_length_that_is_reached() -> None:
    short, *long = cases((8, 40, 200), 60, Batching.REFILLED)
    assert short.ends
    assert len(set(short.prompts)) > 2
    assert [case.prompts[1:] for case in long] == [(5, 11), (37, 54)]
    for case, length in zip(long, (8, 40), strict=True):
        assert case.prompts[1] < length < case.prompts[1] + case.steps  # while decoding
        assert case.prompts[2] > length  # and in the prompt


@pytest.mark.parametrize("batching", [Batching.SHARED, Batching.REFILLED])
@pytest.mark.parametrize("reach", [2, 3, 9, 14, 44])
def test_nothing_longer_than_what_is_reached_is_tried(reach: int, batching: Batching) -> None:
    for case in cases((8, 40), reach, batching):
        assert all(case.beginning + prompt + case.steps <= reach for prompt in case.prompts)


def test_frequencies_that_change_at_a_length_are_refused_where_it_is_reached() -> None:
    model = tiny_model(rope_parameters=LONGROPE)
    drawing = engine(model)
    assert list(drawing.generate([request(30, n=2), request(5)], SamplingParams(max_tokens=10)))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be drawn from.*lower max_tok"):
        drawing.generate([request(30)], SamplingParams(max_tokens=11))
    # The same engine goes on with what it can.
    assert list(drawing.generate([request(30)], SamplingParams(max_tokens=10)))


def test_a_model_is_tried_again_only_for_longer_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[Case]()
    right = trial._gap
    monkeypatch.setattr(trial, "_gap", lambda *args: (tried.append(args[-1]), right(*args))[1])
    drawing = engine(tiny_model("gemma3"))  # a window of 8
    for length, after in ((2, 1), (2, 1), (20, 3), (30, 3)):
        assert list(drawing.generate([request(length)], SamplingParams(max_tokens=4)))
        assert len(tried) == after


def test_a_way_that_is_wrong_gives_place_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that counts positions itself takes padding for a part of the sequence."""
    right = decoding.Decoding._call

    def shifted(self, ids, lengths, width, positions, cache, **further):  # type: ignore[no-untyped-def]
        counted = positions if ids.shape[1] > 1 else torch.full_like(positions, width - 1)
        return right(self, ids, lengths, width, counted, cache, **further)

    model = tiny_model()
    assert find_batching(model, TOKENIZER, 50) is Batching.SHARED
    assert not caplog.text
    monkeypatch.setattr(decoding.Decoding, "_call", shifted)
    assert find_batching(model, TOKENIZER, 50) is Batching.LEVEL
    assert "one length" in caplog.text
    assert "nats a token" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_shorter_types_is_no_fault(dtype: torch.dtype) -> None:
    model = tiny_model("gemma2").to(dtype)
    assert find_batching(model, TOKENIZER, 50) is Batching.REFILLED


def test_a_fault_is_seen_in_shorter_types_too() -> None:
    model = tiny_model(rope_parameters=LONGROPE).bfloat16()
    with pytest.raises(ModelError, match="cannot be drawn from"):
        find_batching(model, TOKENIZER, 60)


def test_a_model_without_a_cache_is_refused() -> None:
    model = tiny_model()
    right = type(model).forward

    class Forgetful(type(model)):  # type: ignore[misc]
        def forward(self, input_ids, past_key_values=None, use_cache=None, **further):  # type: ignore[no-untyped-def]
            return right(self, input_ids, use_cache=False, **further)

    model.__class__ = Forgetful
    with pytest.raises(ModelError, match="returns no past_key_values"):
        engine(model).generate([request(3)], SamplingParams(max_tokens=3))


def test_what_a_layer_keeps_of_a_token_is_measured() -> None:
    model = tiny_model("qwen3")
    keys = model.config.num_key_value_heads * model.config.head_dim
    assert kept_bytes(model) == [2 * 4 * keys] * model.config.num_hidden_layers
    assert kept_bytes(model.bfloat16()) == [2 * 2 * keys] * model.config.num_hidden_layers
