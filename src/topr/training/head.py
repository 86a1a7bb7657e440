"""The output head and its log-softmax, a few tokens at a time: logits are never all alive.

With a large vocabulary the logits of a batch are most of its memory, and the head most of its time.
Not here: the model below the head, and what the weights of the gradient are.

Axes: N completion tokens of a batch, H hidden width, V vocabulary, n tokens of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_LOGITS = 2**25
"""Logits alive at a time: 128 MiB in float32. Larger chunks were not faster on a CPU."""

Weigh = Callable[[Tensor, slice], Tensor]
"""From the log-probabilities of whole sequences, [n] float32, and which of the batch's sequences
they are, to the factor of grad log pi of each token, [n] float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear output layer."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]

    def logits(self, hidden: Tensor, temperature: Tensor) -> Tensor:
        """Return logits / temperature, [n, V] float32, of hidden states [n, H].

        Under autocast the product is taken in its type; on CUDA it still comes out in float32.
        """
        dtype = compute_dtype(hidden)
        hidden, weight = hidden.to(dtype), self.weight.to(dtype)
        wide = hidden.is_cuda and dtype != torch.float32 and not torch.is_grad_enabled()
        with torch.autocast(hidden.device.type, enabled=False):
            if wide:
                logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
            else:
                logits = functional.linear(hidden, weight).float()
        if self.bias is not None:
            logits = logits + self.bias.float()
        if bool((temperature != 1.0).any()):
            logits = logits / temperature[:, None]
        return logits


def head_of(model: nn.Module) -> Head | None:
    """Return the model's output layer where it is a plain linear one, else None."""
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    return Head(weight=layer.weight, bias=layer.bias) if type(layer) is nn.Linear else None


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type that autocast takes matrix products in, or the hidden states' own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def head_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
    """Return the log-probability of each target, [N] float32. Differentiable, but then every
    chunk's logits stay alive: training uses `weighted_loss`.

    Args:
        head: the output layer.
        hidden: [N, H].
        targets: [N] int64.
        temperature: [N] float32.

    """
    parts = []
    for tokens in _pieces(0, len(targets), _chunk_tokens(head)):
        logits = head.logits(hidden[tokens], temperature[tokens])
        chosen = logits.gather(1, targets[tokens, None]).squeeze(1)
        parts.append(chosen - logits.logsumexp(dim=1))
    return torch.cat(parts)


def weighted_loss(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: Tensor,
    lengths: Sequence[int],
    weigh: Weigh,
) -> tuple[Tensor, Tensor]:
    """Return -sum(weight * log pi) with its gradient in hidden states and head, and log pi, [N].

    Args:
        head: the output layer.
        hidden: [N, H], of whole sequences end to end.
        targets: [N] int64.
        temperature: [N] float32.
        lengths: tokens of each sequence; they sum to N.
        weigh: from log-probabilities to weights; called once for each sequence, several at a time.

    """
    loss, logprobs = _WeightedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, temperature, tuple(lengths), weigh
    )
    return loss, logprobs


class _WeightedLoss(torch.autograd.Function):
    """A weight depends on its own sequence alone, so a chunk of whole sequences has all it needs:
    logits, log pi, weights, and the gradient from the same logits, which are then let go. That is
    three products with the head, as many as a plain backward takes. Only a sequence that is longer
    than a chunk has its logits computed twice. Tokens of weight 0 take one product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor,
        lengths: tuple[int, ...],
        weigh: Weigh,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight=weight, bias=bias)
        gradients = _Gradients(head, hidden, ctx.needs_input_grad[:3])
        logprobs = torch.empty(len(targets), device=hidden.device)
        loss = torch.zeros((), device=hidden.device)
        chunk = _chunk_tokens(head)
        for sequences, first, last in _blocks(lengths, chunk):
            pieces = list(_pieces(first, last, chunk))
            for tokens in pieces:
                logits = head.logits(hidden[tokens], temperature[tokens])
                chosen = logits.gather(1, targets[tokens, None]).squeeze(1)
                highest = logits.amax(dim=1)
                logits = logits.sub_(highest[:, None]).exp_()
                total = logits.sum(dim=1)
                logprobs[tokens] = chosen - highest - total.log()
            weights = weigh(logprobs[first:last], sequences)
            loss -= (weights * logprobs[first:last]).sum()
            for tokens in pieces:
                part = weights[tokens.start - first : tokens.stop - first]
                if not part.any():
                    continue
                if len(pieces) > 1:
                    logits = head.logits(hidden[tokens], temperature[tokens])
                    logits = logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
                    total = logits.sum(dim=1)
                gradients.add(tokens, logits, total, targets[tokens], part / temperature[tokens])
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logprobs)
        return loss, logprobs

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
        found = ctx.gradients.found()
        del ctx.gradients
        if of_loss != 1.0:
            found = [gradient * of_loss if gradient is not None else None for gradient in found]
        return (*found, None, None, None, None)


class _Gradients:
    """Sums up the gradient of -sum(weight * log pi) in hidden states, head and bias."""

    def __init__(self, head: Head, hidden: Tensor, needed: Sequence[bool]) -> None:
        self.head = head
        self.hidden = hidden
        self.of_hidden = torch.zeros_like(hidden) if needed[0] else None
        self.of_weight = torch.zeros_like(head.weight) if needed[1] else None
        self.of_bias = torch.zeros_like(head.bias) if head.bias is not None and needed[2] else None

    def add(
        self, tokens: slice, exps: Tensor, total: Tensor, targets: Tensor, weights: Tensor
    ) -> None:
        """Add some tokens; `exps / total` is their softmax, [n, V], and is overwritten.

        d(-w log pi)/d logits = w (softmax - onehot).
        """
        alive = weights.nonzero().squeeze(1)
        hidden = self.hidden[tokens]
        if len(alive) < len(weights):
            exps, total, targets, weights = (
                x.index_select(0, alive) for x in (exps, total, targets, weights)
            )
            hidden = hidden.index_select(0, alive)
        of_logits = exps.mul_((weights / total)[:, None])
        of_logits[torch.arange(len(targets), device=targets.device), targets] -= weights
        dtype = compute_dtype(self.hidden)
        of_logits = of_logits.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            if self.of_hidden is not None:
                product = of_logits @ self.head.weight.to(dtype)
                self.of_hidden[tokens][alive] = product.to(self.of_hidden.dtype)
            if self.of_weight is not None:
                if dtype == self.of_weight.dtype:
                    self.of_weight.addmm_(of_logits.t(), hidden)
                else:
                    self.of_weight += of_logits.t() @ hidden.to(dtype)
            if self.of_bias is not None:
                self.of_bias += of_logits.sum(dim=0)

    def found(self) -> list[Tensor | None]:
        """Return the three gradients; None where none is needed."""
        return [self.of_hidden, self.of_weight, self.of_bias]


def _chunk_tokens(head: Head) -> int:
    return max(1, CHUNK_LOGITS // head.weight.shape[0])


def _blocks(lengths: Sequence[int], chunk: int) -> Iterator[tuple[slice, int, int]]:
    """Yield runs of whole sequences of at most `chunk` tokens, a longer one alone: the sequences,
    and their first token and the one past their last.
    """
    begin, first, end = 0, 0, 0
    for number, length in enumerate(lengths):
        if number > begin and end + length - first > chunk:
            yield slice(begin, number), first, end
            begin, first = number, end
        end += length
    yield slice(begin, len(lengths)), first, end


def _pieces(first: int, last: int, chunk: int) -> Iterator[slice]:
    """Yield slices of at most `chunk` tokens."""
    for start in range(first, last, chunk):
        yield slice(start, min(start + chunk, last))
