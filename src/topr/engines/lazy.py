"""An engine that is known before it is opened: a stage that is done must not load a model."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines import engine_class, open_engine
from topr.engines.base import Engine, Request
from topr.models.loading import load_tokenizer
from topr.models.places import identity
from topr.records import Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LazyEngine(Engine):
    """The engine of the section `generate`, opened when it is first asked for completions."""

    def __init__(
        self,
        model: ModelConfig,
        config: GenerateConfig,
        *,
        check: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        """Find the model. Where its weights were deleted, it is known by the note that they left.

        Args:
            model: the section `model`; `path` is a directory or a hub name.
            config: the section `generate`.
            check: receives the engine when it is open; what it raises ends the request.

        Raises:
            ModelError: there is no such model.

        """
        kind = engine_class(config)
        self.name = config.engine
        self.model_name, self.revision = model.path, identity(model)
        self.journal, self.spans_shards = kind.journal, kind.spans_shards
        self._model, self._config, self._check = model, config, check
        self._engine: Engine | None = None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":  # type: ignore[override]
        """See `Engine`. Loads the tokenizer alone."""
        return load_tokenizer(self._model)

    @property
    def records_logprobs(self) -> bool:
        """See `Engine`. Opens the engine."""
        return self._opened().records_logprobs

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """See `Engine`. Opens the engine."""
        return self._opened().generate(requests, sampling, iteration=iteration)

    def close(self) -> None:
        """Let go of the model. Asked for completions again, the engine is opened again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self._model, self._config)
            self._check(self._engine)
        return self._engine
