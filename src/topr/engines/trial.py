"""Which way of decoding gives a model's own log-probabilities: found by trying, before anything is
sampled.

A trial samples a few completions of random prompts side by side, as the engine would, and compares
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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from topr.engines.decoding import Decoded, Decoding
from topr.engines.kv_cache import Batching
from topr.engines.prompt_cache import SHORTEST_BEGINNING
from topr.engines.stops import StopStrings
from topr.errors import ModelError
from topr.models.lengths import named_lengths, positions_of
from topr.models.wrappers import logits_to_keep
from topr.records import SamplingParams

logger = logging.getLogger(__name__)

PROMPTS = (23, 9, 9, 5, 1)
"""Tokens of the prompts of the short trial. Two are as long, and so may share any batch."""
STEPS = 12
"""Tokens that are sampled for each, at most."""
LENGTHS = (3, 7, STEPS)
"""Tokens after which the first, second and third row of a batch of the short trial end."""
MARGIN = 3
"""How far before a length that the config names a prompt of a long trial ends, and how far behind
it another does; behind the last length that is reached, as far as the run goes."""
EXACT, LARGEST = 3e-5, 1e-3
"""Nats that a token may be off in float32. More passes, up to the second, where the model rounds
more: `ROUNDINGS` times what plain passes of other shapes are off over a sequence's first `ROUNDED`
tokens."""
ROUNDINGS, ROUNDED = 5, 64
AVERAGE = 0.1
"""Nats that tokens may be off on average in shorter types, whose rounding is of that order."""

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
"""A model that a way does not fit may fail in any manner: the next way is tried."""

_NOTES = {
    Batching.PADDED: "completions are drawn batch by batch",
    Batching.LEVEL: "completions are drawn batch by batch, each with prompts of one length",
    Batching.SINGLE: "completions are drawn one at a time, which is slow",
}


class _Ends(StopStrings):
    """Ends rows at the lengths that are wanted, whatever they have written."""

    def __init__(self) -> None:
        self.tail = STEPS

    def __bool__(self) -> bool:
        return True

    def completed(self, tails: Sequence[Sequence[int]]) -> list[bool]:
        return [len(ids) >= LENGTHS[row % len(LENGTHS)] for row, ids in enumerate(tails)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Completions to be tried side by side."""

    prompts: tuple[int, ...]
    """Their lengths."""
    steps: int
    ends: bool
    """Whether rows end at unlike lengths."""
    beginning: int = 0
    """Tokens that all prompts begin with, before their own."""


def find_batching(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reach: int,
    *,
    sharing: bool = True,
) -> Batching:
    """Return the fastest way of decoding that is right for a model.

    Args:
        model: on its device, in its type, in evaluation mode.
        tokenizer: any; no text is made.
        reach: tokens of the longest sequence, prompt and completion, that is to be sampled. Lengths
            below it that the config names are tried too.
        sharing: whether it pays to hold once what rows begin with.

    Raises:
        ModelError: no way is right.

    """
    found: dict[str, None] = {}
    for batching in list(Batching)[0 if sharing else 1 :]:
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


@torch.inference_mode()
def kept_bytes(model: PreTrainedModel) -> list[int]:
    """Return how many bytes the cache of each layer keeps of a token: found by running one.

    Nothing where the model keeps something else than keys and values, or cannot be run so.
    """
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    try:
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
        return [layer.keys.nbytes + layer.values.nbytes for layer in layers]
    except FAILURES:
        return []


def cases(lengths: Sequence[int], reach: int, batching: Batching) -> Iterator[Case]:
    """Yield what is to be tried: short sequences, and some around each length that is reached."""
    steps = max(1, min(STEPS, reach - 1))
    beginning = SHORTEST_BEGINNING if batching is Batching.SHARED else 0
    if reach - steps <= beginning:
        beginning = 0
    prompts = tuple(max(1, min(length, reach - steps - beginning)) for length in PROMPTS)
    yield Case(prompts=prompts, steps=steps, ends=True, beginning=beginning)
    reached = [length for length in lengths if length < reach]
    for length in reached:
        before = max(1, length - MARGIN)
        steps = min(2 * MARGIN, reach - before)
        behind = reach if length == reached[-1] else length + MARGIN
        prompts = tuple(max(1, min(n, reach - steps)) for n in (PROMPTS[1], before, behind))
        yield Case(prompts=prompts, steps=steps, ends=False)


def _trouble(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batching: Batching, reach: int
) -> str | None:
    """Say what is wrong with a way of decoding; None where nothing is."""
    limit = positions_of(model.config)
    reach = reach if limit is None else min(reach, limit)
    for case in cases(named_lengths(model.config), reach, batching):
        try:
            gap, allowed = _gap(model, tokenizer, batching, case)
        except torch.OutOfMemoryError:
            raise
        except ModelError as error:
            return str(error)
        except FAILURES as error:
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[0]}"
        if not gap <= allowed:
            longest = case.beginning + max(case.prompts) + case.steps
            return f"off by {gap:.2g} nats a token at a length of up to {longest}"
    return None


@torch.inference_mode()
def _gap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batching: Batching, case: Case
) -> tuple[float, float]:
    """Return how many nats a token the recorded log-probabilities are off, and how many may be."""
    gaps: list[Tensor] = []
    longest: list[int] = []
    for prompt, decoded in _drawn(model, tokenizer, batching, case):
        ids = [*prompt, *decoded.ids]
        plain = _plain_logprobs(model, ids, len(prompt))
        if torch.isnan(plain).any():
            return 0.0, 0.0  # the model has diverged: what is sampled will say so
        found = torch.tensor(decoded.logprobs, device=plain.device)
        gaps.append((found - plain).abs() / _scale(plain))
        longest = max(longest, ids, key=len)
    gap = torch.cat(gaps)
    if model.dtype in (torch.bfloat16, torch.float16):
        return float(gap.mean()), AVERAGE
    return float(gap.max()), min(LARGEST, max(EXACT, ROUNDINGS * _rounding(model, longest)))


def _drawn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batching: Batching, case: Case
) -> Iterator[tuple[tuple[int, ...], Decoded]]:
    """Draw a case's completions; yield each with its prompt."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    text = model.config.get_text_config(decoder=True)
    # Some models do not count padding as a position, wherever it is: no text has it inside.
    padding: int | None = getattr(text, "pad_token_id", None)
    special = set(tokenizer.all_special_ids) | ({padding} if padding is not None else set())
    generator = np.random.default_rng(0)
    plain = np.array([token for token in range(size) if token not in special])
    beginning = generator.choice(plain, size=case.beginning).tolist()
    prompts = [(*beginning, *generator.choice(plain, size=n).tolist()) for n in case.prompts]
    decoding = Decoding(
        model,
        prompts,
        lambda number: np.random.default_rng((0, number)),
        SamplingParams(max_tokens=case.steps),
        eos_ids=(),
        stops=_Ends() if case.ends else StopStrings(tokenizer, ()),
        batch_size=len(LENGTHS),
        batching=batching,
    )
    while ended := decoding.advance():
        for decoded in ended:
            yield prompts[decoded.number], decoded


def _scale(logprobs: Tensor) -> Tensor:
    """Return what a difference is divided by: 1, more where a log-probability is far below 0."""
    return (logprobs.abs() / 10).clamp(min=1.0)


def _plain_logprobs(model: PreTrainedModel, ids: Sequence[int], start: int) -> Tensor:
    """Return the log-probabilities of a lone sequence's tokens from `start` on, [T] float32."""
    ids_BT = torch.tensor([list(ids)], device=model.device)
    count = len(ids) - start
    kept = logits_to_keep(model, count + 1)
    logits: Tensor = model(input_ids=ids_BT, use_cache=False, **kept).logits
    log_probs = logits[0, -count - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(1, ids_BT[0, start:, None])[:, 0]


def _rounding(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """Return how much the likeliest tokens' log-probabilities move in passes of other shapes."""
    ids_BT = torch.tensor([list(ids[:ROUNDED])], device=model.device)
    found = [
        model(input_ids=other, use_cache=False).logits[0].float().log_softmax(-1).amax(-1)
        for other in (
            ids_BT,
            ids_BT.repeat(2, 1),
            ids_BT[:, :-1],
            ids_BT[:, : ids_BT.shape[1] // 2 + 1],
        )
    ]
    return max(float((each - found[0][: len(each)]).abs().max()) for each in found[1:])
