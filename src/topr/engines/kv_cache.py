"""The key-value cache of rows that come and go.

Not here: which rows, and when (`topr.engines.decoding`). Shapes: B rows, H key-value heads, T
columns, D width of a head.

Columns are aligned on the right: what a row has written fills its last columns, however much that
is, and the newest token of every row goes into the same column. So a row that enters takes the
place of one that left, and nothing else is moved:

    row 0   . a b c d      row 0   . a b c d e      row 1 (f g) has ended; x y z enters in its
    row 1   . . . f g  ->  row 1   . . x y z u      place, and both rows write their next token,
                                                    e and u, into the same new column
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from topr.errors import ModelError

Ids = tuple[int, ...]
Run = Callable[[Sequence[Ids]], Any]
"""Runs the model on token ids, each padded on the left, and returns what its cache holds."""

SLACK = 64
"""Columns allocated ahead, at least: the cache is copied when they are used up."""


class Batching(StrEnum):
    """Which rows lie side by side. Each member asks less of a model than those before it."""

    SHARED = "shared"
    """As refilled; what rows begin with is held once, by `topr.engines.prompt_cache`. On a CPU."""
    REFILLED = "refilled"
    """Rows of any length, padded on the left; as some end, others take their places."""
    PADDED = "padded"
    """Rows of any length, padded on the left; a batch ends before the next begins."""
    LEVEL = "level"
    """Rows with prompts of the same length, none padded; a batch ends before the next begins."""
    SINGLE = "single"
    """One row at a time."""

    @property
    def pads(self) -> bool:
        """Whether rows are padded to one length."""
        return self in (Batching.REFILLED, Batching.PADDED)


class SlotKVCache:
    """Keys and values of the rows of a batch, in buffers that are written in place.

    A layer with a sliding window keeps what has left the window too; its mask leaves it out.
    """

    replaces = True
    """Rows can enter in place of others."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Begin without a row.

        Raises:
            ModelError: the model's layers keep more than keys and values.

        """
        self._config = config
        layers = DynamicCache(config=config).layers
        further = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        if further or not layers:
            names = ", ".join(sorted(kind.__name__ for kind in further))
            raise ModelError(f"its cache holds more than keys and values ({names or 'no layers'})")
        self.start = self.end = 0
        """Columns in use: the longest row fills all of them."""
        self.capacity = 0
        self._layers = [_Layer(self) for _ in self.new().layers]
        self.cache = Cache(layers=list(self._layers))
        """For the model, which appends one token to every row in a forward pass."""
        self._last: dict[Ids, list[tuple[Tensor, Tensor]]] = {}

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.end - self.start

    def enter(self, prefixes: Sequence[Ids], places: Sequence[int], size: int, run: Run) -> None:
        """Write what rows begin with, in place of rows that have left.

        Args:
            prefixes: token ids for each of the places. Equal ones are run once, the last one not
                even in the next call.
            places: which rows.
            size: rows of the batch.
            run: the model.

        """
        known, self._last = self._last, {}
        fresh = [ids for ids in dict.fromkeys(prefixes) if ids and ids not in known]
        if fresh:
            layers: list[Any] = list(run(fresh).layers)
            for row, ids in enumerate(fresh):
                # A layer with a sliding window may hold fewer: those that it can still see.
                own = slice(-len(ids), None)
                known[ids] = [(x.keys[row, :, own], x.values[row, :, own]) for x in layers]
        longest = max(map(len, prefixes))
        if longest > self.end:
            self._move(longest)
        self.start = min(self.start, self.end - longest)
        for ids in dict.fromkeys(prefixes):
            rows = [place for place, its in zip(places, prefixes, strict=True) if its == ids]
            for layer, both in zip(self._layers, known.get(ids, ()), strict=bool(ids)):
                layer.write(both, rows, size)
        if prefixes[-1]:
            last = known[prefixes[-1]]
            self._last = {prefixes[-1]: [(keys.clone(), values.clone()) for keys, values in last]}

    def fit(self, length_B: Tensor) -> None:
        """Use as many columns as the longest row has, and see to room for another.

        Args:
            length_B: tokens of the rows, the one that is still to be run included, int64.

        """
        width = int(length_B.max()) - 1
        self.start = self.end - width
        if self.end == self.capacity:
            self._move(width)

    def keep(self, rows: Tensor) -> None:
        """Take all other rows out."""
        self._move(self.end - self.start, rows)

    def running(self) -> AbstractContextManager[Mapping[str, Any]]:
        """Run the model as it is, with no further arguments."""
        return nullcontext({})

    def new(self) -> DynamicCache:
        """Return what the model is to fill with prefixes."""
        return DynamicCache(config=self._config)

    def advance(self, cache: Any) -> None:
        """Count the column that a forward pass has filled."""
        self.end += 1

    def _move(self, width: int, rows: Tensor | None = None) -> None:
        """Copy the columns in use to new buffers, where they end at `width`."""
        used = slice(self.start, self.end)
        if width >= self.capacity or width + 2 * SLACK < self.capacity:
            self.capacity = width + max(SLACK, width // 4)
        for layer in self._layers:
            layer.move(used, width, rows)
        self.start, self.end = width - (used.stop - used.start), width


class BatchKVCache:
    """The model's own cache, of whatever kind: rows leave, but none enters before all have left."""

    replaces = False

    def __init__(self) -> None:
        """Begin without a row."""
        self.cache: Any = None
        self.width = 0
        """Columns in use."""

    def enter(self, prefixes: Sequence[Ids], places: Sequence[int], size: int, run: Run) -> None:
        """Begin a batch. Equal prefixes are run once."""
        distinct = {ids: row for row, ids in enumerate(dict.fromkeys(prefixes))}
        self.width = max(map(len, prefixes))
        self.cache = run(list(distinct)) if self.width else None
        if self.width and len(prefixes) > 1:
            self.keep(torch.tensor([distinct[ids] for ids in prefixes]))

    def fit(self, length_B: Tensor) -> None:
        """Do nothing: columns stay."""

    def keep(self, rows: Tensor) -> None:
        """Take all other rows out."""
        if len(rows):
            # batch_select_indices is for keys and values alone; this is for states too.
            self.cache.reorder_cache(rows)

    def running(self) -> AbstractContextManager[Mapping[str, Any]]:
        """Run the model as it is, with no further arguments."""
        return nullcontext({})

    def new(self) -> None:
        """Return what the model is to fill with prefixes: it makes its own."""

    def advance(self, cache: Any) -> None:
        """Take the cache that a forward pass has added a column to."""
        self.cache = cache
        self.width += 1


class _Layer(DynamicLayer):
    """The buffers of one layer, [B, H, T, D]; their number of columns is the capacity."""

    def __init__(self, columns: SlotKVCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._columns = columns
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a token to each row; return all keys and values in use."""
        start, end = self._columns.start, self._columns.end
        keys, values = buffers = self._filled((key_states[0], value_states[0]), len(key_states))
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, end : end + 1] = states
        return keys[:, :, start : end + 1], values[:, :, start : end + 1]

    def get_seq_length(self) -> int:
        """Return how many columns are in use."""
        return self._columns.width

    def write(self, prefix: tuple[Tensor, Tensor], places: Sequence[int], size: int) -> None:
        """Give the rows at some places the same beginning."""
        end = self._columns.end
        for buffer, values in zip(self._filled(prefix, size), prefix, strict=True):
            buffer[list(places), :, end - values.shape[1] : end] = values

    def move(self, used: slice, width: int, rows: Tensor | None) -> None:
        """Copy the columns in use, of all rows or some, to new buffers."""
        if self._buffers is None:
            return
        moved = []
        for buffer in self._buffers:
            part = buffer[:, :, used] if rows is None else buffer[rows, :, used]
            count, heads, columns, wide = part.shape
            new = part.new_zeros((count, heads, self._columns.capacity, wide))
            new[:, :, width - columns : width] = part
            moved.append(new)
        self._buffers = (moved[0], moved[1])

    def _filled(self, like: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Return the buffers, with zeros where nothing was written: a mask does not hide NaN."""
        if self._buffers is None:
            keys, values = (
                x.new_zeros((size, x.shape[0], self._columns.capacity, x.shape[-1])) for x in like
            )
            self._buffers = (keys, values)
        return self._buffers
