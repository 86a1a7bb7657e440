"""A key-value cache in which rows share what they begin with. On a CPU.

Not here: which rows, and when (`topr.engines.decoding`); how a token attends to what is held
(`topr.engines.shared_attention`); the cache of models that cannot share (`topr.engines.kv_cache`).

Three stretches make the context of a row: the beginning that all prompts share (worked examples, a
system prompt), the rest of its prompt, and what it has written. The first two are held once,
whoever continues them:

    beginning   tokens 0-529     for all rows
    prompts     tokens 530-629   for the 16 rows of each problem
    own         tokens 630-      for each row, in `SlotKVCache`
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from topr.engines.kv_cache import Ids, SlotKVCache
from topr.engines.shared_attention import NAME, Layers, Prefill, Step, computed_in
from topr.errors import ModelError
from topr.models.attention import attention_of

SHORTEST_BEGINNING = 16
"""Tokens that all prompts must share for these to be held apart."""
PREFILL_TOKENS = 4096
"""Prompt tokens of one forward pass, about."""


class PromptCache:
    """Keys and values of the rows of a batch; used as `SlotKVCache` is."""

    replaces = True
    """Rows can enter in place of others."""

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Ids]) -> None:
        """Begin without a row.

        Args:
            model: on a CPU, with plain attention through transformers' `AttentionInterface`.
            prefixes: what each completion begins with: its prompt but for the last token.

        Raises:
            ModelError: it is elsewhere, or in float64, which torch's kernel does not give sums of.

        """
        if model.device.type != "cpu" or model.dtype == torch.float64:
            raise ModelError("prompts are shared on a CPU, in float32 or a shorter type")
        self._model = model
        self._beginning = _beginning(set(prefixes))
        self._begun: Layers = []
        self._prompts: dict[Ids, Layers] = {}
        self._rows: list[Ids] = []
        self._own = SlotKVCache(model.config)
        self._step: Step | None = None

    @property
    def width(self) -> int:
        """Columns in use, of what rows have written."""
        return self._own.width

    @property
    def cache(self) -> Any:
        """For the model, which appends one token to every row in a forward pass."""
        return self._own.cache

    def enter(self, prefixes: Sequence[Ids], places: Sequence[int], size: int, run: Any) -> None:
        """Let rows begin, in place of rows that have left.

        Args:
            prefixes: token ids for each of the places. Equal ones are run once.
            places: which rows.
            size: rows of the batch.
            run: not used.

        """
        self._rows += [()] * (size - len(self._rows))
        for place, ids in zip(places, prefixes, strict=True):
            self._rows[place] = ids
        self._prompts = {ids: kept for ids, kept in self._prompts.items() if ids in self._rows}
        self._prefill([ids for ids in dict.fromkeys(prefixes) if ids not in self._prompts])
        self._own.enter([()] * len(places), places, size, run)
        self._step = None

    def keep(self, rows: Tensor) -> None:
        """Take all other rows out."""
        self._own.keep(rows)
        self._rows = [self._rows[row] for row in rows.tolist()]
        self._step = None

    def fit(self, length_B: Tensor) -> None:
        """Make ready for a token of each row; see `SlotKVCache`."""
        own_B = length_B - torch.tensor([len(ids) for ids in self._rows])
        self._own.fit(own_B)
        if self._step is None:
            self._step = Step(self._rows, self._prompts, self._begun)
        self._step.see(own_B, self._own.width + 1)

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Let the model attend to what rows share, by the argument that is yielded."""
        with attention_of(self._model, NAME):
            yield {"shared": self._step}

    def advance(self, cache: Any) -> None:
        """Count the column that a forward pass has filled."""
        self._own.advance(cache)

    def new(self) -> None:
        """Return nothing: prompts are run by this cache itself."""

    def _prefill(self, prompts: Sequence[Ids]) -> None:
        """Run prompts, the first time with what all begin with, in passes of alike size."""
        if self._beginning and not self._begun:
            (self._begun,) = self._run([self._beginning], skip=0)
        skip = len(self._beginning)
        ends = torch.tensor([len(ids) - skip for ids in prompts]).cumsum(0).tolist()
        passes = groupby(zip(ends, prompts, strict=True), lambda pair: pair[0] // PREFILL_TOKENS)
        for _, pairs in passes:
            chosen = [ids for _, ids in pairs]
            self._prompts |= zip(chosen, self._run(chosen, skip), strict=True)

    def _run(self, prompts: Sequence[Ids], skip: int) -> list[Layers]:
        """Run prompts end to end, without the `skip` tokens that are held; return each one's keys
        and values, none of a prompt of one token where no other has more.
        """
        lengths = [len(ids) - skip for ids in prompts]
        if not any(lengths):
            return [[] for _ in prompts]
        cache = DynamicCache(config=self._model.config)
        with attention_of(self._model, NAME):
            self._model(
                input_ids=torch.tensor([[token for ids in prompts for token in ids[skip:]]]),
                position_ids=torch.cat([torch.arange(skip, len(ids)) for ids in prompts])[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                shared=Prefill(lengths, self._begun),
            )
        layers: list[Any] = list(cache.layers)
        dtype = computed_in(layers[0].values)
        split = [
            [kept[0].to(dtype).split(lengths, 1) for kept in (layer.keys, layer.values)]
            for layer in layers
        ]
        return [
            [(keys[number].clone(), values[number].clone()) for keys, values in split]
            for number in range(len(prompts))
        ]


def _beginning(prefixes: set[Ids]) -> Ids:
    """Return what all prefixes begin with, where it is long enough; each keeps a token behind."""
    if len(prefixes) < 2:
        return ()
    first, last = min(prefixes), max(prefixes)  # what these share, all that lie between do
    most = min(map(len, prefixes)) - 1
    shared = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:shared] if shared >= SHORTEST_BEGINNING else ()
