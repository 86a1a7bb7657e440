"""Draws completions side by side with a key-value cache: as some end, others take their places.

Not here: how the cache is laid out (`topr.engines.kv_cache`); how a token is chosen
(`topr.engines.sampling`); records (`topr.engines.transformers`). Shapes: _B rows of the batch, _P
distinct prompts, _T positions.

A prompt is run up to its last token, once for all of its completions. That last token is then the
first of every row that goes through the model side by side, so a row that enters differs in nothing
from one that is there.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from topr.engines.kv_cache import Batching, BatchKVCache, Ids, SlotKVCache
from topr.engines.prompt_cache import PromptCache
from topr.engines.sampling import draw, widest_float
from topr.engines.stops import StopStrings
from topr.errors import ModelError
from topr.models.wrappers import logits_to_keep
from topr.records import SamplingParams

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call their cache: attention models, state-space models, RWKV."""

TURNOVER = 8
"""Rows leave once one in so many has ended: others then enter, or the cache is copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A completion that has ended."""

    number: int
    """Which one, counted from 0."""
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    """By an end-of-sequence token or a stop string, not by the token limit."""


@dataclass(kw_only=True, slots=True)
class _Rows:
    """What the rows of the batch have written."""

    number: Tensor  # [B] int64: which completion
    length: Tensor  # [B] int64: tokens of prompt and completion
    newest: Tensor  # [B] int64: the last of them, which the cache does not hold yet
    written: Tensor  # [B] int64: tokens of the completion
    stopped: Tensor  # [B] bool
    ids: Tensor  # [B, T + 1] int64: the last place is for rows that have ended and not left
    logprobs: Tensor  # [B, T + 1] float32
    uniforms: Tensor  # [B, T + 1] float64

    def __len__(self) -> int:
        return len(self.number)

    def select(self, rows: Tensor) -> "_Rows":
        """Return some of the rows."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def put(self, places: Tensor, others: "_Rows") -> None:
        """Overwrite rows."""
        for f in fields(self):
            getattr(self, f.name)[places] = getattr(others, f.name)


def _cache_for(
    model: PreTrainedModel, batching: Batching, prefixes: Sequence[Ids]
) -> PromptCache | SlotKVCache | BatchKVCache:
    """Return an empty cache.

    Raises:
        ModelError: the model cannot have it.

    """
    if batching is Batching.SHARED:
        return PromptCache(model, prefixes)
    return SlotKVCache(model.config) if batching is Batching.REFILLED else BatchKVCache()


class Decoding:
    """Completions that are being sampled, from the first to the last."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[tuple[int, ...]],
        uniforms: Callable[[int], np.random.Generator],
        sampling: SamplingParams,
        *,
        eos_ids: Sequence[int],
        stops: StopStrings,
        batch_size: int,
        batching: Batching,
    ) -> None:
        """Begin with an empty batch.

        Args:
            model: with a key-value cache, in evaluation mode whenever `advance` is called.
            prompts: the prompt of each completion, not empty. Equal ones should be neighbours.
            uniforms: from the number of a completion to its random numbers: the t-th `random()`
                chooses its t-th token.
            sampling: how tokens are chosen, and the token limit.
            eos_ids: tokens that end a completion.
            stops: strings that do.
            batch_size: rows side by side, at most.
            batching: which rows may lie side by side.

        """
        self._model = model
        self._device = model.device
        self._prompts = prompts
        self._uniforms = uniforms
        self._sampling = sampling
        self._eos_E = torch.tensor(list(eos_ids), dtype=torch.long, device=self._device)
        self._stops = stops
        self._batch_size = batch_size
        self._batching = batching
        parameters = inspect.signature(model.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes_positions = anything or "position_ids" in parameters
        self._cache_name = next(
            (name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0]
        )
        # Spares the head all positions of a prompt; models that take no such argument compute them.
        self._last_only = logits_to_keep(model, 1)
        self._entered = 0  # completions that have been begun: the others wait
        self._columns = _cache_for(model, batching, [prompt[:-1] for prompt in prompts])
        self._rows = self._new_rows(range(0))

    @torch.inference_mode()
    def advance(self) -> list[Decoded]:
        """Draw tokens until some rows have ended, and return those; none when nothing is left."""
        while True:
            ended = self._turn_over()
            if ended or len(self._rows) == 0:
                return ended
            self._choose(self._forward())

    def _turn_over(self) -> list[Decoded]:
        """Take out the rows that have ended, if they are many enough, and let others enter."""
        done_B = self._done()
        ended = done_B.nonzero()[:, 0]
        if len(ended) * TURNOVER < len(done_B):
            return []
        decoded = self._decoded(ended)
        replaced = ended[: self._waiting if self._columns.replaces else 0]
        if len(replaced):
            self._rows.put(replaced, self._begin(replaced.tolist()))
        if len(replaced) < len(ended):
            done_B[replaced] = False
            stay = (~done_B).nonzero()[:, 0]
            self._rows = self._rows.select(stay)
            self._columns.keep(stay)
        if len(self._rows) == 0 and self._waiting:
            self._rows = self._begin(range(self._next_batch()))
        return decoded

    @property
    def _waiting(self) -> int:
        return len(self._prompts) - self._entered

    def _next_batch(self) -> int:
        """Return how many of those that wait begin a batch together."""
        most = min(self._waiting, self._batch_size)
        if self._batching is Batching.LEVEL:
            waiting = range(self._entered, self._entered + most)
            lengths = [len(self._prompts[number]) for number in waiting]
            return next((i for i in range(most) if lengths[i] != lengths[0]), most)
        return 1 if self._batching is Batching.SINGLE else most

    def _begin(self, places: Sequence[int]) -> _Rows:
        """Run the prompts of the next completions; return their rows, to be put at some places."""
        numbers = range(self._entered, self._entered + len(places))
        self._entered = numbers.stop
        prefixes = [self._prompts[number][:-1] for number in numbers]
        size = max(len(places), len(self._rows))
        self._columns.enter(prefixes, places, size, self._run)
        return self._new_rows(numbers)

    def _new_rows(self, numbers: range) -> _Rows:
        limit = self._sampling.max_tokens
        uniforms_BT = np.zeros((len(numbers), limit + 1))
        for row, number in enumerate(numbers):
            uniforms_BT[row, :limit] = self._uniforms(number).random(limit)

        def tensor(values: Any, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=self._device)

        return _Rows(
            number=tensor(list(numbers)),
            length=tensor([len(self._prompts[number]) for number in numbers]),
            newest=tensor([self._prompts[number][-1] for number in numbers]),
            written=tensor(np.zeros(len(numbers))),
            stopped=tensor(np.zeros(len(numbers)), torch.bool),
            ids=tensor(np.zeros(uniforms_BT.shape)),
            logprobs=tensor(np.zeros(uniforms_BT.shape), torch.float32),
            uniforms=tensor(uniforms_BT, widest_float(self._device)),
        )

    def _run(self, prefixes: Sequence[tuple[int, ...]]) -> Any:
        """Run some token ids, padded on the left, and return the cache."""
        width = max(map(len, prefixes))
        ids_PT = torch.tensor([(0,) * (width - len(p)) + p for p in prefixes], device=self._device)
        lengths_P = torch.tensor([len(p) for p in prefixes], device=self._device)
        starts_P = width - lengths_P
        positions_PT = (torch.arange(width, device=self._device) - starts_P[:, None]).clamp(min=0)
        _, cache = self._call(
            ids_PT, lengths_P, width, positions_PT, self._columns.new(), **self._last_only
        )
        return cache

    def _forward(self) -> Tensor:
        """Run the newest token of each row; return the logits after it, [B, V]."""
        length_B = self._rows.length
        self._columns.fit(length_B)
        logits, cache = self._call(
            self._rows.newest[:, None],
            length_B,
            self._columns.width + 1,
            length_B[:, None] - 1,
            self._columns.cache,
        )
        self._columns.advance(cache)
        return logits[:, -1]

    def _call(
        self, ids_BT: Tensor, lengths_B: Tensor, width: int, positions_BT: Tensor, cache: Any,
        **further: Any,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """Call the model; the cache and the new tokens together have `width` columns.

        Returns the logits and the cache.
        """
        # Where all rows are as long, the model is left to count and to mask by itself.
        if self._batching.pads:
            further["attention_mask"] = self._mask(lengths_B, width)
        if self._takes_positions and (self._batching.pads or self._batching is Batching.SHARED):
            further["position_ids"] = positions_BT
        with self._columns.running() as arguments:
            output = self._model(
                input_ids=ids_BT,
                use_cache=True,
                **{self._cache_name: cache},
                **arguments,
                **further,
            )
        found = output.get(self._cache_name, cache)
        if found is None:
            raise ModelError(f"it returns no {self._cache_name}")
        return output.logits, found

    def _mask(self, lengths_B: Tensor, width: int) -> Tensor:
        """Return 1 where a column holds a token of the row, [B, T] int64."""
        columns = torch.arange(width, device=self._device)
        return (columns >= (width - lengths_B)[:, None]).long()

    def _choose(self, logits_BV: Tensor) -> None:
        """Draw and write a token per row. What rows that ended earlier write is read by none."""
        rows, places_B1 = self._rows, self._rows.written[:, None]
        uniforms_B = rows.uniforms.gather(1, places_B1)[:, 0]
        rows.newest, logprobs_B = draw(logits_BV, uniforms_B, self._sampling)
        rows.ids.scatter_(1, places_B1, rows.newest[:, None])
        rows.logprobs.scatter_(1, places_B1, logprobs_B[:, None])
        alive_B = ~self._done()
        rows.written = rows.written + alive_B
        rows.length = rows.length + alive_B
        rows.stopped = rows.stopped | (alive_B & self._stop())

    def _stop(self) -> Tensor:
        """Say which rows' newest tokens end a completion, [B]."""
        stop_B: Tensor = (self._rows.newest[:, None] == self._eos_E).any(-1)
        if not self._stops:
            return stop_B
        tails = [
            ids[max(0, written - self._stops.tail) : written].tolist()
            for ids, written in zip(self._rows.ids, self._rows.written.tolist(), strict=True)
        ]
        return stop_B | torch.tensor(self._stops.completed(tails), device=self._device)

    def _done(self) -> Tensor:
        return self._rows.stopped | (self._rows.written >= self._sampling.max_tokens)

    def _decoded(self, places: Tensor) -> list[Decoded]:
        rows = self._rows.select(places)
        columns = (rows.number, rows.written, rows.stopped, rows.ids, rows.logprobs)
        return [
            Decoded(
                number=number,
                ids=tuple(ids[:written]),
                logprobs=tuple(logprobs[:written]),
                stopped=stopped,
            )
            for number, written, stopped, ids, logprobs in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
