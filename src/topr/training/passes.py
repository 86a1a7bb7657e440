"""The forward and backward passes of an optimizer step, on one of the processes that share it.

Micro-batches under a budget of tokens, their order, and what happens when memory runs out. Not
here: what a completion weighs (`topr.training.step`), and adding up over processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from topr.errors import TrainingError
from topr.training.batches import CPU_TOKENS, Batch, Row
from topr.training.distributed import DistributedContext
from topr.training.fitting import difference, is_exact, rounding
from topr.training.logprobs import Forward
from topr.training.memory import halved, ran_out
from topr.training.step import Step

SHARDED_TOKENS = 8192
"""Tokens of a forward pass of sharded weights where nothing else is asked for: running out of
memory can't be recovered from there, since the other processes wait in the middle of the pass."""


class Passes:
    """Runs steps through a model.

    With weights sharded over processes, every pass is one that all of them take part in: then each
    makes as many as the one that has the most, the missing ones on a row whose gradient is 0.
    """

    def __init__(
        self,
        forward: Forward,
        accelerator: Accelerator,
        distributed: DistributedContext,
        *,
        tokens: int | None,
        sharded: bool,
    ) -> None:
        """Run a model by `forward`, at most `tokens` at a time; None: as many as there are."""
        self.forward = forward
        self.accelerator = accelerator
        self.distributed = distributed
        self.sharded = sharded
        if tokens is None and distributed.device.type == "cpu":
            tokens = CPU_TOKENS
        elif tokens is None and sharded:
            tokens = SHARDED_TOKENS
        self.tokens = tokens
        self._checked = False
        self._number = -1
        self._batches: list[tuple[Sequence[Row], int]] = []

    def run_batch(
        self,
        model: nn.Module,
        number: int,
        rows: Sequence[Row],
        items: int,
        make_step: Callable[[Sequence[Row], int], Step],
    ) -> tuple[Tensor, Step]:
        """Run one loader batch of an optimizer step; return its loss and what was run.

        Where memory runs out, the token budget is halved and the optimizer step so far is done
        again from zero gradients, since the failed backward pass left a part behind.

        Args:
            model: what is trained.
            number: of the optimizer step.
            rows: the batch.
            items: completions of the whole optimizer step.
            make_step: from rows and items to what is run.

        """
        if self._number != number:
            self._number, self._batches = number, []
        self._batches.append((rows, items))
        pending = self._batches[-1:]
        while True:
            try:
                for each in pending:
                    step = make_step(*each)
                    loss = self.run(model, step)
                return loss, step
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                self.halve(make_step(rows, len(rows)), error)
                model.zero_grad()
                pending = list(self._batches)

    def run(self, model: nn.Module, step: Step) -> Tensor:
        """Add the gradient of the step's own completions to `.grad`; return their loss.

        The one place where weights become a gradient. Sharded weights get that of all processes.
        """
        for part in self._parts(step, step.first()):
            logprobs = self._scored(model, self._batch(step, part))
            if part:
                step.score(part, logprobs)
        step.decide()
        loss = torch.zeros((), device=self.distributed.device)
        parts = self._parts(step, step.with_backward())
        for number, part in enumerate(parts, start=1):
            # The weights need log pi, which `weighted_loss` computes: so it calls `weigh(log pi)`,
            # multiplies, and sums. For TOPR `weigh` gives A * min(rho, 1) or so for each token.
            batch, weigh = self._batch(step, part), step.weigh(part) if part else _nothing
            scored = None if self._checked else self._scored(model, batch)
            with self.forward.of(model):
                with self.accelerator.autocast():
                    found, logprobs = self.forward.weighted_loss(model, batch, weigh)
                if scored is not None:
                    self._check(model, scored, logprobs)
                self._backward(found, last=number == len(parts))
            loss += found.detach()
        return loss

    def _scored(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            return self.forward.token_logprobs(model, batch)

    def _check(self, model: nn.Module, scored: Tensor, trained: Tensor) -> None:
        """Compare the first pass that is trained on with one that only scores.

        Raises:
            TrainingError: they differ, so ratios would not be those of the model that samples.

        """
        exact = self.accelerator.mixed_precision == "no" and is_exact(model)
        gap = difference(scored, trained, exact=exact)
        if gap > rounding(scored, exact=exact):
            raise TrainingError(
                "in a pass that takes gradients the log-probabilities are not those of the same "
                f"model as it samples: they are off by {gap:.2g}. Something makes the model "
                "random, or another one, when it is trained: a hook, a wrapper, or custom code"
            )
        self._checked = True

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        # Sharding wrappers take the mean over processes; a step's gradient is their sum.
        scaled = loss * self.distributed.world_size if self.sharded else loss
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            self.accelerator.backward(scaled)
            return
        # DeepSpeed would take an optimizer step after each micro-batch.
        state: Any = self.accelerator.gradient_state
        wanted = state.sync_gradients
        state._set_sync_gradients(wanted and last)
        try:
            self.accelerator.backward(scaled, scale_wrt_gas=False)
        finally:
            state._set_sync_gradients(wanted)

    def _parts(self, step: Step, positions: Sequence[int]) -> list[list[int]]:
        """Return the positions of each micro-batch; none where it is for the other processes."""
        chosen = [step.rows[i] for i in positions]
        parts = self.forward.split(chosen, self.tokens)
        missing = self.distributed.max(len(parts)) - len(parts) if self.sharded else 0
        return [[positions[k] for k in part] for part in parts] + [[] for _ in range(missing)]

    def _batch(self, step: Step, part: Sequence[int]) -> Batch:
        """Return a micro-batch on the device; the shortest row where it has none."""
        rows = [step.rows[i] for i in part] or [min(step.rows, key=_tokens)]
        return self.forward.batch(rows).to(self.distributed.device)

    def halve(self, step: Step, error: RuntimeError) -> None:
        """Halve the tokens of a pass, as memory ran out; see `halved`."""
        rows = [step.rows[i] for i in step.own]
        self.tokens = halved(self.forward, rows, self.tokens, error, sharded=self.sharded)


def _tokens(row: Any) -> int:
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def _nothing(logprobs: Tensor, _: slice) -> Tensor:
    return torch.zeros_like(logprobs)
