"""Which way of decoding gives a model's own log-probabilities: found by trying, before anything is
drawn.

A trial draws a few completions of random prompts side by side, as the engine would, and compares
their log-probabilities with one plain forward pass over each sequence alone. Windows that lie in a
mask alone, positions that a model counts itself, states that padding enters and frequencies that
depend on the longest sequence of a batch all show there, whatever the architecture.

Not here: how rows are decoded (`topr.engines.decoding`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from topr.engines.columns import Batching
from topr.engines.decoding import Decoding
from topr.engines.stops import StopStrings
from topr.errors import ModelError
from topr.lengths import named_lengths, positions_of
from topr.records import SamplingParams

logger = logging.getLogger(__name__)

PROMPTS = (1, 2, 9, 9, 23, 17)
"""Tokens of the prompts of the short trial. Two are alike, and so share a batch in every way."""
STEPS = 12
"""Tokens that are drawn for each, at most."""
ENDING = 8
"""One token in so many ends a completion of the short trial, so that rows leave at odd times."""
MARGIN = 3
"""How far before a length that the config names a prompt of a long trial ends, and how far behind
it another does."""
EXACT, LARGEST = 1e-4, 1e-3
"""Nats that a token may be off in float32. More passes, up to the second, where the model rounds
more: up to `ROUNDINGS` times what a plain pass is off when a sequence lies beside copies of itself."""
ROUNDINGS = 5
AVERAGE = 0.1
"""Nats that tokens may be off on average in shorter types, whose rounding is of that order."""

_NOTES = {
    Batching.PADDED: "completions are drawn batch by batch",
    Batching.LEVEL: "completions are drawn batch by batch, beside those with prompts as long alone",
    Batching.SINGLE: "completions are drawn one at a time, which is slow",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Completions to be tried side by side."""

    prompts: tuple[int, ...]
    """Their lengths."""
    steps: int
    ends: bool
    """Whether some tokens end a completion."""


def find_batching(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reach: int
) -> Batching:
    """Return the fastest way of decoding that is right for a model.

    Args:
        model: on its device, in its type, in evaluation mode.
        tokenizer: any; no text is made.
        reach: tokens of the longest sequence, prompt and completion, that is to be drawn. Lengths
            below it that the config names are tried too.

    Raises:
        ModelError: no way is right.

    """
    found: dict[str, None] = {}
    for batching in Batching:
        reason = _trouble(model, tokenizer, batching, reach)
        if reason is None:
            if batching in _NOTES:
                logger.warning("%s: %s", _NOTES[batching], "; ".join(found))
            return batching
        found[reason] = None
    raise ModelError(
        f"{type(model).__name__} cannot be drawn from by the engine transformers: whether its "
        "completions are decoded side by side or one at a time, their log-probabilities are not "
        f"those of a plain forward pass over each sequence ({'; '.join(found)}). Completions of "
        f"up to {reach} tokens with their prompts were tried. Where the model changes with the "
        "length of a sequence, lower max_tokens or leave long prompts out; else draw with another "
        "engine (generate.engine) and set train.behavior_logprobs=recompute"
    )


def cases(lengths: Sequence[int], reach: int) -> Iterator[Case]:
    """Yield what is to be tried: short sequences, and some around each length that is reached."""
    steps = max(1, min(STEPS, reach - 1))
    yield Case(
        prompts=tuple(max(1, min(length, reach - steps)) for length in PROMPTS),
        steps=steps,
        ends=True,
    )
    steps = 2 * MARGIN
    for length in lengths:
        if length < reach:
            before = max(1, length - MARGIN)
            behind = max(1, min(length + MARGIN, reach - steps))
            yield Case(
                prompts=(PROMPTS[2], before, behind), steps=min(steps, reach - before), ends=False
            )


def _trouble(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batching: Batching, reach: int
) -> str | None:
    """Say what is wrong with a way of decoding; None where nothing is."""
    limit = positions_of(model.config)
    reach = reach if limit is None else min(reach, limit)
    for case in cases(named_lengths(model.config), reach):
        try:
            gap, allowed = _gap(model, tokenizer, batching, case)
        # A model that a way does not fit may fail in any manner, and the next way is tried.
        except torch.OutOfMemoryError:
            raise
        except (ModelError, ArithmeticError, AssertionError, AttributeError, LookupError,
                NotImplementedError, RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            text = str(error).strip().splitlines() or [""]
            return f"{batching}: {text[0]}" if isinstance(error, ModelError) else (
                f"{batching}: {type(error).__name__}: {text[0]}"
            )
        if not gap <= allowed:
            longest = max(case.prompts) + case.steps
            return f"{batching}: off by {gap:.2g} nats a token at a length of up to {longest}"
    return None


@torch.inference_mode()
def _gap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batching: Batching, case: Case
) -> tuple[float, float]:
    """Return how many nats a token the recorded log-probabilities are off, and how many may pass."""
    generator = np.random.default_rng(0)
    size = int(model.get_input_embeddings().weight.shape[0])
    # Some models do not count padding as a position, wherever it is: no text has it inside.
    text = model.config.get_text_config(decoder=True)
    special = {*tokenizer.all_special_ids, getattr(text, "pad_token_id", None)}
    plain = np.array([token for token in range(size) if token not in special])
    prompts = [tuple(generator.choice(plain, size=n).tolist()) for n in case.prompts]
    ends = {*special, *(range(0, size, ENDING) if case.ends else ())} - {None}
    decoding = Decoding(
        model,
        prompts,
        lambda number: np.random.default_rng((0, number)),
        SamplingParams(max_tokens=case.steps),
        eos_ids=sorted(ends),
        stops=StopStrings(tokenizer, ()),
        batch_size=len(prompts) - 1 if case.ends else len(prompts),
        batching=batching,
    )
    gaps: list[torch.Tensor] = []
    roundings = [0.0]
    while ended := decoding.advance():
        for decoded in ended:
            ids = [*prompts[decoded.number], *decoded.ids]
            plain, beside = (
                _plain_logprobs(model, ids, len(decoded.ids), copies) for copies in (1, 2)
            )
            scale = (plain.abs() / 10).clamp(min=1.0)
            gaps.append((torch.tensor(decoded.logprobs, device=plain.device) - plain).abs() / scale)
            roundings.append(float(((beside - plain).abs() / scale).max()))
    gap = torch.cat(gaps)
    if not torch.isfinite(gap).all() and torch.isnan(plain).any():
        return 0.0, 0.0  # the model has diverged: drawing will say so
    if model.dtype != torch.float32:
        return float(gap.mean()), AVERAGE
    return float(gap.max()), min(LARGEST, max(EXACT, ROUNDINGS * max(roundings)))


def _plain_logprobs(
    model: PreTrainedModel, ids: Sequence[int], last: int, copies: int
) -> torch.Tensor:
    """Return the log-probabilities of the last tokens of a sequence, [T] float32, by a forward pass
    over it, beside copies of itself.
    """
    ids_BT = torch.tensor([list(ids)] * copies, device=model.device)
    logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0, -last - 1 : -1]
    return logits_TV.float().log_softmax(-1).gather(1, ids_BT[0, -last:, None])[:, 0]
