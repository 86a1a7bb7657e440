"""The policy that is trained is the model as it samples: nothing random, whatever its config is."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    FalconConfig,
    GPT2Config,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedModel,
)

from rollouts_for_training import made_rows, plain_logprobs
from tiny import EOS, PAD, checkpoint_activations, tiny_model, tiny_tokenizer
from topr.config import ModelConfig, TrainConfig
from topr.errors import ConfigError, TrainingError
from topr.models.evaluation_mode import evaluate, evaluate_when_run
from topr.stages.train_arguments import CHECKPOINTING, training_arguments
from topr.training import TOPRConfig, TOPRTrainer

COMMON = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
}
EXPERTS = {"intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 4}

RANDOM = {
    "dropout modules": GPT2Config(
        vocab_size=COMMON["vocab_size"], n_embd=32, n_layer=2, n_head=2, n_positions=64,
        attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3,
    ),
    "dropout read from the config": FalconConfig(
        **COMMON, hidden_dropout=0.3, attention_dropout=0.3
    ),
    "layers left out": OPTConfig(
        **COMMON, ffn_dim=64, word_embed_proj_dim=32, layerdrop=0.5, dropout=0.3
    ),
    "layers and activations left out": BioGptConfig(
        **COMMON, intermediate_size=64, layerdrop=0.5, activation_dropout=0.3
    ),
    "noise on the router": MixtralConfig(**COMMON, **EXPERTS, router_jitter_noise=0.3),
    "experts that are drawn": PhimoeConfig(
        **COMMON, **EXPERTS, router_jitter_noise=0.3, input_jitter_noise=0.3
    ),
}  # fmt: skip
"""Configs of models that are random in train mode, by what is."""


def random_model(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(RANDOM[kind])
    return model.train()  # as a user may hand it over


def make_trainer(tmp_path, model, rows=None, **arguments):
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 16, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "optim": "sgd", "learning_rate": 1e-2,
        "behavior_logprobs": "recompute", "max_grad_norm": 0.0,
    }  # fmt: skip
    return TOPRTrainer(
        model=model,
        args=TOPRConfig(**(settings | arguments)),
        train_dataset=rows or made_rows(logprobs=False),
        processing_class=tiny_tokenizer(),
    )


def plain_step(model, rows, rate):
    """The weights after a step of SGD on an unchanged model, whose weights are all 1."""
    model = copy.deepcopy(model).eval()
    for row in rows:
        logprobs = plain_logprobs(model, row)
        (-row["reward"] * logprobs.mean() / len(rows)).backward()
    return {
        name: p.detach() - (rate * p.grad if p.grad is not None else 0.0)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", RANDOM)
def test_an_unchanged_model_has_ratio_1_and_the_gradient_of_evaluation_mode(
    tmp_path, kind, checkpointing
):
    rows = made_rows(logprobs=False)
    model = random_model(kind)
    assert not torch.equal(*(model(torch.arange(5, 25)[None]).logits for _ in range(2)))
    expected = plain_step(model, rows, rate=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(
        tmp_path, model, rows, max_steps=1, learning_rate=1.0, **{CHECKPOINTING: checkpointing}
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert abs(log["log_ratio/positive"]) < 1e-4
    assert abs(log["log_ratio/negative"]) < 1e-4
    for name, p in model.named_parameters():
        way = (expected[name] - before[name]).norm()
        assert (p - expected[name]).norm() <= 1e-4 * max(way, 1e-3), name


def test_dropout_of_an_adapter_is_off(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, init_lora_weights=False)
    trainer = make_trainer(tmp_path, get_peft_model(tiny_model(), lora), max_steps=1)
    trainer.train()
    assert abs(trainer.state.log_history[0]["log_ratio/negative"]) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_computed_again_only_where_that_is_asked_for(tmp_path, checkpointing):
    model = tiny_model()
    modes = []
    layer = model.model.layers[0].mlp
    layer.register_forward_pre_hook(
        lambda module, _: modes.append((torch.is_grad_enabled(), module.training))
    )
    trainer = make_trainer(tmp_path, model, max_steps=1, **{CHECKPOINTING: checkpointing})
    modes.clear()
    trainer.train()
    with_gradient = [training for gradient, training in modes if gradient]
    assert with_gradient == ([False, False] if checkpointing else [False])


def test_checkpointing_that_a_model_does_not_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("topr.training.checks.GradientCheckpointingLayer", torch.nn.LSTM)
    with pytest.raises(TrainingError, match="gradient checkpointing: LlamaForCausalLM"):
        make_trainer(tmp_path, tiny_model(), **{CHECKPOINTING: True})


def test_noise_that_comes_with_the_gradient_alone_stops_the_first_step(tmp_path):
    model = tiny_model()
    model.get_input_embeddings().register_forward_hook(
        lambda _, __, found: found + 0.1 * torch.rand(()) * torch.is_grad_enabled()
    )
    trainer = make_trainer(tmp_path, model)
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(TrainingError, match="in a pass that takes gradients"):
        trainer.train()
    assert torch.equal(model.lm_head.weight, before)


def test_noise_on_the_embeddings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neftune_noise_alpha=5\.0"):
        make_trainer(tmp_path, tiny_model(), neftune_noise_alpha=5.0)
    config = TrainConfig(training_arguments={"neftune_noise_alpha": 5.0})
    with pytest.raises(ConfigError, match="neftune_noise_alpha"):
        training_arguments(config, ModelConfig(path="x", device="cpu"), tmp_path, 0)


def test_a_trainer_of_others_runs_a_model_in_evaluation_mode_and_keeps_its_own_name_for_it():
    model = tiny_model()
    checkpoint_activations(model)
    evaluate_when_run(model)
    seen = []
    for module in model.model.modules():
        module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.train()
    loss = model(torch.arange(5, 25)[None], labels=torch.arange(5, 25)[None]).loss
    assert model.training
    forward = len(seen)
    loss.backward()
    assert len(seen) > forward  # layers were computed again
    assert not any(seen)
    model.eval()
    model(torch.arange(5, 25)[None])
    assert not model.training


def test_layers_that_checkpoint_fill_no_cache():
    model = tiny_model()
    expected = model(torch.arange(5, 25)[None]).logits
    checkpoint_activations(model)
    evaluate(model)
    found = model(torch.arange(5, 25)[None], use_cache=True).logits
    torch.testing.assert_close(found, expected)
    found.sum().backward()
