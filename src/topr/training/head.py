"""The output head and its log-softmax, a few tokens at a time: logits are never all alive.

With a large vocabulary the logits of a batch are most of its memory, and the head most of its time.
Not here: the model below the head, and what the weights of the gradient are.

Axes: N completion tokens of a batch, H hidden width, V vocabulary; n tokens of a chunk, v entries
of a block of the vocabulary.

The output layer's weights, [V, H], are `matrix` here; a `weight` is that of a token's gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_LOGITS = 2**26
"""Logits alive at a time: 256 MiB in float32. In bfloat16 half of that on a CPU, block by block of
the vocabulary; on a GPU half as much again. Half as many took up to a quarter more time on a CPU.
"""
CPU_BLOCK = 8192
"""Entries of the vocabulary in one product on a CPU. Without a gradient only one block is alive."""

Weigh = Callable[[Tensor, slice], Tensor]
"""From the log-probabilities of whole sequences, [n] float32, and which of the batch's sequences
they are, to the factor of grad log pi of each token, [n] float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A linear output layer."""

    matrix: Tensor  # [V, H]
    bias: Tensor | None  # [V]

    @property
    def chunk(self) -> int:
        """Tokens whose logits are alive at a time."""
        return max(1, CHUNK_LOGITS // self.matrix.shape[0])

    def blocks(self) -> list[slice]:
        """Return the blocks of the vocabulary; on a GPU all of it is one."""
        size = self.matrix.shape[0]
        return list(_pieces(0, size, CPU_BLOCK if self.matrix.device.type == "cpu" else size))

    def logits(self, scaled: Tensor, temperature: Tensor, block: slice) -> Tensor:
        """Return logits / temperature of some vocabulary entries, [n, v] float32.

        On CUDA the product comes out in float32 where nothing is differentiated.

        Args:
            scaled: hidden states / temperature, [n, H], in the matrix's type.
            temperature: [n] float32.
            block: which entries.

        """
        matrix = self.matrix[block]
        with torch.autocast(scaled.device.type, enabled=False):
            if scaled.is_cuda and scaled.dtype != torch.float32 and not torch.is_grad_enabled():
                logits = torch.mm(scaled, matrix.t(), out_dtype=torch.float32)
            else:
                logits = functional.linear(scaled, matrix).float()
            if self.bias is None:
                return logits
            add = logits.addr if torch.is_grad_enabled() else logits.addr_
            return add(1 / temperature, self.bias[block].float())


def head_logprobs(head: Head, hidden: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
    """Return the log-probability of each target, [N] float32.

    Differentiable, but then every chunk's logits stay alive: training uses `weighted_loss`.

    Args:
        head: the output layer.
        hidden: [N, H].
        targets: [N] int64.
        temperature: [N] float32.

    """
    head, scaled = _for_products(head, hidden, temperature)
    parts = []
    for tokens in _pieces(0, len(targets), head.chunk):
        if torch.is_grad_enabled():
            logits = head.logits(scaled[tokens], temperature[tokens], slice(None))
            chosen = logits.gather(1, targets[tokens, None]).squeeze(1)
            parts.append(chosen - logits.logsumexp(dim=1))
        else:
            softmax = _Softmax(head, scaled[tokens], targets[tokens], temperature[tokens])
            parts.append(softmax.logprobs)
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
        hidden, head.matrix, head.bias, targets, temperature, tuple(lengths), weigh
    )
    return loss, logprobs


class _Softmax:
    """The softmax of some tokens, from one pass over the vocabulary, block by block.

    A target and all that is not the target are kept apart: of a token that the model is nearly
    sure of, log pi and 1 - pi are what the others leave, and 1 less pi would be rounding alone.
    """

    def __init__(
        self,
        head: Head,
        scaled: Tensor,
        targets: Tensor,
        temperature: Tensor,
        *,
        keep: bool = False,
        room: Tensor | None = None,
    ) -> None:
        """Run the head.

        Args:
            head: in the type of products.
            scaled: hidden states / temperature, [n, H], in that type.
            targets: [n].
            temperature: [n].
            keep: keep in `blocks` what a gradient needs.
            room: where to keep it, at least n * V numbers in that type.

        """
        self.blocks: list[tuple[slice, Tensor, Tensor]] = []
        """Entries; exp(logits - highest of the block) in the type of products, 0 in the targets'
        places; and that highest: [n, v] and [n].
        """
        shape, device = targets.shape, targets.device
        chosen = torch.zeros(shape, device=device)
        highest = torch.full(shape, torch.finfo(torch.float32).min, device=device)
        others = torch.zeros(shape, device=device)
        for block in head.blocks():
            exps = head.logits(scaled, temperature, block)
            rows, columns = _within(targets, block)
            chosen[rows] = exps[rows, columns]
            exps[rows, columns] = -torch.inf
            top = exps.amax(dim=1).clamp_(min=torch.finfo(torch.float32).min)
            exps = exps.sub_(top[:, None]).exp_()
            both = torch.maximum(highest, top)
            others = others * (highest - both).exp() + exps.sum(dim=1) * (top - both).exp()
            highest = both
            if keep:
                if room is not None:
                    begin = len(targets) * block.start
                    exps = room[begin : begin + exps.numel()].view_as(exps).copy_(exps)
                self.blocks.append((block, exps.to(scaled.dtype), top))
        log_others = highest + others.log()
        self.log_total = torch.logaddexp(log_others, chosen)
        """log sum exp of the logits, [n]."""
        self.logprobs = -functional.softplus(log_others - chosen)
        self.rest = torch.sigmoid(log_others - chosen)
        """1 - pi of the targets, [n]."""


class _WeightedLoss(torch.autograd.Function):
    """A weight depends on its own sequence alone, so a chunk of whole sequences has all it needs:
    logits, log pi, weights, and the gradient from the same logits, which are then let go. That is
    three products with the head, as many as a plain backward takes. Only a sequence that is longer
    than a chunk has its logits computed twice. Tokens of weight 0 take one product.

    With chunks of 6 tokens and sequences of 4, 2 and 7: the first two make one chunk, whose logits
    give log pi, weights and gradient; the third is run in pieces of 6 and 1 for log pi, and, as its
    weights are then known, once more for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor,
        lengths: tuple[int, ...],
        weigh: Weigh,
    ) -> tuple[Tensor, Tensor]:
        head, scaled = _for_products(Head(matrix=matrix, bias=bias), hidden, temperature)
        needed = zip((hidden, matrix, bias), ctx.needs_input_grad[:3], strict=True)
        found = [torch.zeros_like(x) if x is not None and need else None for x, need in needed]
        gradients = _Gradients(head, scaled, targets, temperature, *found)
        logprobs = torch.empty(len(targets), device=hidden.device)
        loss = torch.zeros((), device=hidden.device)
        room = None
        if len(head.blocks()) > 1:  # Made once: on a CPU fresh memory is slow.
            room = scaled.new_empty(min(head.chunk, len(targets)) * matrix.shape[0])

        def softmax_of(tokens: slice, keep: bool) -> _Softmax:
            part = scaled[tokens], targets[tokens], temperature[tokens]
            return _Softmax(head, *part, keep=keep, room=room)

        for sequences, first, last in _runs(lengths, head.chunk):
            pieces = list(_pieces(first, last, head.chunk))
            fits = len(pieces) == 1
            for tokens in pieces:
                softmax = softmax_of(tokens, keep=fits)
                logprobs[tokens] = softmax.logprobs
            weights = weigh(logprobs[first:last], sequences)
            loss -= (weights * logprobs[first:last]).sum()
            for tokens in pieces:
                part = weights[tokens.start - first : tokens.stop - first]
                if not part.any():
                    continue
                if not fits:
                    softmax = softmax_of(tokens, keep=True)
                gradients.add(tokens.start, softmax, part)
        ctx.found = found
        ctx.mark_non_differentiable(logprobs)
        return loss, logprobs

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Any, ...]:
        if ctx.found is None:
            raise RuntimeError("the gradient was handed out: another backward needs a new forward")
        found, ctx.found = ctx.found, None
        if of_loss != 1.0:
            found = [gradient * of_loss if gradient is not None else None for gradient in found]
        return (*found, None, None, None, None)


class _Gradients:
    """Sums up the gradient of -sum(weight * log pi) in hidden states, head and bias.

    d(-w log pi)/d logits = w (softmax - onehot). The softmax of all but the target goes into the
    products as the exponentials that the forward pass left, and its factors into the small side of
    them. The target's own entry, -w (1 - pi), is taken in float32.

    With w = 2 and softmax (0.7, 0.2, 0.1), of which the first is the target, the logits' gradient
    is (-0.6, 0.4, 0.2): 0.4 and 0.2 go through the product, -0.6 = -w (1 - pi) by itself.
    """

    def __init__(
        self,
        head: Head,
        scaled: Tensor,
        targets: Tensor,
        temperature: Tensor,
        of_hidden: Tensor | None,
        of_matrix: Tensor | None,
        of_bias: Tensor | None,
    ) -> None:
        """Begin.

        Args:
            head: in the type of products.
            scaled: hidden states / temperature in that type, [N, H].
            targets: [N].
            temperature: [N].
            of_hidden: what is added to, [N, H]; None where it is not needed.
            of_matrix: likewise, [V, H].
            of_bias: likewise, [V].

        """
        self.head, self.scaled, self.targets = head, scaled, targets
        self.temperature = temperature
        self.of_hidden, self.of_matrix, self.of_bias = of_hidden, of_matrix, of_bias

    def add(self, start: int, softmax: _Softmax, weights: Tensor) -> None:
        """Add the gradient of the tokens from `start` on, whose weights are `weights`, [n]."""
        rows = weights.nonzero().squeeze(1)
        some = len(rows) < len(weights)
        tokens = rows + start
        scaled, target = self.scaled[tokens], self.targets[tokens]
        weight, temperature = weights[rows], self.temperature[tokens]
        of_target = -weight * softmax.rest[rows]
        of_scaled = of_target[:, None] * self.head.matrix[target]
        for block, exps, top in softmax.blocks:
            exps = exps.index_select(0, rows) if some else exps
            factor = weight * (top[rows] - softmax.log_total[rows]).exp()
            with torch.autocast(scaled.device.type, enabled=False):
                if self.of_hidden is not None:
                    of_scaled += factor[:, None] * (exps @ self.head.matrix[block])
                if self.of_matrix is not None:
                    self.of_matrix[block] += exps.t() @ (factor[:, None] * scaled).to(exps.dtype)
            if self.of_bias is not None:
                self.of_bias[block] += (factor / temperature).to(exps.dtype) @ exps
        if self.of_hidden is not None:
            self.of_hidden[tokens] = (of_scaled / temperature[:, None]).to(self.of_hidden.dtype)
        if self.of_matrix is not None:
            _add_rows(self.of_matrix, target, of_target[:, None] * scaled)
        if self.of_bias is not None:
            _add_rows(self.of_bias[:, None], target, (of_target / temperature)[:, None])


def _for_products(head: Head, hidden: Tensor, temperature: Tensor) -> tuple[Head, Tensor]:
    """Return the head and hidden states / temperature in the type of matrix products: autocast's,
    or the hidden states' own.
    """
    kind = hidden.device.type
    auto = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if auto else hidden.dtype
    scaled = (hidden / temperature[:, None]).to(dtype)
    return Head(matrix=head.matrix.to(dtype), bias=head.bias), scaled


def _add_rows(to: Tensor, numbers: Tensor, rows: Tensor) -> None:
    """Add float32 rows to those of the numbers, in place.

    Rows of one number are summed first, in float32 and always in the same order.
    """
    found, places, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
    ordered = rows[places.argsort(stable=True)]
    to[found] += torch.segment_reduce(ordered, "sum", lengths=counts).to(to.dtype)


def _within(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return which targets lie in a block of the vocabulary, and their columns there."""
    rows = ((targets >= block.start) & (targets < block.stop)).nonzero().squeeze(1)
    return rows, targets[rows] - block.start


def _runs(lengths: Sequence[int], chunk: int) -> Iterator[tuple[slice, int, int]]:
    """Yield runs of whole sequences of at most `chunk` tokens, a longer one alone: the sequences,
    and their first token and the one past their last.

    >>> list(_runs([4, 2, 7], 6))
    [(slice(0, 2, None), 0, 6), (slice(2, 3, None), 6, 13)]
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
