"""From logits to tokens and their log-probabilities: pure tensor functions.

Not here: models, caches, when a completion ends, and where the random numbers come from
(`topr.engines.rng`). Shapes: _B sequences, _V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional

from topr.records import SamplingParams

BLOCK = 512
"""Tokens whose probabilities are added up before one of them is looked for."""
CACHED = 2**19
"""Probabilities that are worked on at a time, about: they stay in a processor's cache."""


def sampled_log_probs(logits_BV: Tensor, sampling: SamplingParams) -> Tensor:
    """Return the log-probabilities of the distribution that is sampled, [B, V] float32.

    log softmax(logits / temperature), cut to the `top_k` likeliest tokens, then to the smallest
    set whose mass (within those) reaches `top_p`, each time renormalised; -inf outside. Of tokens
    that tie at a cut, as many stay as the cut has room for.

    Args:
        logits_BV: any floating type.
        sampling: its temperature must be positive; with temperature 0 nothing is sampled.

    """
    scaled_BV = logits_BV.float() / sampling.temperature
    if 0 < sampling.top_k < scaled_BV.shape[-1]:
        scaled_BV = _keep_top_k(scaled_BV, sampling.top_k)
    if sampling.top_p < 1.0:
        scaled_BV = _keep_top_p(scaled_BV, sampling.top_p)
    return scaled_BV.log_softmax(-1)


def _keep_top_k(logits_BV: Tensor, top_k: int) -> Tensor:
    values_BK, tokens_BK = logits_BV.topk(top_k, dim=-1)
    return torch.full_like(logits_BV, -torch.inf).scatter(-1, tokens_BK, values_BK)


def _keep_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    sorted_BV, tokens_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probs_BV = sorted_BV.softmax(-1)
    # A token stays where the mass of the likelier ones has not reached top_p: the first always.
    mass_before_BV = probs_BV.cumsum(-1) - probs_BV
    mass_before_BV[:, 0] = 0.0
    sorted_BV = sorted_BV.masked_fill(mass_before_BV >= top_p, -torch.inf)
    return torch.empty_like(logits_BV).scatter_(-1, tokens_BV, sorted_BV)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution, in vocabulary order.

    Each row depends on its own logits and its own uniform only. The cumulative sum is float64 over
    float32 probabilities, so a token's chance is right to about 1e-7 of itself (on MPS, with a
    float32 sum, to about 1e-7 times the size of the vocabulary).

    Args:
        logits_BV: any floating type.
        uniforms_B: in [0, 1); not read when the temperature is 0.
        sampling: temperature 0 takes the likeliest token, with log-probability 0.

    Returns:
        The tokens, [B] int64, and their log-probabilities, [B] float32. A row whose logits hold a
        NaN has log-probability NaN, and a meaningless token.

    """
    if sampling.temperature == 0.0:
        best_B, tokens_B = logits_BV.float().max(-1)
        return tokens_B, best_B - best_B  # 0, and NaN where the logits are broken
    rows = (
        max(1, CACHED // logits_BV.shape[-1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    )
    parts = [
        _draw(logits_BV[i : i + rows], uniforms_B[i : i + rows], sampling)
        for i in range(0, len(logits_BV), rows)
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw as `draw` does: find the block of tokens that the target falls into, then the token.

    For example, with blocks of 2 and u = 0.55: probabilities .1 .3 | .2 .4 add up to .4 and 1.0, so
    the second block holds the target, and in it .15 is left: the third token.

    The sum over a block of 512 is float32, sums of blocks are float64. A vocabulary of 152,000 then
    needs one pass of float32, where a cumulative sum over all of it takes longer than the model.
    """
    if sampling.top_k or sampling.top_p < 1.0:
        scaled_BV = sampled_log_probs(logits_BV, sampling)
    else:
        scaled_BV = logits_BV.float()
        if sampling.temperature != 1.0:
            scaled_BV = scaled_BV / sampling.temperature
    top_B1 = scaled_BV.amax(-1, keepdim=True)
    mass_BV = (scaled_BV - top_B1).exp_()
    block = min(BLOCK, mass_BV.shape[-1])
    missing = -mass_BV.shape[-1] % block
    # [B, blocks, BLOCK]
    blocks = functional.pad(mass_BV, (0, missing)).view(len(mass_BV), -1, block)
    wide = widest_float(mass_BV.device)
    upto_blocks = blocks.sum(-1).to(wide).cumsum(-1)
    total_B1 = upto_blocks[:, -1:]
    target_B1 = _below(uniforms_B.to(wide)[:, None] * total_B1, total_B1)
    block_B1 = torch.searchsorted(upto_blocks, target_B1, right=True)
    block_B1 = block_B1.clamp(max=upto_blocks.shape[-1] - 1)
    before_B1 = functional.pad(upto_blocks, (1, 0)).gather(-1, block_B1)
    row_B = torch.arange(len(blocks), device=blocks.device)
    upto_BK = blocks[row_B, block_B1[:, 0]].to(wide).cumsum(-1)
    rest_B1 = _below(target_B1 - before_B1, upto_BK[:, -1:])
    place_B1 = torch.searchsorted(upto_BK, rest_B1, right=True)
    # Rows of NaN search past the end.
    tokens_B1 = (block_B1 * block + place_B1).clamp(max=logits_BV.shape[-1] - 1)
    logprobs_B1 = scaled_BV.gather(-1, tokens_B1) - top_B1 - total_B1.log().float()
    return tokens_B1[:, 0], logprobs_B1[:, 0]


def _below(target_B1: Tensor, total_B1: Tensor) -> Tensor:
    """Return the target, below the total even where rounding lifts it up to that: so a token with a
    positive probability is found, the first whose cumulative mass exceeds the target.
    """
    return target_B1.minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
