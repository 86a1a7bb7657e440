"""Which way of running fits a model: tried up to the longest row, against single sequences."""

import logging
import random

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    ReformerConfig,
    ReformerModelWithLMHead,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.llama import modeling_llama

from tiny import tiny_model, tiny_tokenizer
from topr.errors import TrainingError
from topr.training.batches import longest_row
from topr.training.fitting import forward_of, validate_gradient
from topr.training.logprobs import Forward

SHARED = Forward(share=True, chunk=True)
CHUNKED = Forward(share=False, chunk=True)
ALONE = Forward(share=False, chunk=True, alone=True)
VOCABULARY = len(tiny_tokenizer())


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO, logger="topr.training")


def rows(longest):
    """Two rows, the longer of `longest` tokens."""
    chance = random.Random(0)
    ids = [chance.randrange(5, VOCABULARY) for _ in range(longest)]
    lengths = ((ids[:9], ids[20:25]), (ids[:20], ids[20:]))
    return Dataset.from_list(
        [
            {"group": group, "prompt_ids": prompt, "completion_ids": completion, "temperature": 1.0}
            for group, (prompt, completion) in enumerate(lengths)
        ]
    )


def after_embedding(model, change):
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: change(output))
    return model


def test_one_line_says_what_was_chosen_and_how_far_it_was_tried(caplog):
    assert forward_of(tiny_model(), rows(100)) == SHARED
    assert "up to 100 tokens" in caplog.text
    assert len(caplog.records) == 1


def test_a_window_that_lives_in_the_mask_alone_is_seen_where_rows_pass_it(monkeypatch, caplog):
    monkeypatch.setattr(modeling_llama, "create_causal_mask", create_sliding_window_causal_mask)
    model = tiny_model()
    model.config.sliding_window = 64
    assert forward_of(model, rows(64)) == SHARED  # no token looks further back
    assert forward_of(model, rows(100)) == CHUNKED
    assert "prompts are not shared and sequences are padded: its log-prob" in caplog.text
    with pytest.raises(TrainingError, match="layout=shared does not fit"):
        forward_of(model, rows(100), "shared")


SCALED = {
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 64),
    "longrope": (
        {
            "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4, "original_max_position_embeddings": 64,
        },
        256,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_a_scale_that_changes_with_the_length_is_refused_where_rows_pass_it(kind, layout):
    scale, positions = SCALED[kind]
    model = tiny_model(
        rope_parameters={"rope_theta": 1e4} | scale, max_position_embeddings=positions
    )
    assert forward_of(model, rows(64), layout) == (SHARED if layout == "auto" else CHUNKED)
    with pytest.raises(TrainingError, match=r"depend on the tokens that follow.*set max_length"):
        forward_of(model, rows(100), layout)


def test_a_scale_that_is_the_same_for_all_lengths_is_not_refused():
    scale = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny_model(rope_parameters={"rope_theta": 1e4} | scale)
    assert forward_of(model, rows(100)) == SHARED


def test_what_depends_on_the_rows_beside_it_is_run_by_itself(caplog):
    model = after_embedding(tiny_model(), lambda found: found + 0.01 * (found.shape[0] - 1))
    assert forward_of(model, rows(40), "padded") == ALONE
    assert "each sequence is run by itself" in caplog.text
    assert forward_of(model, rows(40)) == SHARED  # one row, whatever it holds


def test_what_depends_on_what_was_given_before_is_refused():
    longest = 0

    def remember(found):
        nonlocal longest
        longest = max(longest, found.shape[1])
        return found + 0.01 * (longest > 60 and found.shape[1] < 30)

    with pytest.raises(TrainingError, match="depend on the sequences that it was given before"):
        forward_of(after_embedding(tiny_model(), remember), rows(100))


def test_a_model_that_is_random_in_evaluation_mode_is_refused():
    model = after_embedding(tiny_model(), lambda found: found + 0.01 * torch.randn_like(found))
    with pytest.raises(TrainingError, match="differ from one pass to the next"):
        forward_of(model, rows(40))


def test_a_model_that_looks_ahead_is_refused():
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.5,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="a sequence of 40 tokens depend on the tokens that"):
        forward_of(BertLMHeadModel(config), rows(40))
    config.is_decoder = True
    forward_of(BertLMHeadModel(config), rows(40))


def test_a_model_that_rescales_its_own_weights_is_refused():
    config = RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, context_length=64,
        rescale_every=2,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="changes its own weights"):
        forward_of(RwkvForCausalLM(config), rows(40))
    config.rescale_every = 0
    assert forward_of(RwkvForCausalLM(config), rows(40)) == CHUNKED


def test_a_model_without_a_gradient_in_evaluation_mode_is_refused():
    validate_gradient(tiny_model())
    config = ReformerConfig(
        vocab_size=VOCABULARY, hidden_size=32, feed_forward_size=64, num_attention_heads=2,
        attention_head_size=16, attn_layers=["local", "local"], axial_pos_embds=False,
        max_position_embeddings=64, is_decoder=True, local_attn_chunk_length=8,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="no gradient passes through it"):
        validate_gradient(ReformerModelWithLMHead(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_denies_no_way(dtype):
    # Wide weights round coarsely: single tokens of a sequence move by tenths of a nat in bfloat16.
    model = tiny_model(hidden_size=128, num_hidden_layers=4, initializer_range=0.2).to(dtype)
    assert forward_of(model, rows(250)) == SHARED


def test_a_row_longer_than_the_model_has_positions_for_is_refused():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    forward_of(GPT2LMHeadModel(config), rows(64))
    with pytest.raises(TrainingError, match=r"up to 65 tokens.*set max_length"):
        forward_of(GPT2LMHeadModel(config), rows(65))


def test_the_longest_row_of_a_dataset_is_found():
    given = [{"prompt_ids": [1] * n, "completion_ids": [2] * (9 - n // 2)} for n in (3, 8, 5)]
    assert longest_row(Dataset.from_list(given)) == given[1]
    assert longest_row(Dataset.from_list(given).select([0, 2])) == given[2]
