"""Objectives inside TRL's online `GRPOTrainer`: it generates, rewards and steps; the loss is ours.

`TOPRGRPOTrainer` replaces two things: the advantage, which is the reward minus a baseline, and the
loss, whose weights are those of `topr.objectives`. No generation, no mathematics. For
training on stored completions there is `topr.training`.
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from topr.config import TrainSettings
from topr.config.mistakes import validate
from topr.errors import ConfigError
from topr.models.evaluation_mode import evaluate_when_run
from topr.objectives import (
    NEGLIGIBLE,
    BaselineRole,
    Normalization,
    Objective,
    ScoredBatch,
    make_objective,
    sequence_scale,
    taper_of,
)
from topr.records.distribution import distribution
from topr.training.arguments import setting
from topr.training.inherited import REFUSED

logger = logging.getLogger(__name__)

WITHOUT_EFFECT: dict[str, Any] = {
    "beta": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
}
"""Terms and masks of GRPO's loss that ours does not have, by the value that turns them off."""

SETTINGS = (
    "objective", "objective_args", "baseline", "loss_normalization", "normalization_constant",
    "behavior_logprobs",
)  # fmt: skip
"""What has the names, values and ranges of a recipe's section `train`."""
SAMPLED_WITH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

FORWARD = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
"""What TRL hands on to the forward pass of models that see images."""


@dataclass
class TOPRGRPOConfig(GRPOConfig):  # type: ignore[misc]
    """Arguments of `TOPRGRPOTrainer`: those of `trl.GRPOConfig`, and ours.

    GRPO's `loss_type`, `epsilon`, `importance_sampling_level` and `scale_rewards` are replaced by
    the objective.
    """

    objective: str = setting("objective")
    objective_args: Any = setting("objective_args")
    baseline: float | None = setting("baseline", default=0.0)
    loss_normalization: Literal["length", "none", "constant"] | None = setting("loss_normalization")
    normalization_constant: float = setting("normalization_constant")
    behavior_logprobs: Literal["sampler", "recompute"] = setting(
        "behavior_logprobs", default="recompute"
    )


class TOPRGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with an objective of topr as its loss. Its arguments are GRPOTrainer's.

    On a batch of N completions, with A_i = R_i - c and weights w without gradient,

        loss = -1/N sum_i s_i sum_t w_it log pi(y_it | x_i, y_i<t):  arXiv 2503.14286.

    Raises:
        ConfigError: a setting would have no effect, or would make the ratio wrong.

    """

    _tag_names: ClassVar[list[str]] = ["trl", "topr"]
    _name = "TOPR"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for "
        "LLMs",
        "id": "2503.14286",
        "citation": "",
    }

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: TOPRGRPOConfig | None = None, **kw: Any
    ) -> None:
        args = args if args is not None else TOPRGRPOConfig(output_dir="topr-output")
        settings = validate(
            TrainSettings,
            {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None},
            where="TOPRGRPOConfig",
        )
        for name in SETTINGS:
            setattr(args, name, getattr(settings, name))
        args.baseline = args.baseline or 0.0
        self.objective: Objective = make_objective(args.objective, **args.objective_args)
        validate_arguments(
            args, self.objective, recorded=args.use_vllm or bool(kw.get("rollout_func"))
        )
        self.normalization: Normalization = args.loss_normalization or self.objective.normalization
        super().__init__(model, reward_funcs, args, **kw)
        evaluate_when_run(self.model)  # It is trained as it samples.

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return TRL's rewards, [N, functions], and keep what they are worth together."""
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        unscored = rewards.isnan().all(dim=1)
        self._advantages_N = torch.where(unscored, 0.0, weighted - self.args.baseline)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with A = R - c, and the number of each completion's prompt."""
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        everywhere, here = self._advantages_N, len(inputs)
        numbers = torch.arange(len(everywhere), device=everywhere.device)
        each = self.num_generations if self.model.training else self.num_generations_eval
        start = self.accelerator.process_index * here
        batch["advantages"] = everywhere[start : start + here]
        batch["group"] = numbers[start : start + here] // each
        logged = self._logs["advantages"]  # its table of completions should show ours
        for _ in everywhere[: len(logged)]:
            logged.pop()
        logged.extend(everywhere.tolist())
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a micro-batch: the one place where weights become a gradient."""
        completion_mask = inputs["completion_mask"]
        logprobs, entropies, auxiliary = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in FORWARD},
        )
        mask = (completion_mask * inputs.get("tool_mask", 1)).bool()
        log_ratio = self._log_ratio(logprobs, mask, inputs)
        advantage = inputs["advantages"].float()
        weights = self.objective.weights(
            ScoredBatch(
                log_ratio=log_ratio,
                advantage=advantage,
                mask=mask,
                group=inputs["group"],
                behavior_logprobs=logprobs.detach().float() - log_ratio,
            )
        )
        constant = self.args.normalization_constant
        scale = sequence_scale(mask, self.normalization, constant)[:, None]
        loss = torch.where(mask, -weights * scale * logprobs, 0.0).sum() / len(mask)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * auxiliary
        self._note(log_ratio, weights, advantage, mask, entropies)
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        return loss / steps

    def _log_ratio(self, logprobs: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Return log pi - log mu of each token, [B, T] float32.

        Where TRL has no old log-probabilities, the model did not change since it wrote the
        completions. Tokens that vLLM could not score count as unchanged.
        """
        now = logprobs.detach().float()
        if self.args.behavior_logprobs == "sampler":
            behavior = inputs["sampling_per_token_logps"]
        else:
            behavior = inputs.get("old_per_token_logps", now)
        log_ratio = now - behavior
        return torch.where(mask & ~log_ratio.isnan(), log_ratio, 0.0)

    def _note(
        self, log_ratio: Tensor, weights: Tensor, advantage: Tensor, mask: Tensor, entropies: Tensor
    ) -> None:
        """Note a micro-batch for the log, under the names of the metrics page."""
        real, length = mask.any(dim=-1), mask.sum(dim=-1).clamp(min=1)
        positive, negative = real & (advantage >= 0), real & (advantage < 0)
        taper = taper_of(weights.sum(dim=-1) / length, advantage)
        rho = log_ratio.sum(dim=-1)
        values = {
            "log_ratio/positive": rho[positive],
            "log_ratio/negative": rho[negative],
            "weight/positive": taper[positive],
            "weight/negative": taper[negative],
            "weight/negative_below_0.01": (taper[negative] < NEGLIGIBLE).float(),
            "entropy": entropies[mask].float(),
        }
        sums = torch.stack([x for v in values.values() for x in (v.sum(), v.new_tensor(v.numel()))])
        totals = self.accelerator.reduce(sums, reduction="sum").view(-1, 2)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, mean in zip(values, (totals[:, 0] / totals[:, 1]).tolist(), strict=True):
            metrics[name].append(mean)  # the mean of none is NaN, which TRL leaves out


def validate_arguments(args: TOPRGRPOConfig, objective: Objective, *, recorded: bool) -> None:
    """Refuse settings that would do nothing, or would make the ratio wrong.

    `recorded` says whether whoever generates records log-probabilities.
    """
    for name in ("neftune_noise_alpha", "label_smoothing_factor"):
        if getattr(args, name):
            raise ConfigError(f"{name}={getattr(args, name)}: {REFUSED[name]}")
    if args.baseline and objective.uses.baseline is not BaselineRole.SUBTRACTED:
        logger.warning(
            "baseline=%s with objective %r: %s",
            args.baseline,
            args.objective,
            "it does nothing, for the mean reward of each prompt is subtracted"
            if objective.uses.baseline is BaselineRole.CANCELS
            else "completions with at least this reward count as right, the others as wrong; a "
            "prompt with one kind alone trains nothing",
        )
    for name, off in WITHOUT_EFFECT.items():
        if getattr(args, name) != off:
            raise ConfigError(
                f"{name}={getattr(args, name)} has no effect in TOPRGRPOTrainer: its loss has "
                f"neither KL and entropy terms nor token masks. Leave it at {off}"
            )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ConfigError(
            f"multi_objective_aggregation={args.multi_objective_aggregation}: here rewards are "
            "summed by reward_weights and not normalised; leave the key out"
        )
    drawn = distribution(
        {name: getattr(args, name) for name in SAMPLED_WITH} | (args.generation_kwargs or {})
    )
    if drawn.greedy:
        raise ConfigError(
            "temperature=0 (or do_sample=False) samples nothing: all completions of a prompt are "
            "one, and the ratio pi/mu has no meaning; set a temperature above 0"
        )
    if args.behavior_logprobs == "sampler":
        if not recorded:
            raise ConfigError(
                "behavior_logprobs=sampler without use_vllm or a rollout_func: transformers "
                "records none; set behavior_logprobs=recompute"
            )
        if drawn.changes:
            raise ConfigError(
                f"behavior_logprobs=sampler with {', '.join(drawn.changes)}: the sampler's "
                "log-probabilities are of the changed distribution and the trainer's are not; set "
                "behavior_logprobs=recompute"
            )
    whole = args.steps_per_generation == 1
    if objective.needs_group and not (
        whole and args.per_device_train_batch_size % args.num_generations == 0
    ):
        raise ConfigError(
            f"objective {args.objective!r} compares the completions of a prompt, so they must be "
            f"in one micro-batch: set steps_per_generation=1 (found {args.steps_per_generation}) "
            f"and per_device_train_batch_size to a multiple of num_generations="
            f"{args.num_generations} (found {args.per_device_train_batch_size})"
        )
