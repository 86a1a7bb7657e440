"""The engine that needs nothing but transformers: any causal LM with a cache.

Not here: how rows are decoded side by side (`topr.engines.decoding`) and how a token is chosen
(`topr.engines.sampling`), and which way of decoding is right for a model (`topr.engines.trial`).
"""

import gc
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines.base import Engine, Request, Sample, make_rollout, samples_of, validate_requests
from topr.engines.batch_sizing import MOST, rows_that_fit
from topr.engines.decoding import Decoded, Decoding
from topr.engines.kv_cache import Batching
from topr.engines.rng import uniform_stream
from topr.engines.stops import StopStrings
from topr.engines.trial import find_batching, kept_bytes
from topr.errors import EngineError
from topr.models.devices import resolve_device
from topr.models.evaluation_mode import evaluating
from topr.models.facts import ModelFacts, eos_ids
from topr.models.lengths import named_lengths, positions_of
from topr.models.loading import load
from topr.records import FinishReason, Rollout, SamplingParams

SHARED_BYTES = 2**23
"""Keys and values of the rows' prompts in one layer from which on they are held once. Reading that
many takes some milliseconds of a step on a CPU; attention in parts costs a tenth of one."""

SCORE_BYTES = 16
"""Of logits, and of what is made of them to choose a token, for each token of the vocabulary."""
SLACK_SHARE = 1.25
"""Columns of a cache in addition to those in use: see `topr.engines.kv_cache`."""


class TransformersEngine(Engine):
    """Draws completions from a model that lies in memory."""

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_name: str,
        revision: str | None = None,
        batch_size: int | Literal["auto"] = 64,
    ) -> None:
        """Draw from `model`, on the device and in the dtype that it has.

        Args:
            model: any causal LM of transformers with a cache. Its training mode is left as it was.
            tokenizer: turns ids into text; prompts come tokenised.
            model_name: what records say sampled them.
            revision: likewise; see `topr.models.files.fingerprint`.
            batch_size: rows decoded side by side. It changes speed and memory, not the samples.
                `auto`: as many as memory has room for when they are sampled.

        """
        if batch_size != "auto" and batch_size < 1:
            raise EngineError(f"batch_size is {batch_size}; expected 1 or more rows side by side")
        self.model = model
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.revision = revision
        self.batch_size = batch_size
        embedding: Any = model.get_input_embeddings()
        self._facts = ModelFacts(
            eos_ids=eos_ids(model, tokenizer),
            vocabulary=int(embedding.weight.shape[0]),
            positions=positions_of(model.config),
        )
        self.batching = Batching.REFILLED
        """How completions are decoded: found by trying before the first is."""
        self._tried: dict[bool, tuple[int, Batching]] = {}
        """By whether prompts were to be shared: how many of the lengths that the config names the
        last trial went past, and what it found."""
        self._kept: list[int] | None = None
        """Bytes that the cache of each layer keeps of a token; None: not measured yet."""

    @staticmethod
    def check(model: ModelConfig, config: GenerateConfig) -> None:
        """Refuse a device that is not there."""
        resolve_device(model.device)

    @classmethod
    def open(cls, model: ModelConfig, config: GenerateConfig) -> "TransformersEngine":
        """Load the model and draw from it."""
        loaded = load(model)
        return cls(
            loaded.model,
            loaded.tokenizer,
            model_name=loaded.name,
            revision=loaded.revision,
            batch_size=config.batch_size,
        )

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield the completions as they end; those of the longest prompts are begun first.

        Every request is checked before anything is sampled.

        Raises:
            EngineError: a prompt is empty, holds an id that the model does not know, or leaves no
                room for `max_tokens`; memory runs out; the model's logits are not numbers.
            ModelError: log-probabilities as recorded would not be those of a plain forward pass.

        """
        validate_requests(requests, sampling, self._facts)
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        self._try(longest + sampling.max_tokens, sharing=self._pays_to_share(requests))
        batch_size = self._room(requests, sampling) if requests else 1
        ordered = sorted(requests, key=lambda request: -len(request.prompt_ids))
        samples = list(samples_of(ordered))
        return self._rollouts(samples, sampling, iteration, min(batch_size, len(samples)))

    def _rollouts(
        self, samples: Sequence[Sample], sampling: SamplingParams, iteration: int, batch_size: int
    ) -> Iterator[Rollout]:
        decoding = Decoding(
            self.model,
            [sample.request.prompt_ids for sample in samples],
            lambda number: uniform_stream(
                sampling.seed, samples[number].request.problem_id, samples[number].number
            ),
            sampling,
            eos_ids=sorted(self._facts.eos_ids),
            stops=StopStrings(self.tokenizer, sampling.stop),
            batch_size=batch_size,
            batching=self.batching,
        )
        while ended := self._advance(decoding, samples, sampling, batch_size):
            for each in ended:
                reason = FinishReason.STOP if each.stopped else FinishReason.LENGTH
                yield make_rollout(
                    self, samples[each.number], sampling, iteration,
                    ids=each.ids, logprobs=each.logprobs, reason=reason,
                )  # fmt: skip

    def _try(self, reach: int, *, sharing: bool) -> None:
        """See to a way of decoding that is right for sequences of up to `reach` tokens."""
        passed = sum(length < reach for length in named_lengths(self.model.config))
        tried, self.batching = self._tried.get(sharing, (-1, self.batching))
        if passed <= tried:
            return
        try:
            with evaluating(self.model):
                self.batching = find_batching(self.model, self.tokenizer, reach, sharing=sharing)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the device ran out of memory when {self.model_name} was tried on sequences of up "
                f"to {reach} tokens, the longest prompt with max_tokens: lower max_tokens, leave "
                "long prompts out, or use a smaller model or dtype"
            ) from error
        self._tried[sharing] = passed, self.batching

    def _pays_to_share(self, requests: Sequence[Request]) -> bool:
        """Whether prompts of a batch hold so much that a copy of them for each row is dear."""
        rows = sum(request.n for request in requests)
        if self.model.device.type != "cpu" or not rows:
            return False
        tokens = sum(request.n * len(request.prompt_ids) for request in requests)
        together = min(rows, MOST if self.batch_size == "auto" else self.batch_size)
        return max(self._kept_bytes(), default=0) * tokens * together >= SHARED_BYTES * rows

    def _room(self, requests: Sequence[Request], sampling: SamplingParams) -> int:
        """Return how many rows to decode side by side."""
        if self.batch_size != "auto":
            return self.batch_size
        # Of a prompt that is held once, each of its rows takes a part.
        sharing = self.batching is Batching.SHARED
        longest = max(len(r.prompt_ids) // (r.n if sharing else 1) for r in requests)
        scores = SCORE_BYTES * self._facts.vocabulary
        kept = SLACK_SHARE * sum(self._kept_bytes()) * (longest + sampling.max_tokens)
        return rows_that_fit(self.model.device, scores + int(kept))

    def _kept_bytes(self) -> list[int]:
        if self._kept is None:
            with evaluating(self.model):
                self._kept = kept_bytes(self.model)
        return self._kept

    def _advance(
        self, decoding: Decoding, samples: Sequence[Sample], sampling: SamplingParams,
        batch_size: int,
    ) -> list[Decoded]:  # fmt: skip
        try:
            with evaluating(self.model):
                return decoding.advance()
        except torch.OutOfMemoryError as error:
            longest = max(len(sample.request.prompt_ids) for sample in samples)
            raise EngineError(
                f"the device ran out of memory with {batch_size} completions side by side, prompts "
                f"of up to {longest} tokens and {sampling.max_tokens} new tokens; lower the "
                f"engine's batch_size, now {self.batch_size}"
            ) from error
