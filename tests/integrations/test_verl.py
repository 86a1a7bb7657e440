"""`topr.integrations.verl` through verl's own registry, configuration and loss function.

Runs where verl is (`make test-verl`, requirements-verl.txt); skipped elsewhere.
"""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="verl has an environment of its own: make test-verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import (
    POLICY_LOSS_REGISTRY,
    get_adv_estimator_fn,
    get_policy_loss_fn,
)
from verl.utils import omega_conf_to_dataclass
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.utils.losses import ppo_loss

from tiny import tiny_tokenizer
from tiny_rollouts import tiny_grade, tiny_rollout
from topr.errors import ConfigError, DataError
from topr.integrations.verl import AGGREGATIONS, register
from topr.interop import export_rollouts, write_rows
from topr.objectives import OBJECTIVES, ScoredBatch, Taper, sequence_scale
from topr.store import rollouts_to_table

LENGTHS = torch.tensor([3, 1, 5, 2, 4, 0])  # the last row is empty
T = 6
MASK = torch.arange(T) < LENGTHS[:, None]
ADVANTAGE = torch.tensor([0.7, -1.3, 0.7, -1.3, -1.3, -1.3])
ROWS = 5  # that have tokens

# As docs/integrations.md gives them.
OVERRIDES = [
    "algorithm.adv_estimator=topr",
    "+algorithm.topr_baseline=0.5",
    "algorithm.use_kl_in_reward=False",
    "algorithm.rollout_correction.bypass_mode=True",
    "actor_rollout_ref.rollout.calculate_log_probs=True",
    "actor_rollout_ref.actor.policy_loss.loss_mode=topr",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    "actor_rollout_ref.actor.use_kl_loss=False",
    "actor_rollout_ref.actor.entropy_coeff=0",
]


@pytest.fixture
def config():
    """What verl's command line makes of the documented overrides."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            [*OVERRIDES, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"],
        )


def made_logprobs(scale=0.4):
    """log pi and log mu; what is beyond a completion's end is not to be looked at."""
    generator = torch.Generator().manual_seed(7)
    log_pi = -torch.rand(6, T, generator=generator) * 3
    log_mu = log_pi - scale * torch.randn(6, T, generator=generator)
    return torch.where(MASK, log_pi, math.nan), torch.where(MASK, log_mu, math.inf)


def scored(log_pi, log_mu):
    return ScoredBatch(
        log_ratio=torch.where(MASK, log_pi - log_mu, 0.0),
        advantage=ADVANTAGE,
        mask=MASK,
        group=torch.arange(6),
        behavior_logprobs=log_mu,
    )


def settings(**batch):
    return SimpleNamespace(global_batch_info=batch)


def call(name, log_pi, log_mu, mode="seq-mean-token-mean", advantage=ADVANTAGE, **batch):
    log_pi = log_pi.clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(name)(
        old_log_prob=log_mu,
        log_prob=log_pi,
        advantages=advantage[:, None] * MASK,
        response_mask=MASK,
        loss_agg_mode=mode,
        config=settings(**batch),
        rollout_is_weights=None,
    )
    (gradient,) = torch.autograd.grad(loss, log_pi)
    return loss.item(), gradient, metrics


DIVISORS = {  # what verl divides a token of a completion of length n by
    "seq-mean-token-mean": lambda n: ROWS * n,
    "seq-mean-token-sum": lambda n: ROWS,
    "seq-mean-token-sum-norm": lambda n: ROWS * T,
    "token-mean": lambda n: int(LENGTHS.sum()),
    "token-sum": lambda n: 1,
}


@pytest.mark.parametrize("mode", DIVISORS)
def test_the_gradient_is_the_papers(mode):
    # -A [rho]_{a}^{b} / divisor on each token, rho over the whole completion, by hand.
    log_pi, log_mu = made_logprobs()
    loss, gradient, _ = call("topr", log_pi, log_mu, mode)
    expected, value, tapers = torch.zeros(6, T), 0.0, []
    for i, n in enumerate(LENGTHS.tolist()):
        log_rho = sum(float(log_pi[i, t]) - float(log_mu[i, t]) for t in range(n))
        weight = float(ADVANTAGE[i])
        if weight < 0:
            tapers.append(min(math.exp(log_rho), 1.0))
            weight *= tapers[-1]
        for t in range(n):
            expected[i, t] = -weight / DIVISORS[mode](n)
            value += float(expected[i, t]) * float(log_pi[i, t])
    assert any(0.05 < taper < 0.95 for taper in tapers)  # else this would say little
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    assert loss == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("normalization", AGGREGATIONS)
def test_verl_aggregates_as_our_normalisation_does(normalization):
    log_pi, log_mu = made_logprobs()
    _, gradient, _ = call("topr", log_pi, log_mu, AGGREGATIONS[normalization])
    weights = OBJECTIVES["topr"].weights(scored(log_pi, log_mu))
    scale = sequence_scale(MASK, normalization, constant=float(T))
    torch.testing.assert_close(gradient, -weights * scale[:, None] / ROWS)


@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if not o.needs_group])
def test_every_objective_of_single_completions_is_there(name):
    log_pi, log_mu = made_logprobs()
    _, gradient, _ = call(f"topr.{name}", log_pi, log_mu, "token-sum")
    weights = OBJECTIVES[name].weights(scored(log_pi, log_mu))
    torch.testing.assert_close(gradient, -weights)


def test_finite_differences_with_frozen_weights_agree():
    # No gradient through the weight: L(theta) = -sum sg(w) log pi, at log pi + h e_it.
    log_pi, log_mu = made_logprobs()
    _, gradient, _ = call("topr", log_pi, log_mu, "token-sum")
    weights = OBJECTIVES["topr"].weights(scored(log_pi, log_mu)).double()
    for i, t in [(0, 0), (1, 0), (2, 4), (4, 3)]:
        moved = torch.where(MASK, log_pi, 0.0).double()
        low = -(weights * moved).sum()
        moved[i, t] += 1e-4
        high = -(weights * moved).sum()
        assert gradient[i, t].item() == pytest.approx(((high - low) / 1e-4).item(), rel=1e-6)


@pytest.mark.parametrize(("value", "taper"), [(-2000.0, 0.0), (2000.0, 1.0)])
def test_extreme_ratios_are_harmless(value, taper):
    log_pi, _ = made_logprobs()
    loss, gradient, metrics = call("topr", log_pi, log_pi - value, "token-sum")
    expected = torch.where(ADVANTAGE < 0, ADVANTAGE * taper, ADVANTAGE)
    torch.testing.assert_close(gradient, torch.where(MASK, -expected[:, None], 0.0))
    assert math.isfinite(loss)
    assert all(math.isfinite(number) for number in metrics.values())


def test_a_batch_of_empty_rows_has_no_gradient():
    nothing = torch.zeros(2, T, dtype=torch.bool)
    log_pi = torch.zeros(2, T, requires_grad=True)
    loss, metrics = get_policy_loss_fn("topr")(
        torch.zeros(2, T), log_pi, torch.zeros(2, T), nothing, "seq-mean-token-mean",
        settings(global_batch_size=8),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, log_pi)
    assert gradient.abs().sum() == 0
    assert all(number == 0 for number in metrics.values())


def test_micro_batches_and_processes_add_up():
    # verl's global sizes: two halves, each scaled by the number of processes, averaged.
    log_pi, log_mu = made_logprobs()
    _, whole, _ = call("topr", log_pi, log_mu, global_batch_size=ROWS)
    loss = get_policy_loss_fn("topr")
    for half in (slice(0, 2), slice(2, 6)):
        part = log_pi[half].clone().requires_grad_()
        value, _ = loss(
            log_mu[half], part, (ADVANTAGE[:, None] * MASK)[half], MASK[half],
            "seq-mean-token-mean", settings(dp_size=2, global_batch_size=ROWS),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(value / 2, part)
        torch.testing.assert_close(gradient, whole[half])


def test_metrics_are_means_over_completions():
    log_pi, log_mu = made_logprobs(scale=0.0)
    log_mu[3, 0] += 10.0  # a negative that the policy left: weight exp(-10)
    _, _, metrics = call("topr", log_pi, log_mu)
    assert metrics["actor/topr/negatives"] == pytest.approx(3 / 5)
    assert metrics["actor/topr/negatives_below_0.01"] == pytest.approx(1 / 5)
    assert metrics["actor/topr/negatives_weight"] == pytest.approx((2 + math.exp(-10)) / 5)
    assert metrics["actor/topr/log_rho"] == pytest.approx(-10 / 5)
    assert metrics["actor/ppo_kl"] == pytest.approx(10 / 15)


def test_verls_own_loss_function_runs_it(config):
    # ppo_loss is what verl's workers call: unpadded log-probabilities in, loss and metrics out.
    log_pi, log_mu = made_logprobs()
    rows, lengths = slice(0, ROWS), LENGTHS[:ROWS]
    prompts = [torch.ones(2, dtype=torch.long) for _ in lengths]
    flat = []  # position j of prompt and completion holds log pi of token j + 1
    for i, n in enumerate(lengths.tolist()):
        flat.append(torch.cat([torch.zeros(1), log_pi[i, :n], torch.zeros(1)]))
    packed = torch.cat(flat).requires_grad_()
    offsets = torch.tensor([0, *(lengths + 2).cumsum(0).tolist()])

    def nested(values):
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    data = TensorDict(
        {
            "prompts": nested(prompts),
            "responses": nested([torch.ones(int(n), dtype=torch.long) for n in lengths]),
            "response_mask": nested([torch.ones(int(n), dtype=torch.long) for n in lengths]),
            "old_log_probs": nested([log_mu[i, :n] for i, n in enumerate(lengths)]),
            "advantages": nested([ADVANTAGE[i].expand(int(n)) for i, n in enumerate(lengths)]),
        },
        batch_size=ROWS,
    )
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=None, global_batch_size=None)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    output = {"log_probs": torch.nested.nested_tensor_from_jagged(packed, offsets)}
    loss, metrics = ppo_loss(actor, output, data)
    value, gradient, expected = call("topr", log_pi, log_mu)
    assert loss.item() == pytest.approx(value)
    (found,) = torch.autograd.grad(loss, packed)
    for i, n in enumerate(lengths.tolist()):
        start = int(offsets[i])
        torch.testing.assert_close(found[start + 1 : start + 1 + n], gradient[rows][i, :n])
    for name, number in expected.items():
        assert metrics[name].aggregate() == pytest.approx(number)


def test_the_advantage_is_the_reward_minus_the_baseline(config):
    rewards = torch.zeros(3, 4)
    rewards[0, 2], rewards[2, 0] = 1.0, 1.0  # on the last token, as verl gives them
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    advantages, returns = get_adv_estimator_fn("topr")(
        token_level_rewards=rewards, response_mask=mask, config=config.algorithm, index=None
    )
    assert advantages.tolist() == [[0.5, 0.5, 0.5, 0], [-0.5, -0.5, 0, 0], [0.5, 0, 0, 0]]
    assert returns.sum(dim=-1).tolist() == [3.0, 0.0, 1.0]
    bare = OmegaConf.create({"gamma": 1.0})  # no baseline is a baseline of 0
    advantages, _ = get_adv_estimator_fn("topr")(rewards, mask, config=bare)
    assert advantages[1].tolist() == [0, 0, 0, 0]


def test_what_would_count_the_ratio_twice_is_refused():
    log_pi, log_mu = made_logprobs()
    loss = get_policy_loss_fn("topr")
    with pytest.raises(ConfigError, match="rollout_is=null"):
        loss(
            log_mu, log_pi, ADVANTAGE[:, None] * MASK, MASK, "token-mean", settings(),
            rollout_is_weights=torch.ones(6, T),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="ActorConfig"):
        loss(log_mu, log_pi, ADVANTAGE[:, None] * MASK, MASK, "token-mean")


def test_one_advantage_for_each_token_is_refused():
    log_pi, log_mu = made_logprobs()
    by_token = torch.arange(6 * T).reshape(6, T).float()
    with pytest.raises(DataError, match="adv_estimator=topr"):
        get_policy_loss_fn("topr")(log_mu, log_pi, by_token, MASK, "token-mean", settings())


def test_limits_of_ones_own():
    half = Taper(negative=(0.0, 0.5))
    register("half", half)
    try:
        log_pi, _ = made_logprobs()
        _, gradient, _ = call("half", log_pi, log_pi, "token-sum")
        assert gradient[1, 0].item() == pytest.approx(1.3 * 0.5)
    finally:
        del POLICY_LOSS_REGISTRY["half"]


def test_an_objective_of_groups_is_refused():
    with pytest.raises(ConfigError, match="others of its prompt"):
        register("grpo", OBJECTIVES["grpo"])
    assert "grpo" not in POLICY_LOSS_REGISTRY


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"VERL_USE_EXTERNAL_PLUGINS": "topr"}, id="entry point"),
        pytest.param(
            {
                "VERL_USE_EXTERNAL_PLUGINS": "none",
                "VERL_USE_EXTERNAL_MODULES": "topr.integrations.verl",
            },
            id="environment variable",
        ),
    ],
)
def test_a_worker_knows_the_loss_by_importing_verl(how):
    code = "import verl; from verl.trainer.ppo import core_algos as c; c.get_policy_loss_fn('topr')"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | how, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_another_normalisation_than_the_papers_is_said_once(caplog):
    log_pi, log_mu = made_logprobs()
    register("said", Taper())
    try:
        for mode in ("token-mean", "seq-mean-token-mean", "token-mean"):
            call("said", log_pi, log_mu, mode)
    finally:
        del POLICY_LOSS_REGISTRY["said"]
    (said,) = [r.message for r in caplog.records if "loss_mode=said" in r.message]
    assert "is loss_agg_mode=seq-mean-token-mean" in said


def test_verls_data_set_reads_an_export(tmp_path):
    rollouts = [
        tiny_rollout(
            problem_id=f"p{p}", sample=sample, prompt=f"{p}=", completion=f" {p}", gold=f"{p}",
            question=f"What is {p}?", grade=tiny_grade(1.0),
        )
        for p in range(3) for sample in range(2)
    ]  # fmt: skip
    path = tmp_path / "verl.parquet"
    exported = export_rollouts(rollouts_to_table(rollouts), "verl", data_source="openai/gsm8k")
    write_rows(path, exported.table)
    config = OmegaConf.create({"max_prompt_length": 100, "cache_dir": str(tmp_path / "cache")})
    rows = RLHFDataset(str(path), tiny_tokenizer(chat_template=True), config)
    assert len(rows) == 3  # a problem is a row, and no prompt is too long
    assert rows[1]["raw_prompt"] == [{"role": "user", "content": "What is 1?"}]
    assert rows[1]["data_source"] == "openai/gsm8k"
    assert rows[1]["reward_model"]["ground_truth"] == "1"
