"""Objectives as policy losses of verl, and an advantage that is the reward minus a baseline.

Importing this module registers them: `topr` and `topr.NAME` as `policy_loss.loss_mode`, `topr` as
`algorithm.adv_estimator`. verl imports it by itself where topr is installed (entry point
`verl.plugins`). No mathematics, no trainer; of topr it needs `topr.objectives` alone.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

from topr.errors import ConfigError, DataError
from topr.objectives import (
    NEGLIGIBLE,
    OBJECTIVES,
    Normalization,
    Objective,
    ScoredBatch,
    largest_weight,
    taper_of,
)

logger = logging.getLogger(__name__)

AGGREGATIONS: dict[Normalization, str] = {
    "length": "seq-mean-token-mean",
    "none": "seq-mean-token-sum",
    "constant": "seq-mean-token-sum-norm",
}
"""verl's `loss_agg_mode` for each loss normalisation."""

PolicyLoss = Callable[..., tuple[Tensor, dict[str, float]]]


def register(name: str, objective: Objective) -> None:
    """Make an objective available as verl's `policy_loss.loss_mode=name`.

    Raises:
        ConfigError: the objective compares a prompt's completions, which verl's loss is not told.

    """
    if objective.needs_group:
        raise ConfigError(
            f"{objective} weighs a completion by the others of its prompt, and verl does not tell "
            "a policy loss which those are; take one that needs no group, such as a Taper"
        )
    register_policy_loss(name)(policy_loss(name, objective))


def policy_loss(name: str, objective: Objective) -> PolicyLoss:
    """Return a policy loss with verl's signature; `name` is for messages."""

    def compute(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "seq-mean-token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Return -sum w log pi, aggregated by verl, and metrics of the micro-batch.

        All tensors are [B, T]. `old_log_prob` is log mu: what verl must be told for that is on
        the page on integrations of the documentation.

        Raises:
            ConfigError: verl corrects for the rollout engine as well, or the settings of the
                actor are missing.
            DataError: a completion has more than one advantage.

        """
        if rollout_is_weights is not None:
            raise ConfigError(
                f"loss_mode={name} got rollout_is_weights: pi/mu would be counted twice. Set "
                "algorithm.rollout_correction.rollout_is=null, and bypass_mode=true to take mu "
                "from the rollout engine"
            )
        if config is None:
            raise ConfigError(f"loss_mode={name} got no config; it needs verl's ActorConfig")
        _say_normalization(name, objective.normalization, loss_agg_mode)
        mask = response_mask.bool()
        log_ratio = torch.where(mask, log_prob.detach().float() - old_log_prob.float(), 0.0)
        advantage = _advantage_of_each(advantages, mask)
        alone = torch.arange(len(mask), device=mask.device)
        weights = objective.weights(
            ScoredBatch(
                log_ratio=log_ratio,
                advantage=advantage,
                mask=mask,
                group=alone,
                behavior_logprobs=old_log_prob.float(),
            )
        )
        loss: Tensor = agg_loss(
            loss_mat=torch.where(mask, -weights * log_prob, 0.0),
            loss_mask=response_mask,
            loss_agg_mode=loss_agg_mode,
            **config.global_batch_info,
        )
        return loss, _metrics(log_ratio, weights, advantage, mask)

    return compute


def reward_minus_baseline(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Return A = R - c on each token of a completion, and its return R.

    R is the sum of `token_level_rewards`, [B, T]; c is `algorithm.topr_baseline`, 0 where it is
    not set. Nothing is normalised or whitened: the objective needs A itself.
    """
    baseline = float(config.get("topr_baseline", 0.0)) if config is not None else 0.0
    reward = token_level_rewards.sum(dim=-1, keepdim=True)
    return (reward - baseline) * response_mask, reward * response_mask


def _advantage_of_each(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return the one advantage of each completion, [B]; 0 where it has no tokens."""
    any_token = mask.any(dim=-1)
    highest = torch.where(mask, advantages.float(), -torch.inf).amax(dim=-1)
    lowest = torch.where(mask, advantages.float(), torch.inf).amin(dim=-1)
    spread = torch.where(any_token, highest - lowest, 0.0)
    if (spread > 1e-5 * (1.0 + highest.abs())).any():
        raise DataError(
            f"the advantages of a completion's tokens differ by up to {spread.max().item():.3g}, "
            "expected one for the whole completion; set algorithm.adv_estimator=topr"
        )
    return torch.where(any_token, highest, 0.0)


def _metrics(
    log_ratio: Tensor, weights: Tensor, advantage: Tensor, mask: Tensor
) -> dict[str, float]:
    """Return numbers whose mean over micro-batches means something, as verl takes it."""
    rows = mask.any(dim=-1)
    count = rows.sum().clamp(min=1)
    negative = rows & (advantage < 0)
    taper = taper_of(largest_weight(weights), advantage)
    values = {
        "actor/ppo_kl": -log_ratio.sum() / mask.sum().clamp(min=1),
        "actor/topr/log_rho": log_ratio.sum() / count,
        "actor/topr/negatives": negative.sum() / count,
        "actor/topr/negatives_weight": torch.where(negative, taper, 0.0).sum() / count,
        "actor/topr/negatives_below_0.01": (negative & (taper < NEGLIGIBLE)).sum() / count,
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


@functools.cache
def _say_normalization(name: str, wanted: Normalization, found: str) -> None:
    if found != AGGREGATIONS[wanted]:
        logger.warning(
            "loss_mode=%s with loss_agg_mode=%s: its publication's loss normalisation is "
            "loss_agg_mode=%s", name, found, AGGREGATIONS[wanted],
        )  # fmt: skip


register("topr", OBJECTIVES["topr"])
for _name, _objective in OBJECTIVES.items():
    if not _objective.needs_group:
        register(f"topr.{_name}", _objective)
register_adv_est("topr")(reward_minus_baseline)
