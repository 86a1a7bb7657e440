"""Token log-probabilities of a model. The only code that turns a model and tokens into them,
for the policy that is trained and for the behaviour model alike.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from topr.errors import TrainingError
from topr.training.attention import tree_attention_of
from topr.training.batches import Batch, Row, padded, shared
from topr.training.head import Head, Weigh, head_logprobs, weighted_loss

logger = logging.getLogger(__name__)

Choice = Literal["auto", "shared", "padded"]

PROBE_ROWS: tuple[tuple[int, int, int], ...] = (
    (0, 20, 3), (0, 20, 5), (1, 23, 4), (1, 23, 2), (2, 21, 3),
)  # fmt: skip
"""Group, prompt tokens and completion tokens of the rows that a way of running is tried on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """How a model is run over sequences.

    The plain way, padded sequences and the model's own logits, is right for every model. The two
    shortcuts give the same numbers for the models that allow them: `forward_of` tries.
    """

    share: bool
    """Each prompt is computed once, and nothing is padded."""
    chunk: bool
    """The head is applied in chunks, to completion positions only."""

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Lay rows out."""
        return shared(rows) if self.share else padded(rows)

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Run a model this way for a while; a backward pass belongs inside as well."""
        if self.share:
            with tree_attention_of(_causal_lm(model)):
                yield
        else:
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
        TrainingError: the output layer is no plain linear one.

    """
    layer: Any = _causal_lm(model).get_output_embeddings()
    if type(layer).forward is not nn.Linear.forward:
        raise TrainingError("the output layer is no plain linear one: it was replaced")

    def forward(hidden: Tensor) -> Tensor:
        head = Head(weight=layer.weight, bias=layer.bias)
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
    keep: dict[str, Any] = {}
    width = batch.input_ids.shape[1]
    column = batch.predicts % width
    first = int(column.min())  # The logits before it predict prompt tokens only.
    if "logits_to_keep" in inspect.signature(_causal_lm(model).forward).parameters:
        keep["logits_to_keep"] = torch.arange(first, width, device=column.device)
    output: Any = model(**_inputs(batch), **keep)
    logits: Tensor = output.logits
    return logits[batch.predicts // width, column - (first if keep else 0)]


def _causal_lm(model: nn.Module) -> Any:
    """Return the causal language model inside its wrappers."""
    inner: Any = model
    while (wrapped := getattr(inner, "module", None)) is not None:
        inner = wrapped
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def forward_of(model: nn.Module, layout: Choice = "auto") -> Forward:
    """Find the fastest way of running a model that gives the numbers of the plain one.

    Each shortcut is tried on a few random tokens, so that a model that it does not fit is noticed
    whatever its architecture.

    Args:
        model: on its device, in the types that it will have.
        layout: `shared`: each prompt once; `padded`: never; `auto`: where the model allows it.

    Raises:
        TrainingError: `shared` is asked for and the model does not allow it.

    """
    plain = Forward(share=False, chunk=False)
    chunked = Forward(share=False, chunk=True)
    fits = _same(model, plain, chunked)
    if fits is not None:
        logger.info("the head is not applied in chunks: %s", fits)
    safe = chunked if fits is None else plain
    if layout == "padded":
        return safe
    reason = (
        fits
        or _unshareable(_causal_lm(model))
        or _same(model, plain, Forward(share=True, chunk=True))
    )
    if reason is None:
        return Forward(share=True, chunk=True)
    if layout == "shared":
        raise TrainingError(
            f"layout=shared does not fit {type(_causal_lm(model)).__name__}: {reason}. Set "
            "layout=auto or padded"
        )
    logger.warning("prompts are not shared and sequences are padded: %s", reason)
    return safe


def _unshareable(causal: Any) -> str | None:
    """Say why a model's layers cannot attend by trees, where a short trial would not show it."""
    config = causal.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"its layers are of kind {', '.join(sorted(kinds))}"
    if not getattr(causal, "_supports_attention_backend", False):
        return "it does not take attention functions of others"
    return None


@torch.no_grad()
def _same(model: nn.Module, plain: Forward, other: Forward) -> str | None:
    """Return None where both ways give the same log-probabilities, else what happened."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    size = _causal_lm(model).get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (64,), generator=generator).tolist()
    rows = [
        {
            "group": group,
            # The prompts begin alike, and their ends differ.
            "prompt_ids": ids[: prompt - 2] + ids[40 + group : 42 + group],
            "completion_ids": ids[50 - 2 * i : 50 - 2 * i + completion],
            "temperature": 1.0,
        }
        for i, (group, prompt, completion) in enumerate(PROBE_ROWS)
    ]
    training = model.training
    model.eval()
    try:
        expected, found = (
            way.token_logprobs(model, way.batch(rows).to(parameter.device))
            for way in (plain, other)
        )
    except (
        TrainingError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RuntimeError,
    ) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        model.train(training)
    tolerance = 1e-4 if parameter.dtype == torch.float32 else 0.1
    gap = float((expected - found).abs().max())
    if gap <= tolerance * max(1.0, float(expected.abs().max()) / 10):
        return None
    return f"its log-probabilities would be off by {gap:.2g}"
