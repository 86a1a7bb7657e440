"""The objectives: the method page's facts with their derivations, reductions, and hand numbers."""

import dataclasses
import math

import pytest
import torch

from objectives.scored import batch_of, weigh
from topr.errors import ConfigError
from topr.objectives import (
    OBJECTIVES,
    BaselineRole,
    Taper,
    baseline_for_share,
    effective_positive_share,
    log_rho,
    make_objective,
    resolve_baseline,
    sequence_scale,
    share_advice,
)

LENGTHS = torch.tensor([3, 1, 4, 2])
MASK = torch.arange(4) < LENGTHS[:, None]
GROUP = torch.tensor([0, 0, 1, 1])
ADVANTAGE = torch.tensor([1.0, -1.0, 1.0, -1.0])


def random_log_ratio(scale: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.where(MASK, scale * torch.randn(4, 4, generator=generator), 0.0)


def weights(name, log_ratio, advantage=ADVANTAGE, mask=MASK, group=GROUP):
    return weigh(name, log_ratio, advantage, mask, group)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_weights_are_float32_masked_and_carry_no_gradient(name):
    log_ratio = random_log_ratio().requires_grad_()
    weight = weights(name, log_ratio)
    assert weight.dtype == torch.float32
    assert weight.shape == MASK.shape
    assert not weight.requires_grad
    assert (weight[~MASK] == 0).all()


@pytest.mark.parametrize("name", ["topr", "tis", "is", "roll_topr", "verl_topr", "ppo"])
def test_on_policy_the_weight_is_the_advantage(name):
    # rho = exp(0) = 1 lies within every limit, so A [rho] = A: REINFORCE (fact 1).
    on_policy = torch.zeros(4, 4)
    torch.testing.assert_close(weights(name, on_policy), weights("reinforce", on_policy))


def test_without_negatives_topr_is_supervised_fine_tuning():
    # [rho]_1^1 = 1 whatever rho, and the loss is -log pi (fact 2).
    all_positive = torch.ones(4)
    log_ratio = random_log_ratio(5.0)
    expected = MASK.float()
    torch.testing.assert_close(weights("topr", log_ratio, all_positive), expected)
    torch.testing.assert_close(weights("sft", log_ratio, all_positive), expected)


@pytest.mark.parametrize("distance", [0.0, 0.1, 1.0, 10.0])
def test_a_negative_fades_as_the_policy_leaves_it(distance):
    # log rho = -L spread evenly over T tokens: [exp(-L)]_0^1 = exp(-L) on each (fact 3).
    log_ratio = torch.where(MASK, -distance / LENGTHS[:, None], 0.0)
    weight = weights("topr", log_ratio)
    for row in (1, 3):
        assert weight[row][MASK[row]].tolist() == pytest.approx(
            [-math.exp(-distance)] * int(LENGTHS[row]), rel=1e-6
        )
    for row in (0, 2):
        assert weight[row][MASK[row]].tolist() == [1.0] * int(LENGTHS[row])


def test_extreme_log_ratios_are_harmless():
    # exp(-2000) underflows to 0; [exp(2000)]_0^1 = 1 (fact 5). No NaN, no infinity anywhere.
    for value, expected in ((-2000.0, 0.0), (2000.0, -1.0)):
        log_ratio = torch.where(MASK, value / LENGTHS[:, None], 0.0)
        weight = weights("topr", log_ratio)
        assert weight[1, 0].item() == expected
        assert weight[3, :2].tolist() == [expected, expected]
    for name in OBJECTIVES:
        for value in (-2000.0, 2000.0):
            weight = weights(name, torch.where(MASK, value, 0.0))
            assert torch.isfinite(weight).all(), name
            # Gradient clipping sums squares in float32.
            assert torch.isfinite(weight.square().sum()), name


def test_no_gradient_flows_through_the_weight():
    # d/d theta of -sum sg(w) log pi = -sum w d log pi / d theta. Finite differences of the loss
    # with frozen weights must agree with autograd of the loss as it is (fact 4).
    generator = torch.Generator().manual_seed(0)
    behavior = torch.randn(4, 4, generator=generator).double()
    theta = torch.randn(4, 4, generator=generator).double().requires_grad_()

    def log_pi(parameters):
        return torch.nn.functional.logsigmoid(parameters)

    weight = weights("topr", log_pi(theta) - behavior).double()
    loss = -(weights("topr", log_pi(theta) - behavior).double() * log_pi(theta)).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    step = 1e-6
    for index in [(0, 0), (1, 0), (2, 3), (3, 1)]:
        shift = torch.zeros_like(theta)
        shift[index] = step
        high = -(weight * log_pi(theta.detach() + shift)).sum()
        low = -(weight * log_pi(theta.detach() - shift)).sum()
        assert gradient[index].item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-5)


def test_padding_and_order_do_not_change_weights():
    log_ratio = random_log_ratio()
    for name in OBJECTIVES:
        plain = weights(name, log_ratio)
        wide = torch.nn.functional.pad(log_ratio, (0, 3), value=123.0)
        wide_mask = torch.nn.functional.pad(MASK, (0, 3), value=False)
        padded = weights(name, wide, mask=wide_mask)
        torch.testing.assert_close(padded[:, :4], plain)
        order = torch.tensor([2, 0, 3, 1])
        moved = weights(name, log_ratio[order], ADVANTAGE[order], MASK[order], GROUP[order])
        torch.testing.assert_close(moved, plain[order])


def test_levels_of_the_ratio():
    log_ratio = torch.tensor([[0.1, -0.3, 0.8, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    expected = {
        "sequence": [0.6, 0.6, 0.6, 0.0],
        "token": [0.1, -0.3, 0.8, 0.0],
        "geometric": [0.2, 0.2, 0.2, 0.0],
    }
    for level, values in expected.items():
        assert log_rho(log_ratio, mask, level)[0].tolist() == pytest.approx(values)


def test_a_length_normalised_ratio_never_closes_on_long_completions():
    # The reason for the sequence level: 500 tokens, each 1 % less likely. The sequence is
    # exp(-5) = 0.0067 as likely and fades; its geometric mean is exp(-0.01) = 0.99.
    log_ratio = torch.full((1, 500), -0.01)
    assert weigh("topr", log_ratio, [-1.0])[0, 0].item() == pytest.approx(-math.exp(-5))
    mean_ratio = weigh("verl_topr", log_ratio, [-1.0])[0, 0].item()
    assert mean_ratio == pytest.approx(-0.99, abs=1e-3)


def test_the_family_by_its_limits():
    # One token, ratios 0.5 and 3, both signs of A.
    log_ratio = torch.tensor([[0.5], [3.0], [0.5], [3.0]]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    mask = torch.ones(4, 1, dtype=bool)
    expected = {
        "sft": [1, 1, 0, 0],
        "reinforce": [1, 1, -1, -1],
        "is": [0.5, 3, -0.5, -3],
        "tis": [0.5, 1, -0.5, -1],
        "topr": [1, 1, -0.5, -1],
        # PPO with clip 0.2: min(rho A, clip(rho) A) is flat above 1.2 for A > 0, below 0.8 else.
        "ppo": [0.5, 0, 0, -3],
    }
    for name, values in expected.items():
        weight = weights(name, log_ratio, advantage, mask, torch.arange(4))
        assert weight.squeeze(1).tolist() == pytest.approx(values), name


def test_ppo_weight_is_the_gradient_of_the_clipped_surrogate():
    generator = torch.Generator().manual_seed(1)
    log_ratio = (0.5 * torch.randn(4, 4, generator=generator)).requires_grad_()
    rho = log_ratio.exp()
    advantage = ADVANTAGE[:, None]
    surrogate = torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage)
    (gradient,) = torch.autograd.grad((surrogate * MASK).sum(), log_ratio)
    torch.testing.assert_close(weights("ppo", log_ratio.detach()), gradient)


def test_gspo_weight_is_the_gradient_of_its_surrogate():
    # s = exp(mean log rho); d s / d log pi_t = s / |y|. The 1/|y| is the loss normalisation.
    log_ratio = (1e-4 * random_log_ratio()).requires_grad_()
    scale = sequence_scale(MASK, "length")
    s = ((log_ratio * MASK).sum(-1) * scale).exp()
    deviation = 1.0  # of {+1, -1}
    normalized = ADVANTAGE / (deviation + 1e-4)
    surrogate = torch.minimum(s * normalized, s.clamp(1 - 3e-4, 1 + 4e-4) * normalized)
    (gradient,) = torch.autograd.grad(surrogate.sum(), log_ratio)
    torch.testing.assert_close(weights("gspo", log_ratio.detach()) * scale[:, None], gradient)


def test_grpo_advantages_by_hand():
    # Group of three with rewards 1, 1, -1: mean 1/3, population deviation sqrt(8/9) = 0.9428.
    advantage = torch.tensor([1.0, 1.0, -1.0])
    mask = torch.ones(3, 1, dtype=bool)
    for baseline in (0.0, 0.4):  # a baseline cancels out
        weight = weigh(
            "grpo", torch.zeros(3, 1), advantage - baseline, mask, torch.tensor([7, 7, 7])
        )
        assert weight.squeeze(1).tolist() == pytest.approx([0.7071, 0.7071, -1.4142], rel=1e-3)


def test_cispo_keeps_every_tokens_gradient():
    log_ratio = torch.tensor([[0.5, 1.1, 3.0]]).log().repeat(2, 1)
    mask = torch.ones(2, 3, dtype=bool)
    weight = weigh("cispo", log_ratio, torch.tensor([1.0, -1.0]), mask, torch.tensor([0, 0]))
    assert weight[0].tolist() == pytest.approx([0.5, 1.1, 1.2], rel=1e-3)
    assert weight[1].tolist() == pytest.approx([-0.5, -1.1, -1.2], rel=1e-3)


def test_asymre_moves_the_baseline_below_the_mean():
    # Rewards 1, -1: mean 0; V = 0 - 0.1; A = 1.1 and -0.9.
    weight = weights("asymre", random_log_ratio())
    assert weight[:, 0].tolist() == pytest.approx([1.1, -0.9, 1.1, -0.9])


def test_dpo_weight_is_the_gradient_of_its_loss():
    # One pair per group: loss = -log sigma(beta (log rho_w - log rho_l)).
    log_ratio = random_log_ratio().requires_grad_()
    rho = (log_ratio * MASK).sum(-1)
    loss = -torch.nn.functional.logsigmoid(0.1 * (rho[0::2] - rho[1::2])).sum()
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    torch.testing.assert_close(weights("dpo", log_ratio.detach()), -gradient * MASK)


def test_dpo_averages_the_pairs_of_a_group():
    # Two right, one wrong, on policy: 2 pairs, sigma(0) = 1/2, 3 completions:
    # wrong: -beta (1/2 + 1/2) * 3 / (2 * 2); each right one half of that.
    mask = torch.ones(3, 1, dtype=bool)
    weight = weigh(
        "dpo",
        torch.zeros(3, 1),
        torch.tensor([1.0, 1.0, -1.0]),
        mask,
        torch.zeros(3, dtype=torch.long),
    )
    assert weight.squeeze(1).tolist() == pytest.approx([0.0375, 0.0375, -0.075])


def test_a_group_without_pairs_pulls_nothing_under_dpo():
    weight = weights("dpo", random_log_ratio(), torch.ones(4))
    assert (weight == 0).all()


def test_apo_weight_is_the_gradient_of_its_loss():
    log_ratio = (5 * random_log_ratio()).requires_grad_()
    likes = torch.sigmoid(0.1 * (log_ratio * MASK).sum(-1))
    (gradient,) = torch.autograd.grad((-ADVANTAGE * likes).sum(), log_ratio)
    torch.testing.assert_close(weights("apo", log_ratio.detach()), -gradient * MASK)


def test_mirror_descent_weight_is_the_gradient_of_its_surrogate():
    # Rewards 1, -1 in each group: mean 0.
    log_ratio = random_log_ratio().requires_grad_()
    rho = (log_ratio * MASK).sum(-1)
    surrogate = (ADVANTAGE * rho - 0.1 / 2 * rho.square()).sum()
    (gradient,) = torch.autograd.grad(surrogate, log_ratio)
    torch.testing.assert_close(weights("opmd", log_ratio.detach()), gradient * MASK)


def test_a_completion_where_mirror_descent_wants_it_is_left_alone():
    # tau = 0.1, R - mean = -1: log rho = -10.
    log_ratio = torch.tensor([[10.0], [-10.0]])
    mask = torch.ones(2, 1, dtype=bool)
    weight = weigh(
        "opmd", log_ratio, torch.tensor([1.0, -1.0]), mask, torch.zeros(2, dtype=torch.long)
    )
    assert weight.squeeze(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_look_ahead_is_an_extrapolated_policy_without_its_normaliser():
    # Two tokens of a vocabulary; pi^ = softmax((1 + lambda) log pi - lambda log mu).
    pi, mu, lambda_ = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5]), 1.0
    extrapolated = ((1 + lambda_) * pi.log() - lambda_ * mu.log()).softmax(-1)
    log_ratio = (pi / mu).log()[:1, None].repeat(2, 1)
    mask = torch.ones(2, 1, dtype=bool)
    weight = weigh("steep_topr", log_ratio, torch.tensor([1.0, -1.0]), mask, torch.arange(2))
    assert weight.squeeze(1).tolist() == pytest.approx([1.0, -(0.4**2)])
    # With its normaliser it would be less: ours is an upper bound.
    assert (extrapolated / mu)[0].item() < 0.4**2
    assert make_objective("steep_topr", lookahead=0.0) == make_objective("topr")
    with pytest.raises(ConfigError, match="lookahead=-1"):
        make_objective("topr", lookahead=-1)


def test_normalisations():
    assert sequence_scale(MASK, "length").tolist() == pytest.approx([1 / 3, 1, 1 / 4, 1 / 2])
    assert sequence_scale(MASK, "none").tolist() == [1.0] * 4
    assert sequence_scale(MASK, "constant", 512.0).tolist() == [1 / 512] * 4


def test_own_limits_and_arguments():
    assert make_objective("taper", positive=(0.0, 2.0)).positive == (0.0, 2.0)
    assert make_objective("dpo", beta=0.5).beta == 0.5
    with pytest.raises(ConfigError, match="Did you mean 'topr'"):
        make_objective("top")
    with pytest.raises(ConfigError, match="has no clip; it has group_normalized, high"):
        make_objective("ppo", clip=0.1)
    with pytest.raises(ConfigError, match=r"level: .*'sequence', 'token' or 'geometric'"):
        make_objective("topr", level="tokne")
    with pytest.raises(ConfigError, match="low: Input should be a valid number"):
        make_objective("ppo", low="small")
    with pytest.raises(ConfigError, match="expected 0 <= lower <= upper"):
        Taper(negative=(1.0, 0.0))


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("c", [-0.9, -0.3, 0.0, 0.5])
def test_baseline_and_effective_share_are_inverse(p, c):
    share = effective_positive_share(p, c)
    assert baseline_for_share(p, share) == pytest.approx(c, abs=1e-12)
    # The formula of the method page, and the meaning: positives weigh p (1 - c) of the total pull.
    assert share == pytest.approx(p * (1 - c) / (1 + c * (1 - 2 * p)))
    assert share == pytest.approx(p * (1 - c) / (p * (1 - c) + (1 - p) * (1 + c)))


def test_ends_of_the_baseline():
    assert effective_positive_share(0.25, -1.0) == 1.0
    assert effective_positive_share(0.25, 1.0) == 0.0
    # From 25 % positives, an effective share of 10 %: c = 0.15 / (0.35 - 0.05) = 0.5.
    assert resolve_baseline(0.25, None, 0.1) == pytest.approx((0.5, 0.1))
    assert resolve_baseline(0.25, None, None) == (0.0, 0.25)
    with pytest.raises(ConfigError, match="no negatives"):
        baseline_for_share(1.0, 0.5)
    with pytest.raises(ConfigError, match="from -1 to 1"):
        effective_positive_share(0.5, 1.5)


def test_an_effective_share_far_out_is_warned_of_with_what_the_paper_and_this_repository_found():
    assert share_advice(0.2, 0.0, 0.2) is None
    assert share_advice(0.2, -0.6, 0.5) is None
    high = share_advice(0.2, -0.95, effective_positive_share(0.2, -0.95))
    assert "p~ is 90.7%" in high
    assert "best at 10 to 20 %" in high
    assert "about 40 %" in high
    assert "p~ is 1.0%" in share_advice(0.01, 0.0, 0.01)
    # Positives alone, or negatives alone: another method, warned of elsewhere.
    assert share_advice(1.0, 0.0, 1.0) is None
    assert share_advice(0.2, -1.0, 1.0) is None
    assert share_advice(0.0, 0.0, 0.0) is None


def probes():
    """Batches on which some setting shows: rewards, log-ratios from tiny to huge, whole groups."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, 5, (64,), generator=generator)
    mask = torch.arange(4) < lengths[:, None]
    group = torch.arange(64) // 4
    for scale in (1e-4, 0.02, 0.3, 3.0, 20.0):
        ratio = scale * torch.randn(64, 4, generator=generator)
        for rewards in ((1.0, -1.0), (1.0, 0.25)):
            chosen = torch.randint(0, 2, (64,), generator=generator)
            log_mu = -2 * torch.rand(64, 4, generator=generator)
            reward = torch.tensor(rewards)[chosen]
            yield torch.where(mask, ratio, 0.0), reward, mask, group, log_mu


def pull(objective, baseline=0.0):
    """All weights on the probes, as one vector."""
    found = [
        objective.weights(batch_of(ratio, reward - baseline, mask, group, log_mu)).flatten()
        for ratio, reward, mask, group, log_mu in probes()
    ]
    return torch.cat(found)


OTHER_VALUES = {
    "positive": [(0.5, 1.5)], "negative": [(0.25, 0.5)], "level": ["geometric", "token"],
    "lookahead": [0.7], "low": [0.11], "high": [0.33], "group_normalized": [True, False],
    "delta": [0.2], "tau": [0.4], "beta": [0.7], "beta1": [0.3], "beta2": [0.7],
    "low_positive": [0.5], "high_positive": [0.1], "low_negative": [0.3], "high_negative": [0.1],
    "divergence": ["kl"], "threshold": [0.01], "truncate": [1.5], "bound": [0.3],
    "k_positive": [1.0], "k_negative": [1.0], "lambda_positive": [1.0], "lambda_negative": [1.0],
    "tau_positive": [2.0], "tau_negative": [2.0], "least": [0.5],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_field_of_an_objective_changes_weights_or_is_refused(name):
    objective = OBJECTIVES[name]
    for field in {each.name for each in dataclasses.fields(objective)} - {"normalization"}:
        value = next(v for v in OTHER_VALUES[field] if v != getattr(objective, field))
        if field in objective.uses.idle:
            with pytest.raises(ConfigError, match=f"{field}=.* does nothing"):
                make_objective(name, **{field: value})
            continue
        changed = make_objective(name, **{field: value})
        assert not torch.allclose(pull(changed), pull(objective)), field


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_what_an_objective_says_that_it_uses_is_what_it_uses(name):
    objective = OBJECTIVES[name]
    ratio, reward, mask, group, log_mu = next(iter(probes()))
    signed = torch.where(reward > 0, 1.0, -1.0)

    def weights(log_ratio=ratio, advantage=signed):
        return objective.weights(batch_of(log_ratio, advantage, mask, group, log_mu))

    far = torch.where(mask, -2.0, 0.0)
    depends = not torch.allclose(weights(log_ratio=far), weights(log_ratio=0 * far))
    assert objective.uses.ratio == depends
    role = objective.uses.baseline
    moved, across = weights(advantage=signed - 0.4), weights(advantage=signed + 1.0)
    unmoved = torch.allclose(moved, weights(), rtol=1e-3)
    assert (role is BaselineRole.SUBTRACTED) == (not unmoved)
    # c = -1 makes right completions of all: a threshold passes it, a group's mean does not care.
    assert (role is BaselineRole.CANCELS) == torch.allclose(across, weights(), rtol=1e-3)
    if role is BaselineRole.THRESHOLD:
        assert not across.any()
    negatives = weights(log_ratio=0 * far)[signed < 0]
    assert objective.uses.negatives == bool(negatives.any())


def test_a_taper_says_what_its_limits_leave_of_a_negative():
    assert OBJECTIVES["reinforce"].uses.taper == (1.0, 1.0)
    assert OBJECTIVES["topr"].uses.taper == (0.0, 1.0)
    assert OBJECTIVES["sft"].uses.negatives is False
    assert OBJECTIVES["ppo"].uses.taper is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dpo", {"beta": -0.1}),  # would prefer the wrong completions
        ("apo", {"beta": 0.0}),  # would have no gradient
        ("ppo", {"low": -0.2}),
        ("opmd", {"tau": -1.0}),
        ("asymre", {"delta": float("nan")}),
        ("taper", {"positive": (math.inf, math.inf)}),
        ("topr", {"lookahead": math.inf}),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        make_objective(name, **arguments)
