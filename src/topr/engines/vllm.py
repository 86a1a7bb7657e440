"""vLLM in its own process: continuous batching, paged attention, tensor parallelism.

One request is made per sample, with its own seed, so that a sample does not depend on the
others; vLLM's prefix cache computes their common prompt once. Not here: several replicas (engine
`ray`), and vLLM behind its own server (engine `server`).
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines.base import Engine, Request, Sample, make_rollout, samples_of, validate_requests
from topr.engines.rng import request_seed
from topr.errors import ConfigError, EngineError
from topr.models.facts import ModelFacts, model_facts
from topr.models.loading import load_tokenizer
from topr.models.places import identity
from topr.records import FinishReason, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENVIRONMENT = {
    # A forked process inherits locks that this one's threads hold.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # results go to standard output
}
"""Set before vLLM is imported, where the user has not."""

QUEUE = 4096
"""Samples that vLLM is given ahead: more than it samples side by side."""

TEMPERATURES = (0.01, 2.0)
"""vLLM refuses what is above, and silently raises what is below, except for 0."""


class VllmEngine(Engine):
    """Draws completions from a model that vLLM serves to this process alone."""

    name = "vllm"
    spans_shards = True
    """Its batch runs dry only at the end of what it is given: see `topr.stages.draw`."""

    def __init__(
        self,
        llm: Any,
        tokenizer: "PreTrainedTokenizerBase",
        facts: ModelFacts,
        *,
        model_name: str,
        revision: str | None = None,
    ) -> None:
        """Draw from `llm`.

        Args:
            llm: a `vllm.LLM` with `logprobs_mode="processed_logprobs"`.
            tokenizer: turns ids into text; prompts come tokenised.
            facts: of the model; its `positions` are those that `llm` was given.
            model_name: what records say sampled them.
            revision: likewise; see `topr.models.files.fingerprint`.

        """
        self.llm = llm
        self.tokenizer = tokenizer
        self.facts = facts
        self.model_name = model_name
        self.revision = revision

    @staticmethod
    def check(model: ModelConfig, config: GenerateConfig) -> None:
        """Refuse to start without vLLM, or with a temperature that it does not draw at."""
        spec = find_spec("vllm")
        if spec is None or spec.origin is None:  # a folder of that name has no origin
            raise ConfigError(
                "generate.engine is vllm, and the package vllm is not installed here: install it "
                "(pip install '.[vllm]' in topr's checkout; on a CPU, see docs/engines/vllm.md), "
                "or set generate.engine=transformers"
            )
        _refuse_temperature(config.temperature)

    @classmethod
    def open(cls, model: ModelConfig, config: GenerateConfig) -> "VllmEngine":
        """Start vLLM on the model. It runs in a process that this one spawns.

        Raises:
            ModelError: there is no such model.
            EngineError: vLLM refuses its arguments, or cannot start.

        """
        cls.check(model, config)
        tokenizer = load_tokenizer(model)
        facts, revision = model_facts(model, tokenizer), identity(model)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM
        from vllm.platforms import current_platform

        arguments = llm_arguments(model, config)
        if current_platform.is_cpu():
            # Its sampler cannot go back in a seeded prompt that is prefilled in parts (0.32).
            arguments.setdefault("enable_chunked_prefill", False)
        try:
            llm = LLM(**arguments)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(
                f"vLLM cannot start on {model.path!r} with {arguments}: {error}\n"
                "Its own log above says more. Where memory is short, change "
                "generate.vllm.gpu_memory_utilization, max_model_len or tensor_parallel_size"
            ) from error
        limits = (facts.positions, int(llm.model_config.max_model_len))
        facts = replace(facts, positions=min(limit for limit in limits if limit is not None))
        return cls(llm, tokenizer, facts, model_name=model.path, revision=revision)

    def close(self) -> None:
        """End vLLM's process."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, *, iteration: int = 0
    ) -> Iterator[Rollout]:
        """Yield the completions as they end.

        Every request is checked before anything is sampled.

        Raises:
            EngineError: a prompt is empty, holds an id that the model does not know, or leaves no
                room for `max_tokens`; vLLM does not draw at this temperature; its process has
                ended; the model's logits are not numbers.

        """
        _refuse_temperature(sampling.temperature)
        validate_requests(requests, sampling, self.facts)
        return self._rollouts(requests, sampling, iteration)

    def _rollouts(
        self, requests: Sequence[Request], sampling: SamplingParams, iteration: int
    ) -> Iterator[Rollout]:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        core = self.llm.llm_engine
        shared = sampling_arguments(sampling, self.facts.eos_ids)
        samples, names = samples_of(requests), itertools.count()
        waiting: dict[str, Sample] = {}
        ended = Event()
        Thread(target=_watch, args=(core.engine_core, ended), daemon=True).start()
        try:
            while True:
                for sample in itertools.islice(samples, QUEUE - len(waiting)):
                    seed = request_seed(sampling.seed, sample.request.problem_id, sample.number)
                    prompt, name = tokens_input(list(sample.request.prompt_ids)), str(next(names))
                    core.add_request(name, prompt, _params({**shared, "seed": seed}))
                    waiting[name] = sample
                if not waiting:
                    return
                for output in core.step():
                    if output.finished:
                        sample = waiting.pop(output.request_id)
                        yield self._rollout(sample, output.outputs[0], sampling, iteration)
        except EngineDeadError as error:
            raise EngineError(
                f"vLLM's process ended with {len(waiting)} completions to draw; its own log above "
                "says why. Run the same command again: it resumes with the first shard that is "
                "not complete"
            ) from error
        finally:
            ended.set()
            core.abort_request(list(waiting))

    def _rollout(
        self, sample: Sample, written: Any, sampling: SamplingParams, iteration: int
    ) -> Rollout:
        ids = tuple(int(token) for token in written.token_ids)
        found = [float(at[token].logprob) for token, at in zip(ids, written.logprobs, strict=True)]
        if sampling.temperature == 0:  # of the one token that greedy decoding leaves, or NaN
            found = [value - value for value in found]
        reason = FinishReason(written.finish_reason)
        return make_rollout(
            self, sample, sampling, iteration, ids=ids, logprobs=tuple(found), reason=reason
        )


def _watch(client: Any, ended: Event) -> None:
    """Wake vLLM's client when its process is gone: it would wait for a killed one for ever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    while hasattr(client, "outputs_queue") and not ended.wait(timeout=1.0):
        if client.resources.engine_dead:
            client.outputs_queue.put_nowait(EngineDeadError())
            return


def llm_arguments(model: ModelConfig, config: GenerateConfig) -> dict[str, Any]:
    """Return what `vllm.LLM` is given for a recipe's sections."""
    settings = config.vllm
    return {
        "enable_prefix_caching": True,
        **settings.args,
        "model": str(Path(model.path).expanduser()),
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",  # a pickle runs whatever code is in it
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "enforce_eager": settings.enforce_eager,
    }


def sampling_arguments(sampling: SamplingParams, eos_ids: frozenset[int]) -> dict[str, Any]:
    """Return what `vllm.SamplingParams` is given, except for the seed.

    Both apply the temperature first, then top-k, then top-p within what top-k left. 0 means
    greedy, and off for `top_k`, in both.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(eos_ids),
        "logprobs": 0,  # of the token that was sampled and no other
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # their text may be a stop string
        "detokenize": bool(sampling.stop),
    }


def _params(arguments: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY)


def _refuse_temperature(temperature: float) -> None:
    low, high = TEMPERATURES
    if temperature != 0 and not low <= temperature <= high:
        raise EngineError(
            f"temperature is {temperature}, and vLLM draws at 0 (greedy) or {low} to {high}; "
            "choose one of those, or draw with engine transformers"
        )
