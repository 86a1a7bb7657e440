"""What is known of a model without its weights: from its configs and its tokenizer."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from topr.config.sections import ModelConfig
from topr.errors import ModelError
from topr.models.files import base_of, is_adapter
from topr.models.lengths import positions_of
from topr.models.places import checked_path, read_config


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
    found = read_config(config).get_text_config()
    try:
        generation = GenerationConfig.from_pretrained(
            checked_path(config), revision=config.revision or "main"
        )
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
    directory = Path(checked_path(config))
    if is_adapter(directory):
        config = config.model_copy(update=base_of(directory))
    owners: list[Any] = []
    with suppress(OSError, ValueError):
        revision = config.revision or "main"
        owners.append(GenerationConfig.from_pretrained(config.path, revision=revision))
    with suppress(ModelError):
        owners.append(read_config(config).get_text_config())
    return owners


def _all_ids(*owners: Any) -> frozenset[int]:
    ids: set[int] = set()
    for value in (getattr(owner, "eos_token_id", None) for owner in owners):
        ids.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return frozenset(ids)
