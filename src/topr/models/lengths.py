"""Sequence lengths that a model's config names: windows, chunks, positions. What a model does may
change at each of them, so a trial of a model must go past those that a run can reach.

Not here: the trials (`topr.engines.trial`, `topr.training`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

_NAMES = re.compile(
    r"window|chunk|block_size|topk|position|max_seq|context_length|n_ctx|extent|distance|floor"
    r"|_length|local_attention"
)
_OTHERS = re.compile(r"layer|pattern|dropout|num_|_id$|encoder|generat|^(min|max)_length")
_SHORTEST = 2

_LIMITS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_positions")
"""Under these names a config says how many positions the model has."""


def named_lengths(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the lengths that a config names, the shortest first.

    A name tells, so a number may be among them that is none: it costs a trial some time, no more.
    """
    text = config.get_text_config(decoder=True)
    return tuple(sorted({length for length in _lengths(text.to_dict()) if length >= _SHORTEST}))


def _lengths(values: Mapping[str, Any]) -> Iterator[int]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lengths({str(key): inner for key, inner in value.items()})
        elif type(value) is int and _NAMES.search(name) and not _OTHERS.search(name):
            yield value


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a sequence may have; None: no limit is named."""
    text = config.get_text_config(decoder=True)
    found = [getattr(text, name, None) for name in _LIMITS]
    return min((int(value) for value in found if type(value) is int and value > 0), default=None)
