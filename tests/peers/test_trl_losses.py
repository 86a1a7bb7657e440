"""Objectives beside TRL's own losses, on the same tensors."""

from collections import defaultdict
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl", reason="TRL is an extra")

from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from peers.same_batch import ADVANTAGE, LENGTHS, MASK, assert_same, descent, made_logprobs, weights


def loss_of(trainer, log_mu, log_pi, loss_type, **settings):
    """The loss that a trainer of TRL computes of these log-probabilities, without a model."""
    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    args = SimpleNamespace(**defaults)  # no settings of the machine's
    same = SimpleNamespace(
        reduce=lambda value, reduction: value, gather=lambda value: value, num_processes=1
    )
    same.gather_for_metrics = same.gather
    attributes = {
        "args": args, "loss_type": loss_type, "beta": 0.0, "importance_sampling_level": "token",
        "epsilon_low": 0.2, "epsilon_high": 0.2, "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0, "use_vllm": False, "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False, "accelerator": same,
        "current_gradient_accumulation_steps": 1, "model": SimpleNamespace(training=False),
        "_metrics": {"eval": defaultdict(list)},
        "get_gamma_weights": GRPOTrainer.get_gamma_weights,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (log_pi, 0 * log_pi.detach(), None),
    }  # fmt: skip
    empty = torch.zeros(6, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty, "prompt_mask": empty, "completion_ids": MASK.long(),
        "completion_mask": MASK.float(), "advantages": ADVANTAGE, "old_per_token_logps": log_mu,
        "num_items_in_batch": LENGTHS.sum(),
    }  # fmt: skip
    return trainer._compute_loss(SimpleNamespace(**attributes | settings), None, inputs)


@pytest.mark.parametrize(
    ("name", "loss_type", "settings", "scale"),
    [
        ("grpo", "grpo", {}, 1 / (6 * LENGTHS)),
        ("cispo", "cispo", {"epsilon_high": 1.2}, 1 / LENGTHS.sum()),  # there the limit itself
        ("sapo", "sapo", {}, 1 / (6 * LENGTHS)),
        ("vespo", "vespo", {}, 1 / LENGTHS.sum()),
    ],
)
def test_gradients_are_those_of_trl(name, loss_type, settings, scale):
    log_mu, log_pi = made_logprobs()
    theirs = descent(loss_of(GRPOTrainer, log_mu, log_pi, loss_type, **settings), log_pi)
    ours = weights(name, log_mu, log_pi)
    assert_same(ours, theirs / scale.expand(6)[:, None])


def test_gmpo_is_that_of_trl():
    log_mu, log_pi = made_logprobs()
    limits = {"epsilon_low": 0.4, "epsilon_high": 0.4}
    theirs = descent(loss_of(GMPOTrainer, log_mu, log_pi, "grpo", **limits), log_pi)
    assert_same(weights("gmpo", log_mu, log_pi), theirs * 6 * LENGTHS[:, None])
