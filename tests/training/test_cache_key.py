"""The name under which recomputed log mu is kept: another one wherever a log-probability may be."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rollouts_for_training import made_rows
from tiny import tiny_model, tiny_tokenizer
from topr.training import cache_key as keys
from topr.training.cache_key import cache_key
from topr.training.data import prepare_rows
from topr.training.logprobs import Forward

SHARED = Forward(share=True, chunk=True)


def rows(change=None) -> Dataset:
    made = made_rows(prompts=2, per_prompt=2, logprobs=False)
    if change:
        change(made)
    return prepare_rows(made, tiny_tokenizer())[0]


def key(model, dataset=None, forward=SHARED, numerics="no"):
    return cache_key(model, dataset or rows(), forward, numerics)


def adapted(**settings):
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False, **settings
    )
    return get_peft_model(tiny_model(), config)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_the_same_model_has_the_same_name_after_it_was_saved_and_loaded(tmp_path, architecture):
    model = tiny_model(architecture)
    before = key(model)
    model.save_pretrained(tmp_path)
    assert key(AutoModelForCausalLM.from_pretrained(tmp_path)) == before
    model.train()
    assert key(model) == before


CONFIGS = {
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "epsilon": {"rms_norm_eps": 1e-2},
    "window": {"sliding_window": 4},
    "positions": {"max_position_embeddings": 512},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_under_another_config_are_another_model(name):
    model, other = tiny_model(), tiny_model(**CONFIGS[name])
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert key(model) != key(other)


def swapped(model):
    """Exchange two weights: all sums stay."""
    weight = model.lm_head.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def renamed_buffer(model):
    model.model.rotary_emb.inv_freq[1] *= 1.01


def other_epsilon(model):
    model.model.norm.variance_epsilon = 1e-2


def other_attention(model):
    model.config._attn_implementation = "eager"


@pytest.mark.parametrize("change", [swapped, renamed_buffer, other_epsilon, other_attention])
def test_what_is_changed_in_place_changes_the_name(change):
    model = tiny_model()
    before = key(model)
    change(model)
    assert key(model) != before


def test_types_and_ways_of_running_change_the_name():
    found = {
        key(tiny_model()),
        key(tiny_model().to(torch.bfloat16)),
        key(tiny_model(), numerics="bf16"),
        key(tiny_model(), forward=Forward(share=False, chunk=True)),
        key(tiny_model(), forward=Forward(share=False, chunk=True, alone=True)),
    }
    assert len(found) == 5


def test_an_adapters_scale_and_whether_it_is_on_change_the_name():
    model = adapted()
    before = key(model)
    assert before == key(adapted())
    assert before != key(adapted(lora_alpha=16))
    with model.disable_adapter():
        assert key(model) != before
    assert key(model) == before
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    assert key(model) != before


def longer_prompt(made):
    """Move the first token of a completion to its prompt: the tokens in a row stay."""
    made[0]["prompt_ids"] = [*made[0]["prompt_ids"], made[0]["completion_ids"].pop(0)]


def warmer(made):
    made[1]["sampling"] = {"temperature": 0.7}


@pytest.mark.parametrize("change", [longer_prompt, warmer])
def test_other_rows_have_another_name(change):
    assert key(tiny_model(), rows(change)) != key(tiny_model())


def test_another_version_of_the_code_has_another_name(monkeypatch):
    before = key(tiny_model())
    monkeypatch.setattr(keys, "SCHEMA_VERSION", -1)
    assert key(tiny_model()) != before
