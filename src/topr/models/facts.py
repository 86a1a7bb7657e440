"""What is known of a model without its weights: from its configs and its tokenizer."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.files import ADAPTER, is_adapter
from topr.models.lengths import positions_of
from topr.models.places import cannot_load, checked_path


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What an engine must know of a model whose weights lie elsewhere."""

    eos_ids: frozenset[int]
    """See `eos_ids`."""
    vocabulary: int
    """Token ids are below it."""
    positions: int | None
    """Tokens of prompt and completion at most; None: no limit is named."""


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token id that ends a text for this model.

    The generation config, the model config and the tokenizer may each name others (Llama 3's
    `<|eot_id|>` is in the first only): all of them count.
    """
    return _all_ids(model.generation_config, model.config.get_text_config(), tokenizer)


def model_facts(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
    """Read from a model's configs what its weights are not needed for.

    Raises:
        ModelError: there is no such model.

    """
    path, revision = checked_path(config), config.revision or "main"
    try:
        found = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code
        ).get_text_config()
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(cannot_load("model", config, error)) from error
    try:
        generation = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # a model need not have one
        generation = None
    return ModelFacts(
        eos_ids=_all_ids(generation, found, tokenizer),
        vocabulary=int(found.vocab_size),
        positions=positions_of(found),
    )


def named_eos_ids(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return `eos_ids` of a model as far as its configs say it; they need not be there."""
    return _all_ids(tokenizer, *_named_configs(config))


def named_vocabulary(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many token ids a model knows, as far as its configs say it: a padded embedding has
    more than the tokenizer.
    """
    sizes = (getattr(owner, "vocab_size", None) for owner in _named_configs(config))
    return max(len(tokenizer), *(size for size in sizes if isinstance(size, int)), 0)


def _named_configs(config: ModelConfig) -> list[Any]:
    path, revision = checked_path(config), config.revision or "main"
    if is_adapter(Path(path)):
        found = json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))
        path, revision = found["base_model_name_or_path"], found.get("revision") or "main"
    owners: list[Any] = []
    with suppress(OSError, ValueError):
        owners.append(GenerationConfig.from_pretrained(path, revision=revision))
    with suppress(OSError, ValueError, ImportError):
        named = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code
        )
        owners.append(named.get_text_config())
    return owners


def _all_ids(*owners: Any) -> frozenset[int]:
    ids: set[int] = set()
    for value in (getattr(owner, "eos_token_id", None) for owner in owners):
        ids.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return frozenset(ids)
