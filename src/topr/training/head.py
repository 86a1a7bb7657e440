"""The output head and its log-softmax, a few tokens at a time: logits are never all alive.

With a large vocabulary the logits of a batch are most of its memory, and the head most of its time.
Not here: the model below the head, and what the weights of the gradient are.

Axes: N completion tokens of a batch, H hidden width, V vocabulary; n tokens of a chunk, v entries
of a block of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_LOGITS = 2**26
"""Logits alive at a time: 256 MiB in float32. Half of that took a quarter more time on a CPU."""
CPU_BLOCK = 8192
"""Entries of the vocabulary in one product on a CPU. Without a gradient only one block is alive."""

Weigh = Callable[[Tensor, slice], Tensor]
"""From the log-probabilities of whole sequences, [n] float32, and which of the batch's sequences
they are, to the factor of grad log pi of each token, [n] float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear output layer."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]

    @property
    def chunk(self) -> int:
        """Tokens whose logits are alive at a time."""
        return max(1, CHUNK_LOGITS // self.weight.shape[0])

    def blocks(self) -> list[slice]:
        """Return the blocks of the vocabulary; on a GPU all of it is one."""
        size = self.weight.shape[0]
        return list(_pieces(0, size, CPU_BLOCK if self.weight.device.type == "cpu" else size))

    def logits(self, hidden: Tensor, temperature: Tensor, block: slice) -> Tensor:
        """Return logits / temperature of some vocabulary entries, [n, v] float32.

        Under autocast the product is taken in its type; on CUDA it comes out in float32 all the
        same where nothing is differentiated.
        """
        dtype = _compute_dtype(hidden)
        hidden = (hidden / temperature[:, None]).to(dtype)
        weight = self.weight[block].to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            if hidden.is_cuda and dtype != torch.float32 and not torch.is_grad_enabled():
                logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
            else:
                logits = functional.linear(hidden, weight).float()
        if self.bias is not None:
            logits = logits + self.bias[block].float() / temperature[:, None]
        return logits


def head_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
    """Return the log-probability of each target, [N] float32.

    Differentiable, but then every chunk's logits stay alive: training uses `weighted_loss`.

    Args:
        head: the output layer.
        hidden: [N, H].
        targets: [N] int64.
        temperature: [N] float32.

    """
    parts = []
    for tokens in _pieces(0, len(targets), head.chunk):
        if torch.is_grad_enabled():
            logits = head.logits(hidden[tokens], temperature[tokens], slice(None))
            chosen = logits.gather(1, targets[tokens, None]).squeeze(1)
            parts.append(chosen - logits.logsumexp(dim=1))
        else:
            parts.append(
                _Softmax(head, hidden[tokens], targets[tokens], temperature[tokens]).logprobs
            )
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


class _Softmax:
    """The softmax of some tokens, block by block of the vocabulary."""

    def __init__(
        self, head: Head, hidden: Tensor, targets: Tensor, temperature: Tensor, keep: bool = False
    ) -> None:
        """Take one pass over the vocabulary; `keep` the exponentials for a gradient."""
        self.blocks: list[tuple[slice, Tensor, Tensor]] = []
        """Entries, exp(logits - highest of the block), and that highest: [n, v] and [n]."""
        shape, device = targets.shape, targets.device
        chosen = torch.zeros(shape, device=device)
        highest = torch.full(shape, -torch.inf, device=device)
        total = torch.zeros(shape, device=device)
        for block in head.blocks():
            exps = head.logits(hidden, temperature, block)
            rows, columns = _within(targets, block)
            chosen[rows] = exps[rows, columns]
            top = exps.amax(dim=1)
            exps = exps.sub_(top[:, None]).exp_()
            both = torch.maximum(highest, top)
            total = total * (highest - both).exp() + exps.sum(dim=1) * (top - both).exp()
            highest = both
            if keep:
                self.blocks.append((block, exps, top))
        self.log_total = highest + total.log()
        """log sum exp of the logits, [n]."""
        self.logprobs = chosen - self.log_total


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
        for sequences, first, last in _runs(lengths, head.chunk):
            pieces = list(_pieces(first, last, head.chunk))
            whole = len(pieces) == 1
            for tokens in pieces:
                softmax = _Softmax(
                    head, hidden[tokens], targets[tokens], temperature[tokens], whole
                )
                logprobs[tokens] = softmax.logprobs
            weights = weigh(logprobs[first:last], sequences)
            loss -= (weights * logprobs[first:last]).sum()
            for tokens in pieces:
                part = weights[tokens.start - first : tokens.stop - first]
                alive = part.nonzero().squeeze(1) + tokens.start
                if len(alive) == 0:
                    continue
                if not whole:
                    softmax = _Softmax(
                        head, hidden[tokens], targets[tokens], temperature[tokens], True
                    )
                gradients.add(alive, alive - tokens.start, softmax, targets, part, temperature)
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
        self,
        tokens: Tensor,
        rows: Tensor,
        softmax: _Softmax,
        targets: Tensor,
        weights: Tensor,
        temperature: Tensor,
    ) -> None:
        """Add the gradient of some tokens; `softmax` is overwritten.

        d(-w log pi)/d logits = w (softmax - onehot).

        Args:
            tokens: their numbers in the batch.
            rows: their rows of `softmax` and `weights`.
            softmax: of a chunk of tokens.
            targets: of the whole batch, [N].
            weights: of the chunk, [n].
            temperature: of the whole batch, [N].

        """
        some = len(rows) < len(weights)
        weight = weights[rows] / temperature[tokens]
        target, hidden = targets[tokens], self.hidden[tokens]
        log_total = softmax.log_total[rows]
        dtype = _compute_dtype(self.hidden)
        of_hidden = torch.zeros(hidden.shape, device=hidden.device)
        for block, exps, top in softmax.blocks:
            of_logits = exps.index_select(0, rows) if some else exps
            of_logits.mul_((weight * (top[rows] - log_total).exp())[:, None])
            at, columns = _within(target, block)
            of_logits[at, columns] -= weight[at]
            of_logits = of_logits.to(dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                if self.of_hidden is not None:
                    of_hidden += of_logits @ self.head.weight[block].to(dtype)
                if self.of_weight is not None:
                    product = of_logits.t() @ hidden.to(dtype)
                    self.of_weight[block] += product
            if self.of_bias is not None:
                self.of_bias[block] += of_logits.sum(dim=0)
        if self.of_hidden is not None:
            self.of_hidden[tokens] = of_hidden.to(self.of_hidden.dtype)

    def found(self) -> list[Tensor | None]:
        """Return the three gradients; None where none is needed."""
        return [self.of_hidden, self.of_weight, self.of_bias]


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type that autocast takes matrix products in, or the hidden states' own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _within(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return which targets lie in a block of the vocabulary, and their columns there."""
    rows = ((targets >= block.start) & (targets < block.stop)).nonzero().squeeze(1)
    return rows, targets[rows] - block.start


def _runs(lengths: Sequence[int], chunk: int) -> Iterator[tuple[slice, int, int]]:
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


def _pieces(first: int, last: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size`."""
    for start in range(first, last, size):
        yield slice(start, min(start + size, last))
