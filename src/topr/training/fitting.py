"""Which way of running a model fits it: each is tried before training, and none is trusted by name.

pi(y|x) is what a model says of one sequence by itself, in evaluation mode, whatever it was given
before and whatever follows: that is what a sampler gives. A model that has no such pi is
refused. The ways that are faster must give the same numbers on a few short sequences and on one as
long as the longest that will be run, so that a window or a scale of positions that begins late is
seen. Longer ones need no trial.

Not here: how a way is run (`topr.training.logprobs`).
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn

from topr.errors import TrainingError
from topr.models.wrappers import causal_lm, without_autocast
from topr.training.batches import Batch, Row, longest_row
from topr.training.logprobs import Forward

logger = logging.getLogger(__name__)

Layout = Literal["auto", "shared", "padded"]

PLAIN = Forward(share=False, chunk=False, alone=True)
"""What all others are compared with."""

PROBE_ROWS: tuple[tuple[int, int, int], ...] = (
    (0, 20, 3), (0, 20, 5), (1, 23, 4), (1, 23, 2), (2, 21, 3),
)  # fmt: skip
"""Group, prompt tokens and completion tokens of the short sequences."""
SCORED = 8
"""Tokens at the end of the long one, and of each of its beginnings, that are compared."""
FLOAT32_GAP = 1e-4
"""Largest difference of a token's log-probability in float32 that counts as rounding."""
COARSE_GAP = 0.05
"""Largest mean difference of tokens in bfloat16 and float16: single ones move by more than that
from one shape of the same product to the next."""
MUCH = {True: 10.0, False: 2.0}
"""How many times that, in float32 and else, a model must be off to be refused: some round more."""

Failures = (
    TrainingError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError
)  # fmt: skip
"""What a model, or code that it calls, raises where it was not made for a way of running."""


@torch.no_grad()
def forward_of(model: nn.Module, rows: Dataset, layout: Layout = "auto") -> Forward:
    """Find the fastest way of running a model that gives the numbers of single sequences.

    Args:
        model: on its device, in the types that it will have.
        rows: that it will be run on. The longest is tried.
        layout: `shared`: each prompt once; `padded`: never; `auto`: where the model allows it.

    Raises:
        TrainingError: no sampler follows what the model says (it is random, or tells tokens by
            those that come after them, or remembers what it was given), or `shared` is asked for
            and does not fit.

    """
    with without_autocast(model):  # which rounds more than a fault moves log-probabilities
        return _found(_Trial(model, longest_row(rows)), layout)


def _found(trial: "_Trial", layout: Layout) -> Forward:
    chunk = trial.try_chunks()
    alone = Forward(share=False, chunk=chunk is None, alone=True)
    padded = Forward(share=False, chunk=chunk is None)
    if layout != "padded":
        reason = chunk or trial.try_way(Forward(share=True, chunk=True))
        if reason is None:
            logger.info(
                "prompts are shared: sequences of up to %d tokens have the log-probabilities "
                "that they have by themselves",
                trial.longest,
            )
            return Forward(share=True, chunk=True)
        if layout == "shared":
            raise TrainingError(
                f"layout=shared does not fit {trial.name}: {reason}. Set layout=auto or padded"
            )
        logger.warning("prompts are not shared and sequences are padded: %s", reason)
    reason = trial.try_way(padded)
    if reason is None:
        return padded
    logger.warning(
        "each sequence is run by itself, which takes longer: %s depends on the sequences that "
        "it is padded with (%s)",
        trial.name, reason,
    )  # fmt: skip
    return alone


def fitting_forward(model: nn.Module, rows: Dataset, layout: Layout) -> Forward:
    """Return `forward_of` a model that is to be trained, once it is seen to have a gradient."""
    forward = forward_of(model, rows, layout)
    validate_gradient(model)
    return forward


def validate_gradient(model: nn.Module) -> None:
    """Refuse a model that has no gradient in evaluation mode, such as one with reversible layers.

    Raises:
        TrainingError: with what the model raised.

    """
    causal = causal_lm(model)
    embeddings = causal.get_input_embeddings()
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, found: Tensor) -> Tensor:
        leaves.append(found.detach().requires_grad_())
        return leaves[-1].clone()  # models may scale it in place

    hook = embeddings.register_forward_hook(cut)
    try:
        batch = PLAIN.batch(_short_rows(embeddings.weight.shape[0])[:1])
        said = PLAIN.token_logprobs(model, batch.to(next(model.parameters()).device))
        if leaves:
            torch.autograd.grad(said.sum(), leaves[0])
    except Failures as error:
        raise TrainingError(
            f"{type(causal).__name__} cannot be trained: in evaluation mode, in which it samples, "
            f"no gradient passes through it ({type(error).__name__}: {error})"
        ) from error
    finally:
        hook.remove()


class _Trial:
    """What a model says of single sequences, and whether it says the same in other ways."""

    def __init__(self, model: nn.Module, longest: Row) -> None:
        self.model = model
        self.name = type(causal_lm(model)).__name__
        self.device = next(model.parameters()).device
        self.exact = is_exact(model)
        self.rounding = 0.0
        """Largest difference of what must be the same."""
        self.short = _short_rows(causal_lm(model).get_input_embeddings().weight.shape[0])
        ids = [*longest["prompt_ids"], *longest["completion_ids"]]
        self.longest = len(ids)
        self.long = _ending(ids)
        weights = [each._version for each in model.parameters()]
        try:
            self.of_short = [self._said(row) for row in self.short]
            self.of_long = self._try_beginnings(ids)
            for row, before in zip(self.short, self.of_short, strict=True):
                self._must_agree(
                    before, self._said(row, once=True),
                    "depend on the sequences that it was given before",
                )  # fmt: skip
        except TrainingError:
            raise
        except Failures as error:
            raise TrainingError(
                f"{self.name} cannot be run on a sequence of up to {self.longest} tokens, the "
                f"longest row: {type(error).__name__}: {error}. Is that more than it has positions "
                "for, or than memory holds? Then set max_length"
            ) from error
        if weights != [each._version for each in model.parameters()]:
            raise TrainingError(
                f"{self.name} changes its own weights when it is run in evaluation mode, so what "
                "would be trained and saved is not what was loaded. Where its config has "
                "rescale_every (RWKV), set that to 0"
            )

    def try_chunks(self) -> str | None:
        """Return None where the head can be applied in chunks, else why not; and log that."""
        way = Forward(share=False, chunk=True, alone=True)
        reason = self._try(way, [[i] for i in range(len(self.short))])
        if reason is not None:
            logger.info("the head is not applied in chunks: %s", reason)
        return reason

    def try_way(self, way: Forward) -> str | None:
        """Return None where a way says the same of all sequences as one by itself, else why not.

        The long sequence is computed together with short ones.
        """
        short = list(range(len(self.short)))
        long = len(short)
        return self._try(way, [[*short, long]] if way.share else [short, [0, long]])

    def _try(self, way: Forward, parts: Sequence[Sequence[int]]) -> str | None:
        rows = [*self.short, self.long]
        expected = [*self.of_short, self.of_long]
        try:
            for part in parts:
                given = torch.cat([expected[i] for i in part])
                found = torch.cat(self._run(way.batch([rows[i] for i in part]), way))
                gap = difference(given, found, exact=self.exact)
                if gap > max(rounding(given, exact=self.exact), 2 * self.rounding):
                    return f"its log-probabilities would be off by {gap:.2g}"
        except Failures as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _said(self, row: Row, *, once: bool = False) -> Tensor:
        """Return what the model says of a sequence by itself, which must be the same twice."""
        (said,) = self._run(PLAIN.batch([row]))
        if not once:
            (again,) = self._run(PLAIN.batch([row]))
            self._must_agree(
                said, again,
                "differ from one pass to the next, in evaluation mode too, and an unchanged model "
                "would have a ratio other than 1",
            )  # fmt: skip
        return said

    def _try_beginnings(self, ids: list[int]) -> Tensor:
        """Return what the model says of the long sequence; of its beginnings it must say the same
        whatever follows. They grow, so that what is remembered of one is not more than the next.
        """
        sizes = [len(ids)]
        while sizes[0] >= 4:
            sizes.insert(0, sizes[0] // 2)
        said = [self._said(_ending(ids[:size]), once=True) for size in sizes[:-1]]
        ends = [range(size - min(SCORED, size - 1), size) for size in sizes]
        *found, of_long = self._run(_scoring(ids, ends))
        if said:
            self._must_agree(
                torch.cat(said), torch.cat(found),
                f"of the beginnings of a sequence of {len(ids)} tokens depend on the tokens that "
                "follow, and no sampler knows those. Where its positions are scaled by the length "
                "(rope_type longrope or dynamic), set max_length to the length up to which they "
                "are not (original_max_position_embeddings, or max_position_embeddings, of its "
                "config), or give its config one scale for all lengths",
            )  # fmt: skip
        return of_long

    def _run(self, batch: Batch, way: Forward | None = None) -> tuple[Tensor, ...]:
        values = (way or PLAIN).token_logprobs(self.model, batch.to(self.device))
        return values.split_with_sizes(batch.lengths)

    def _must_agree(self, a: Tensor, b: Tensor, what: str) -> None:
        gap = difference(a, b, exact=self.exact)
        if gap > MUCH[self.exact] * rounding(a, exact=self.exact):
            raise TrainingError(
                f"{self.name} cannot be trained on these rows: its log-probabilities {what} (they "
                f"moved by {gap:.2g})"
            )
        self.rounding = max(self.rounding, gap)


def is_exact(model: nn.Module) -> bool:
    """Whether a model computes in float32: what is more than its rounding is then clear."""
    switches: tuple[Any, ...] = (torch.backends, torch.backends.cuda.matmul)
    kinds = {getattr(switch, "fp32_precision", None) for switch in switches}  # of torch from 2.9 on
    if not hasattr(torch.backends, "fp32_precision"):
        kinds = {"tf32" if torch.get_float32_matmul_precision() != "highest" else None}
    types = {parameter.dtype for parameter in model.parameters()}  # integers: quantized ones
    return "tf32" not in kinds and types <= {torch.float32, torch.float64}


def difference(expected: Tensor, found: Tensor, *, exact: bool) -> float:
    """Return how far log-probabilities lie apart: at most if computed exactly, else on average.

    NaN agrees with NaN, since other code looks for it, and with nothing else.
    """
    same = (expected == found) | (expected.isnan() & found.isnan())  # infinite ones too
    gaps = (expected - found).abs().masked_fill(same, 0.0)
    gap = float(gaps.max() if exact else gaps.mean())
    return gap if gap == gap else torch.inf


def rounding(logprobs: Tensor, *, exact: bool) -> float:
    """Return the difference up to which two computations of the same numbers are the same."""
    scale = max(1.0, float(logprobs.nan_to_num(0.0, 0.0, 0.0).abs().max()) / 10)
    return scale * (FLOAT32_GAP if exact else COARSE_GAP)


def _short_rows(vocabulary: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (64,), generator=generator).tolist()
    return [
        {
            "group": group,
            # The prompts begin alike, and their ends differ.
            "prompt_ids": ids[: prompt - 2] + ids[40 + group : 42 + group],
            "completion_ids": ids[50 - 2 * i : 50 - 2 * i + completion],
            "temperature": 1.0,
        }
        for i, (group, prompt, completion) in enumerate(PROBE_ROWS)
    ]


def _ending(ids: list[int]) -> dict[str, Any]:
    """Return a row of which the last tokens are scored."""
    scored = min(SCORED, len(ids) - 1)
    return {
        "group": len(PROBE_ROWS),
        "prompt_ids": ids[:-scored],
        "completion_ids": ids[-scored:],
        "temperature": 1.0,
    }


def _scoring(ids: list[int], spans: Sequence[range]) -> Batch:
    """Return one sequence of which several spans of tokens are scored."""
    whole = PLAIN.batch([_ending(ids) | {"prompt_ids": ids[:1], "completion_ids": ids[1:]}])
    chosen = torch.tensor([i - 1 for span in spans for i in span])  # the first is not predicted
    return replace(
        whole,
        predicts=whole.predicts[chosen],
        targets=whole.targets[chosen],
        temperature=whole.temperature[chosen],
        lengths=tuple(map(len, spans)),
    )
