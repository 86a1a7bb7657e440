"""What one loader batch of completions is in an optimizer step: from log pi to the factor of each
token's gradient, and what was seen on the way.

Not here: the model, its forward and backward passes, and the order of the micro-batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topr.objectives import (
    Normalization,
    Objective,
    ScoredBatch,
    Whole,
    largest_weight,
    sequence_scale,
    taper_of,
    token_mean,
)
from topr.training.batches import Row, flat_tokens, spread
from topr.training.head import Weigh


@dataclass(frozen=True, kw_only=True, slots=True)
class BackwardSkipping:
    """Which negatives need no backward pass.

    The taper of a negative is its clipped ratio: 1 when pi = mu, near 0 once pi has left it.

    >>> BackwardSkipping(rule=0.1).keep_scale(taper=0.05, uniform=0.7)  # skipped
    0.0
    >>> BackwardSkipping(rule="sample").keep_scale(taper=0.25, uniform=0.2)  # one of four is kept
    4.0
    """

    rule: float | str | None = None
    """None: all have one. A number: those whose taper is at most that have none; 0 is exact, and
    above it the dropped share of the gradient weight is logged. `sample`: each keeps its backward
    pass with a probability equal to its taper (at most 1), and counts one over that: unbiased."""
    seed: int = 0

    def uniform(self, step: int, row: Row) -> float:
        """Return the random number in [0, 1) that decides for one row in one step."""
        return float(np.random.default_rng((self.seed, step, row["row"])).random())

    def keep_scale(self, taper: float, uniform: float) -> float:
        """Return what a negative's gradient is multiplied by; 0 means no backward pass."""
        if self.rule == "sample":
            keep = min(taper, 1.0)
            return 1.0 / keep if uniform < keep else 0.0
        return 0.0 if self.rule is not None and taper <= float(self.rule) else 1.0


class Step:
    """The completions of one loader batch, B of them.

    Processes that train together each compute some of them, their own; `gather` tells each what the
    others saw.

    A completion's weight needs its own log-probabilities; where the objective needs the group, it
    needs those of its group: then `score` and `decide` come first, and `weigh` returns what was
    decided.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        objective: Objective,
        baseline: float,
        normalization: Normalization,
        constant: float,
        items: int,
        device: torch.device,
        skipping: BackwardSkipping,
        number: int,
        last_taper: NDArray[np.float32],
        own: Sequence[int] | None = None,
    ) -> None:
        """Start a step.

        Args:
            rows: with `behavior_logprobs`.
            objective: gives the weights.
            baseline: c in A = R - c.
            normalization: of each completion's loss.
            constant: of the normalization `constant`.
            items: completions of the whole optimizer step.
            device: of the model.
            skipping: which negatives need no backward pass.
            number: of the optimizer step.
            last_taper: each row's taper when it was last seen, [B]; NaN where it was not.
            own: positions that this process computes, with whole groups where the objective
                needs them; defaults to all.

        """
        self.rows = rows
        self.own = range(len(rows)) if own is None else own
        self.objective = objective
        self.device = device
        self.skipping = skipping
        self.lengths = [len(row["completion_ids"]) for row in rows]
        rewards = torch.tensor([row["reward"] for row in rows], dtype=torch.float32)
        self.advantage_B = (rewards - baseline).to(device)
        self.group_B = torch.tensor([row["group"] for row in rows], device=device)
        _, mask = spread(torch.zeros(sum(self.lengths)), self.lengths)
        self.scale_B = sequence_scale(mask, normalization, constant).to(device)
        self.items = items
        self.uniforms = [
            skipping.uniform(number, row) if skipping.rule == "sample" else 0.0 for row in rows
        ]
        self.last_taper = last_taper
        size = (len(rows),)
        self.log_ratio_B = torch.full(size, torch.nan, device=device)
        self.weight_B = torch.full(size, torch.nan, device=device)
        """Mean over its tokens of each completion's weight, whether skipped or not."""
        self.keep_scale_B = torch.ones(size, device=device)
        self.taper_B = torch.full(size, torch.nan, device=device)
        """Largest |weight / A| over each completion's tokens."""
        self._negative = (self.advantage_B < 0).tolist()
        self._decided: dict[int, Tensor] = {}
        self._logprobs: dict[int, Tensor] = {}

    def first(self) -> list[int]:
        """Return the positions whose log-probabilities are wanted before any backward pass: all
        where the objective compares ratios, else those that are likely to be skipped.

        A completion's taper changes little from epoch to epoch, so the last one tells. Guessing
        wrong costs time only.
        """
        if self.objective.needs_group == "ratios":
            return list(self.own)
        if self.skipping.rule is None:
            return []
        return [
            i
            for i in self.own
            if self._negative[i] and not np.isnan(self.last_taper[i])
            and self.skipping.keep_scale(float(self.last_taper[i]), self.uniforms[i]) == 0.0
        ]  # fmt: skip

    def score(self, positions: Sequence[int], logprobs: Tensor) -> None:
        """Take the log-probabilities of some rows, end to end, [N]."""
        lengths = [self.lengths[i] for i in positions]
        parts = logprobs.detach().split_with_sizes(lengths)
        self._logprobs |= zip(positions, parts, strict=True)

    def decide(self) -> None:
        """Fix the weights of all rows that were scored, together."""
        positions = list(self._logprobs)
        if positions:
            weights = self._weights(positions, torch.cat([self._logprobs[i] for i in positions]))
            lengths = [self.lengths[i] for i in positions]
            self._decided |= zip(positions, weights.split_with_sizes(lengths), strict=True)

    def with_backward(self) -> list[int]:
        """Return the positions that need a backward pass, as far as is known."""
        scales = self.keep_scale_B.tolist()
        return [i for i in self.own if scales[i] > 0]

    def weigh(self, positions: Sequence[int]) -> Weigh:
        """Return the function from log pi to factors for a micro-batch of these rows."""

        def factors(logprobs: Tensor, sequences: slice) -> Tensor:
            chosen = positions[sequences]
            if all(i in self._decided for i in chosen):
                return torch.cat([self._decided[i] for i in chosen])
            return self._weights(chosen, logprobs)

        return factors

    def _weights(self, positions: Sequence[int], logprobs: Tensor) -> Tensor:
        """Return the factor of each token's grad log pi, [N], and note what was seen."""
        lengths = [self.lengths[i] for i in positions]
        behavior = flat_tokens([self.rows[i]["behavior_logprobs"] for i in positions])
        log_mu, mask = spread(behavior.to(self.device), lengths)
        log_ratio = spread(logprobs.detach().float(), lengths)[0] - log_mu
        at = torch.tensor(positions, device=self.device)
        advantage = self.advantage_B[at]
        batch = ScoredBatch(
            log_ratio=log_ratio,
            advantage=advantage,
            mask=mask,
            group=self.group_B[at],
            behavior_logprobs=log_mu,
            whole=Whole(advantage=self.advantage_B, group=self.group_B, rows=at),
        )
        weights = self.objective.weights(batch)
        self.log_ratio_B[at] = log_ratio.sum(dim=-1)
        self.weight_B[at] = token_mean(weights, mask)
        taper = taper_of(largest_weight(weights), advantage)
        self.taper_B[at] = taper
        keep_scale = torch.ones_like(advantage)
        if self.skipping.rule is not None:
            for k, (i, value) in enumerate(zip(positions, taper.tolist(), strict=True)):
                if self._negative[i]:
                    keep_scale[k] = self.skipping.keep_scale(value, self.uniforms[i])
        self.keep_scale_B[at] = keep_scale
        scaled = weights * (keep_scale * self.scale_B[at] / self.items)[:, None]
        return scaled[mask]

    def gather(self, loss: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Take over what other processes saw of their completions; return the loss of all.

        Args:
            loss: of this process's own completions.
            total: adds a tensor up over the processes.

        """
        others = torch.ones(len(self.rows), dtype=torch.bool, device=self.device)
        others[torch.tensor(list(self.own), dtype=torch.long, device=self.device)] = False
        seen = [self.log_ratio_B, self.weight_B, self.keep_scale_B, self.taper_B]
        own = torch.stack([values.masked_fill(others, 0.0) for values in seen])
        found = total(torch.cat([own.flatten(), loss[None]]))
        table = found[:-1].view_as(own)
        self.log_ratio_B, self.weight_B, self.keep_scale_B, self.taper_B = table.unbind()
        return found[-1]

    @property
    def gradient_weight_B(self) -> Tensor:
        """What multiplies each completion's mean token gradient in the loss, before skipping."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return self.weight_B.abs() * self.scale_B * lengths
