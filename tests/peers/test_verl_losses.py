"""Objectives beside verl's own losses, on the same tensors.

Runs where verl is: `make test-peers`.
"""

from types import SimpleNamespace

import pytest

pytest.importorskip("verl", reason="verl has an environment of its own: make test-peers")

from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig

from peers.same_batch import (
    ADVANTAGE,
    LENGTHS,
    MASK,
    REWARD,
    assert_same,
    descent,
    made_logprobs,
    weights,
)


def loss_of(mode, log_mu, log_pi, config, advantage=ADVANTAGE):
    loss, _ = get_policy_loss_fn(mode)(
        old_log_prob=log_mu,
        log_prob=log_pi,
        advantages=advantage[:, None].expand(6, 6),
        response_mask=MASK,
        loss_agg_mode="token-mean",
        config=config,
        rollout_is_weights=None,
    )
    return loss


class Settings(SimpleNamespace):
    """What a loss of verl reads of its configuration."""

    @property
    def global_batch_info(self):
        return {}

    def get(self, name, default):
        return getattr(self, name, default)


def clip(low, high=None):
    return Settings(clip_ratio=low, clip_ratio_low=low, clip_ratio_high=high or low)


def actor(**settings):
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **settings)


@pytest.mark.parametrize(
    ("name", "mode", "config", "arguments"),
    [
        ("dppo", "dppo_tv", clip(0.15), {}),
        ("dppo", "dppo_kl", clip(0.05), {"divergence": "kl", "threshold": 0.05}),
        ("cispo", "cispo", actor(clip_ratio_low=1.0, clip_ratio_high=0.2), {}),
    ],
)
def test_gradients_are_those_of_verl(name, mode, config, arguments):
    log_mu, log_pi = made_logprobs()
    theirs = descent(loss_of(mode, log_mu, log_pi, config), log_pi)
    assert_same(weights(name, log_mu, log_pi, **arguments), theirs * LENGTHS.sum())


def test_sapo_is_that_of_verl():
    log_mu, log_pi = made_logprobs()
    config = actor(tau_pos=1.0, tau_neg=1.05)
    theirs = descent(loss_of("sapo", log_mu, log_pi, config), log_pi)
    assert_same(weights("sapo", log_mu, log_pi), theirs * 6 * LENGTHS[:, None])


def test_gmpo_is_that_of_verl():
    log_mu, log_pi = made_logprobs()
    theirs = descent(loss_of("geo_mean", log_mu, log_pi, clip(0.4)), log_pi)
    assert_same(weights("gmpo", log_mu, log_pi), theirs * 6 * LENGTHS[:, None])


def test_token_level_dro_is_that_of_verl():
    log_mu, log_pi = made_logprobs()
    config = Settings(policy_loss=Settings(dro_beta=0.3))
    theirs = descent(loss_of("dro", log_mu, log_pi, config, REWARD), log_pi)
    assert_same(weights("dro", log_mu, log_pi, beta=0.3, level="token"), theirs * LENGTHS.sum())
