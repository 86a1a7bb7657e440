"""Token log-probabilities of a model. The only code that turns a model and tokens into them,
for the policy that is trained and for the behaviour model alike.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from topr.training.batches import PaddedBatch


def token_logprobs(model: nn.Module, batch: PaddedBatch) -> Tensor:
    """Return log pi(y_t | x, y_<t) of each completion token, [B, T] float32, 0 at padding.

    The distribution is softmax(logits / temperature) over the whole vocabulary; natural
    logarithm. Gradients flow where they are enabled.

    Args:
        model: a causal language model of transformers, possibly wrapped (DDP, peft).
        batch: on the model's device.

    """
    first = int(batch.predicts.min())
    logits = _logits(model, batch, first)  # [B, S - first, V]
    rows, steps = batch.mask.nonzero(as_tuple=True)
    scored = logits[rows, batch.predicts[rows, steps] - first].float()  # [N, V]
    scored = scored / batch.temperature[rows, None]
    chosen = scored.gather(1, batch.targets[rows, steps, None]).squeeze(1)
    logprobs = torch.zeros(batch.mask.shape, dtype=torch.float32, device=scored.device)
    return logprobs.index_put((rows, steps), chosen - scored.logsumexp(dim=1))


def _logits(model: nn.Module, batch: PaddedBatch, first: int) -> Tensor:
    """Return the logits from position `first` on. Those before it predict prompt tokens only."""
    keep: dict[str, Any] = {}
    if _keeps_logits(model):
        keep["logits_to_keep"] = torch.arange(
            first, batch.input_ids.shape[1], device=batch.input_ids.device
        )
    output: Any = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **keep
    )
    logits: Tensor = output.logits
    return logits if keep else logits[:, first:]


def _keeps_logits(model: nn.Module) -> bool:
    """Whether the model can leave out logits that nobody asks for (most can)."""
    inner: Any = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
