"""Whether a timed step of topr has the right gradient: the plain computation beside it.

The plain one pads every row, takes its logits from the model, and knows nothing of topr but the
objective's weights, which its own log-ratios go into.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, TrainerCallback
from workloads import PAD_ID

from topr.objectives import ScoredBatch
from topr.training import TOPRTrainer
from topr.training.step import Step

ROWS = 2
"""Of a forward pass: few, since all logits of their completions are alive, several times over."""


class SeenTrainer(TOPRTrainer):
    """TOPRTrainer that keeps what it found in its last step."""

    seen: Step

    def _step(self, *args: Any) -> Step:
        self.seen = super()._step(*args)
        return self.seen


class GradientTap(TrainerCallback):
    """Keeps the gradient that an optimizer step is about to take."""

    gradient: dict[str, Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradient = gradient_of(kwargs["model"])


def gradient_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().float().cpu() for name, p in model.named_parameters()}


def plain_step(
    model: LlamaForCausalLM, step: list[dict[str, Any]], trainer: TOPRTrainer
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of the step's loss, and log pi(y) - log mu(y) of each completion, [rows].

    loss = -1/N sum_i 1/|y_i| sum_t w_it log pi(y_it | x_i, y_i<t), the weights w being constants.
    """
    device = model.device
    ratios = []
    for start in range(0, len(step), ROWS):
        batch = step[start : start + ROWS]
        logprobs, mask = completion_logprobs(model, batch)
        behavior = [torch.tensor(row["logprobs"]) for row in batch]
        behavior = pad_sequence(behavior, batch_first=True).to(device)
        ratio = torch.where(mask, logprobs.detach() - behavior, 0.0)
        advantage = torch.tensor([row["reward"] for row in batch], device=device)
        group = torch.tensor([row["group"] for row in batch], device=device)
        scored = ScoredBatch(
            log_ratio=ratio, advantage=advantage, mask=mask, group=group, behavior_logprobs=behavior
        )
        weights = trainer.objective.weights(scored)
        per_row = (weights * logprobs).sum(dim=1) / mask.sum(dim=1)
        (-per_row.sum() / len(step)).backward()
        ratios.append(ratio.sum(dim=1))
    return gradient_of(model), torch.cat(ratios).cpu()


def completion_logprobs(
    model: LlamaForCausalLM, batch: list[dict[str, Any]]
) -> tuple[Tensor, Tensor]:
    """Log pi of the completion tokens, padded with zeros, [B, T], and the mask of [B, T]."""
    rows = [torch.tensor(row["prompt_ids"] + row["completion_ids"]) for row in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD_ID).to(model.device)
    ones = [torch.ones_like(row) for row in rows]
    attention = pad_sequence(ones, batch_first=True).to(model.device)
    # The model's own logits, from the first that predicts a completion token on.
    first = min(len(row["prompt_ids"]) for row in batch) - 1
    keep = ids.shape[1] - first
    logits = model(input_ids=ids, attention_mask=attention, logits_to_keep=keep).logits
    found = []
    for row, tokens, of_row in zip(batch, ids, logits, strict=True):
        start, end = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["completion_ids"])
        logprobs = of_row[start - 1 - first : end - 1 - first].float().log_softmax(dim=-1)
        found.append(logprobs.gather(1, tokens[start:end, None])[:, 0])
    mask = pad_sequence([torch.ones_like(x, dtype=torch.bool) for x in found], batch_first=True)
    return pad_sequence(found, batch_first=True), mask


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Two gradients as one vector each: |found - expected| / |expected|, and the cosine."""
    difference = inner = of_found = of_expected = 0.0
    for name, plain in expected.items():
        ours, plain = found[name].double(), plain.double()
        difference += (ours - plain).square().sum().item()
        inner += (ours * plain).sum().item()
        of_found += ours.square().sum().item()
        of_expected += plain.square().sum().item()
    return {
        "relative_difference": (difference / of_expected) ** 0.5,
        "cosine": inner / (of_found * of_expected) ** 0.5,
    }
