"""Token log-probabilities of a model. The only code that turns a model and tokens into them,
for the policy that is trained and for the behaviour model alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from topr.errors import TrainingError
from topr.models.attention import attention_of
from topr.models.evaluation_mode import evaluate
from topr.models.wrappers import causal_lm, logits_to_keep
from topr.training.attention import NAME
from topr.training.batches import Batch, Row, padded, shared, split_by_tokens
from topr.training.head import Head, Weigh, head_logprobs, weighted_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """How a model is run over sequences.

    The plain way, one sequence at a time and the model's own logits, is what pi is. The others give
    the same numbers for the models that allow them: `topr.training.fitting` tries.
    """

    share: bool
    """Each prompt is computed once, and nothing is padded."""
    chunk: bool
    """The head is applied in chunks, to completion positions only."""
    alone: bool = False
    """Each sequence is a forward pass by itself; otherwise several are, padded where not shared."""

    def split(self, rows: Sequence[Row], budget: int | None) -> list[list[int]]:
        """Split rows into passes of at most `budget` tokens; see `split_by_tokens`."""
        if self.alone:
            return [[i] for i in range(len(rows))]
        return split_by_tokens(rows, budget, share=self.share)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Lay the rows of a pass out."""
        if self.alone:  # Nothing is padded: no mask is needed, and none is given.
            return replace(padded(rows), attention_mask=None)
        return shared(rows) if self.share else padded(rows)

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Run a model this way for a while; a backward pass belongs inside as well.

        In evaluation mode, always, and the model stays in it.
        """
        evaluate(model)
        with attention_of(causal_lm(model), NAME) if self.share else nullcontext():
            yield

    def token_logprobs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log pi(y_t | x, y_<t) of the completion tokens end to end, [N] float32.

        The distribution is softmax(logits / temperature) over the whole vocabulary; natural
        logarithm. Gradients flow where they are enabled.

        Args:
            model: a causal language model of transformers, possibly wrapped by peft.
            batch: on the model's device.

        """
        with self.of(model):
            if self.chunk:
                return _headless(
                    model,
                    batch,
                    lambda head, hidden: head_logprobs(
                        head, hidden, batch.targets, batch.temperature
                    ),
                )
            logits = _logits(model, batch).float() / batch.temperature[:, None]
            return logits.gather(1, batch.targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)

    def weighted_loss(self, model: nn.Module, batch: Batch, weigh: Weigh) -> tuple[Tensor, Tensor]:
        """Return -sum(weight * log pi) over the batch, ready for backward, and log pi, [N].

        To be called within `of`, where its backward pass belongs too.

        Args:
            model: as in `token_logprobs`.
            batch: likewise.
            weigh: from the log-probabilities of some of the batch's sequences to the weight of each
                token; called once for each sequence.

        """
        if self.chunk:
            seen: list[Tensor] = []

            def loss_of(head: Head, hidden: Tensor) -> Tensor:
                loss, logprobs = weighted_loss(
                    head, hidden, batch.targets, batch.temperature, batch.lengths, weigh
                )
                seen.append(logprobs)
                return torch.stack([loss])  # no view: wrappers hang hooks onto it

            return _headless(model, batch, loss_of).squeeze(), seen[0]
        logprobs = self.token_logprobs(model, batch)
        weights = weigh(logprobs.detach(), slice(0, len(batch.lengths)))
        return -(weights * logprobs).sum(), logprobs.detach()


def _headless(model: nn.Module, batch: Batch, run: Callable[[Head, Tensor], Tensor]) -> Tensor:
    """Run the model with `run` in its output layer's place, and return what that returns.

    `run` is given the layer's weights and the hidden states that predict the completion tokens,
    [N, H]. All of it happens inside the model's own forward pass, where wrappers that shard weights
    have gathered the layer's.

    Raises:
        TrainingError: the output layer is not a plain linear one.

    """
    layer: Any = causal_lm(model).get_output_embeddings()
    if type(layer).forward is not nn.Linear.forward:
        raise TrainingError("the output layer is not a plain linear one: it was replaced")

    def forward(hidden: Tensor) -> Tensor:
        head = Head(matrix=layer.weight, bias=layer.bias)
        return run(head, hidden.flatten(0, 1).index_select(0, batch.predicts))

    layer.forward = forward  # of this one layer: its class keeps its own
    try:
        output: Any = model(**_inputs(batch))
    finally:
        del layer.forward
    found: Tensor = output.logits
    return found


def _inputs(batch: Batch) -> dict[str, Any]:
    named = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "tree": batch.tree,
    }
    return {"use_cache": False} | {k: v for k, v in named.items() if v is not None}


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the model's own logits at the predicting positions, [N, V]."""
    width = batch.input_ids.shape[1]
    columns, at = torch.unique(batch.predicts % width, return_inverse=True)
    keep = logits_to_keep(model, columns)
    if not keep:
        at = columns[at]
    output: Any = model(**_inputs(batch), **keep)
    logits: Tensor = output.logits
    return logits[batch.predicts // width, at]
