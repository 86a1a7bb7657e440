"""Regressions, masks and soft gates: each weight against the gradient of its published loss, hand
numbers, and cases that reduce to known ones.
"""

import math

import numpy as np
import pytest
import torch

from objectives.scored import batch_of, weigh
from topr.objectives import OBJECTIVES, ScoredBatch, Whole, make_objective
from topr.training.diagnostics import warn_of_rewards

LENGTHS = torch.tensor([3, 1, 4, 2, 2, 4])
MASK = torch.arange(4) < LENGTHS[:, None]
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
REWARD = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
# Of each group, by hand: means -1/3 and 1/3, population deviation sqrt(8)/3.
CENTRED = REWARD - torch.tensor([-1 / 3] * 3 + [1 / 3] * 3)
NORMALIZED = CENTRED / (math.sqrt(8) / 3 + 1e-4)


def made(scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """log mu and log pi, the latter with a gradient; not to be looked at where the mask is off."""
    generator = torch.Generator().manual_seed(5)
    log_mu = -2 * torch.rand(6, 4, generator=generator)
    log_pi = (log_mu + scale * torch.randn(6, 4, generator=generator)).clamp(max=-1e-3)
    return torch.where(MASK, log_mu, torch.nan), log_pi.requires_grad_()


def weights_of(name, log_mu, log_pi, **arguments):
    ratio = log_pi.detach() - log_mu
    return make_objective(name, **arguments).weights(
        batch_of(ratio, REWARD, MASK, GROUP, log_mu=log_mu)
    )


def ascent(gain: torch.Tensor, log_pi: torch.Tensor) -> torch.Tensor:
    """The gradient of a gain with respect to log pi: what the weights have to be."""
    (gradient,) = torch.autograd.grad(gain, log_pi)
    return torch.where(MASK, gradient, 0.0)


def ratio_of(log_mu, log_pi):
    return torch.where(MASK, log_pi - log_mu.nan_to_num(), 0.0)


@pytest.mark.parametrize(
    "name", [n for n, each in OBJECTIVES.items() if each.needs_group != "ratios"]
)
def test_a_part_weighs_as_in_its_whole_batch(name):
    # Prompts are cut across the parts: rewards of the whole are enough.
    log_mu, log_pi = made()
    whole = weights_of(name, log_mu, log_pi)
    for rows in (torch.tensor([0, 3]), torch.tensor([5, 1, 4, 2])):
        part = ScoredBatch(
            log_ratio=log_pi.detach()[rows] - log_mu[rows],
            advantage=REWARD[rows],
            mask=MASK[rows],
            group=GROUP[rows],
            behavior_logprobs=log_mu[rows],
            whole=Whole(advantage=REWARD, group=GROUP, rows=rows),
        )
        torch.testing.assert_close(OBJECTIVES[name].weights(part), whole[rows])


@pytest.mark.parametrize(
    ("name", "beta", "target"),
    [
        ("dro", 0.1, REWARD),
        ("opmd", 0.1, CENTRED),
        # beta1 = 1: V* = log mean exp R, by hand log((e + 2/e) / 3) and log((2e + 1/e) / 3).
        ("oapl", 0.1, REWARD - torch.tensor([0.1413] * 3 + [0.6603] * 3)),
        # A right completion is as good as all three, a wrong one as good as the wrong ones.
        # log Z = log(0.1 (e^10 - 1)) = 7.6974.
        ("qrpo", 0.1, torch.tensor([1, 2 / 3, 2 / 3, 1, 1, 1 / 3]) - 0.1 * 7.6974),
    ],
)
def test_a_regression_is_the_gradient_of_its_squared_error(name, beta, target):
    log_mu, log_pi = made()
    error = target - beta * ratio_of(log_mu, log_pi).sum(-1)
    expected = ascent(-error.square().sum() / (2 * beta), log_pi)
    torch.testing.assert_close(weights_of(name, log_mu, log_pi), expected, rtol=1e-3, atol=1e-4)


def test_the_optimal_value_lies_between_the_mean_and_the_best_reward():
    on_policy = torch.zeros(6, 4)
    for beta1, expected in ((1e3, CENTRED), (1e-3, REWARD - 1.0)):
        made_ = make_objective("oapl", beta1=beta1)
        weight = made_.weights(batch_of(on_policy, REWARD, MASK, GROUP))
        assert weight[:, 0].tolist() == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_group_far_below_the_best_reward_of_the_batch_has_its_own_value():
    reward = torch.tensor([0.0, -1.0, -1000.0, -1001.0])
    batch = batch_of(torch.zeros(4, 1), reward, group=torch.tensor([0, 0, 1, 1]))
    weight = make_objective("oapl", beta1=0.5).weights(batch)[:, 0]
    assert weight[2:].tolist() == pytest.approx(weight[:2].tolist())


def test_quantiles_of_numbers():
    # 0.1 <= itself only: 1/4; 0.9 and 0.9 tie: all four are not better.
    batch = batch_of(torch.zeros(4, 1), [0.1, 0.9, 0.5, 0.9])
    log_z = math.log(0.5 * (math.exp(1 / 0.5) - 1))
    weight = make_objective("qrpo", beta=0.5).weights(batch)[:, 0] + 0.5 * log_z
    assert weight.tolist() == pytest.approx([0.25, 1.0, 0.5, 1.0])


def test_token_regression_is_each_tokens_own():
    log_mu, log_pi = made()
    r = ratio_of(log_mu, log_pi)
    gain = (REWARD[:, None] * log_pi - 0.05 * r.square()) * MASK
    expected = ascent(gain.sum(), log_pi)
    torch.testing.assert_close(weights_of("dro", log_mu, log_pi, level="token"), expected)


def test_gmpo_is_the_gradient_of_its_geometric_mean():
    log_mu, log_pi = made()
    r, sign = ratio_of(log_mu, log_pi), REWARD.sign()[:, None]
    clipped = sign * torch.minimum(sign * r, sign * r.clamp(-0.4, 0.4))
    mean = (clipped * MASK).sum(-1) / LENGTHS
    expected = ascent((NORMALIZED * mean.exp()).sum(), log_pi)
    weight = weights_of("gmpo", log_mu, log_pi) / LENGTHS[:, None]  # the normalisation `length`
    torch.testing.assert_close(weight, expected)
    assert (weight == 0)[MASK].any()  # some clip is active, else this would say little


def test_sapo_is_the_gradient_of_its_soft_surrogate():
    log_mu, log_pi = made()
    tau = torch.where(REWARD > 0, 1.0, 1.05)[:, None]
    gate = torch.sigmoid(tau * (ratio_of(log_mu, log_pi).exp() - 1)) * 4 / tau
    expected = ascent((NORMALIZED[:, None] * gate * MASK).sum(), log_pi)
    torch.testing.assert_close(weights_of("sapo", log_mu, log_pi), expected)


def test_vespos_gate_is_one_on_policy_and_fades_on_both_sides():
    # Positives, rho^2 exp(3 (1 - rho)): exp(1.5) / 4 = 1.1204 at 1/2, 9 exp(-6) = 0.0223 at 3.
    # Negatives, rho^3 exp(2 (1 - rho)): exp(1) / 8 = 0.3398 and 27 exp(-4) = 0.4945.
    log_ratio = torch.tensor([[0.5], [1.0], [3.0]]).log().repeat(2, 1)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    plain = make_objective("vespo", group_normalized=False)
    weight = plain.weights(batch_of(log_ratio, advantage))[:, 0]
    expected = [1.1204, 1.0, 0.0223, -0.3398, -1.0, -0.4945]
    assert weight.tolist() == pytest.approx(expected, abs=1e-4)


def test_vespo_has_grpos_advantages():
    log_mu, _ = made()
    on_policy = torch.where(MASK, 0.0, torch.nan)
    weight = OBJECTIVES["vespo"].weights(batch_of(on_policy, REWARD, MASK, GROUP, log_mu=log_mu))
    torch.testing.assert_close(weight[:, 0], NORMALIZED)


def test_dispo_with_cispos_limits_is_cispo():
    log_mu, log_pi = made()
    same = {"low_positive": 1.0, "high_positive": 0.2, "low_negative": 1.0, "high_negative": 0.2}
    expected = weights_of("cispo", log_mu, log_pi)
    torch.testing.assert_close(weights_of("dispo", log_mu, log_pi, **same), expected)


def test_dispo_clips_right_and_wrong_completions_by_themselves():
    log_ratio = torch.tensor([[0.1, 1.1, 9.0]]).log().repeat(2, 1)
    weight = weigh("dispo", log_ratio, [1.0, -1.0])
    assert weight[0].tolist() == pytest.approx([0.8, 1.1, 1.28], rel=1e-3)
    assert weight[1].tolist() == pytest.approx([-0.1, -1.1, -3.0], rel=1e-3)


@pytest.mark.parametrize(
    ("mu", "pi", "kept"),
    [
        # A > 0. Five times as probable, and still rare: kept, where PPO's clip would drop it.
        (0.01, 0.05, (True, True)),
        # 1.4 times as probable, by 0.2 of all probability: PPO's next of kin, dropped.
        (0.5, 0.7, (False, True)),
        # Away from what is wanted is no reason to drop it.
        (0.7, 0.5, (True, False)),
    ],
)
def test_dppo_drops_tokens_that_leave_by_too_much_probability(mu, pi, kept):
    log_ratio, log_mu = torch.tensor([[pi / mu]] * 2).log(), torch.tensor([[mu]] * 2).log()
    weight = OBJECTIVES["dppo"].weights(batch_of(log_ratio, [1.0, -1.0], log_mu=log_mu))
    assert (weight[:, 0] != 0).tolist() == list(kept)
    for row, sign in enumerate((1.0, -1.0)):
        if kept[row]:
            assert weight[row, 0].item() == pytest.approx(sign * pi / mu, rel=1e-3)


def test_dppos_kl_is_that_of_two_events():
    mu, pi = 0.5, 0.7  # 0.5 log(0.5 / 0.7) + 0.5 log(0.5 / 0.3) = 0.0872
    log_ratio, log_mu = torch.tensor([[pi / mu]] * 2).log(), torch.tensor([[mu]] * 2).log()
    batch = batch_of(log_ratio, [1.0, -1.0], log_mu=log_mu)
    for threshold, kept in ((0.087, False), (0.088, True)):
        objective = make_objective("dppo", divergence="kl", threshold=threshold)
        assert bool(objective.weights(batch)[0, 0]) == kept


def test_m2po_leaves_out_the_largest_squares_until_their_mean_is_below_the_bound():
    # Squares 0.01, 0.01, 0.04, 0.25: means so far 0.01, 0.01, 0.02, 0.0775. Bound 0.04.
    log_ratio = torch.tensor([[0.1, -0.2], [-0.1, 0.5]])
    weight = weigh("m2po", log_ratio, [1.0, -1.0])
    ratio = log_ratio.exp()
    expected = [[ratio[0, 0], ratio[0, 1]], [-ratio[1, 0], 0.0]]
    torch.testing.assert_close(weight, torch.tensor(expected), rtol=1e-3, atol=0)
    tight = make_objective("m2po", bound=1e-3).weights(batch_of(log_ratio, [1.0, -1.0]))
    assert not tight.any()


def test_m2po_bounds_what_it_keeps():
    log_mu, log_pi = made(scale=1.0)
    weight = weights_of("m2po", log_mu, log_pi)
    kept = (log_pi.detach() - log_mu)[MASK & (weight != 0)]
    assert 0 < len(kept) < MASK.sum()
    assert kept.square().mean() < 0.04


def test_nft_is_the_gradient_of_its_two_likelihoods():
    # Share right 1/3 and 2/3; wrong completions through (1 - r rho) / (1 - r), kept at 1 at least
    # with the gradient of what is below, so its value enters and its slope does not vanish.
    log_mu, log_pi = made()
    rho = ratio_of(log_mu, log_pi).exp()
    share = torch.tensor([1 / 3] * 3 + [2 / 3] * 3)[:, None]
    implicit = (1 - share * rho) / (1 - share)
    held = implicit + (implicit.clamp(min=1.0) - implicit).detach()
    gain = (1 - share) * torch.where(REWARD[:, None] > 0, rho.log(), held.log())
    expected = ascent((gain * MASK).sum(), log_pi)
    torch.testing.assert_close(weights_of("nft", log_mu, log_pi), expected)


def test_nft_on_policy_is_reinforce_with_the_mean_reward_as_baseline():
    # Right 1 - r, wrong -r: (R - mean R) / 2 for rewards of 1 and -1.
    weight = weigh("nft", torch.zeros(6, 4), REWARD, MASK, GROUP)
    torch.testing.assert_close(weight[:, 0], CENTRED / 2)


def test_a_prompt_with_one_kind_of_completion_trains_nothing_under_nft():
    assert not weigh("nft", torch.zeros(2, 1), [1.0, 1.0]).any()
    assert not weigh("nft", torch.zeros(2, 1), [-1.0, -1.0]).any()


def test_w_reinforce_holds_positives_back():
    assert weigh("w_reinforce", torch.ones(2, 1), [1.0, -1.0])[:, 0].tolist() == pytest.approx(
        [0.1, -1.0]
    )


def test_a_prompt_with_equal_rewards_trains_nothing_under_qrpo():
    assert not weigh("qrpo", torch.zeros(4, 1), [-1.0, -1.0, 1.0, 1.0], group=GROUP_OF_PAIRS).any()
    assert not weigh("qrpo", torch.zeros(1, 1), [-1.0]).any()


GROUP_OF_PAIRS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("name", "rewards", "warned"),
    [
        ("qrpo", [1.0, -1.0, 1.0], True),
        ("qrpo", [0.1, 0.5, 0.9], False),
        ("topr", [1.0, -1.0], False),
    ],
)
def test_ranking_two_values_is_warned_of(name, rewards, warned, caplog):
    warn_of_rewards(OBJECTIVES[name], np.array(rewards), 0.0)
    assert ("two values" in caplog.text) == warned
