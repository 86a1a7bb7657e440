"""The sections of engines that have settings of their own, within the section `generate`."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from topr.config.base import Section
from topr.records.distribution import NEUTRAL

VLLM_ARGS_OF_TOPR: dict[str, str] = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "tokenizer_revision": "model.revision",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "tensor_parallel_size": "generate.vllm.tensor_parallel_size",
    "gpu_memory_utilization": "generate.vllm.gpu_memory_utilization",
    "max_model_len": "generate.vllm.max_model_len",
    "enforce_eager": "generate.vllm.enforce_eager",
    "data_parallel_size": "generate.engine=ray with generate.ray.engine=vllm",
    "load_format": "nothing else: weights are read from safetensors only",
    "logprobs_mode": "nothing else: rollouts hold those of the sampled distribution",
    "skip_tokenizer_init": "nothing else: stop strings need the tokenizer",
}
"""Arguments of `vllm.LLM` that topr sets, to what sets them instead of `generate.vllm.args`."""


class VllmConfig(Section):
    """vLLM inside topr, for engine `vllm`. It samples as many completions at a time as its memory
    holds: `generate.batch_size` is not for it."""

    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that one copy of the model is spread over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory (on a CPU, of the machine's) for weights and cache."""
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt and completion at most; defaults to as many as the model allows."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: quicker to start, slower to draw."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Any further argument of `vllm.LLM`, passed as it is."""

    @model_validator(mode="after")
    def _args_are_further_ones(self) -> "VllmConfig":
        for name in self.args:
            if name in VLLM_ARGS_OF_TOPR:
                raise ValueError(
                    f"args.{name} is set by topr: leave it out, and use {VLLM_ARGS_OF_TOPR[name]}"
                )
        return self


_SECRET = re.compile(r"(api|access|auth)?[-_]?(key|token|secret|password)", re.IGNORECASE)

SERVER_BODY_OF_TOPR = frozenset(
    {
        "model", "prompt", "n", "best_of", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "logprobs", "echo", "stream",
        "return_token_ids", "include_stop_str_in_output", "skip_special_tokens",
        "logit_bias", *NEUTRAL,
        "samplers", "post_sampling_probs", "verbose", "return_tokens", "response_fields", "n_probs",
    }
)  # fmt: skip
"""Fields of a request that fix what is sampled, or how it is read."""


class ServerConfig(Section):
    """An OpenAI-compatible completions server, for engine `server`: one that is there, or one that
    topr starts for each model and ends."""

    # How it is reached, not what it samples: a run resumes when its server has moved.
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"url", "concurrency", "timeout", "patience", "api_key_env"}
    )

    url: str | None = None
    """Of a server that is there, such as `http://10.0.0.7:8000/v1`; by default topr starts one."""
    command: tuple[str, ...] | None = None
    """Words that start a server; in each, `{model}`, `{revision}`, `{dtype}`, `{host}` and `{port}`
    stand for what they say. Defaults to vLLM's own server, where vllm can be imported."""
    arguments: tuple[str, ...] = ()
    """Further words for vLLM's own server, such as `--tensor-parallel-size` and `4`."""
    model: str | None = None
    """What the server calls the model, `{model}` for its path; by default it is asked."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Requests under way at a time, one completion each."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that one request may take before it is made again."""
    patience: Annotated[float, Field(gt=0)] = 900.0
    """Seconds without any answer (a server that starts, restarts or is gone) before giving up."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key. The key itself is read there
    and written nowhere."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Extra fields of each request, in addition to those that topr sends."""

    @model_validator(mode="after")
    def _nothing_but_further_fields(self) -> "ServerConfig":
        taken = sorted(SERVER_BODY_OF_TOPR & self.extra_body.keys())
        if taken:
            raise ValueError(
                f"extra_body.{taken[0]} would change what is sampled and not what rollouts say of "
                "it: leave it out, and use the keys of generate (temperature, top_p, top_k, "
                "max_tokens, stop)"
            )
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> "ServerConfig":
        """A recipe is kept in runs, and is shown on cards."""
        words = (*(self.command or ()), *self.arguments)
        named = [word for word in words if re.match(r"--?(api|hf)[-_](key|token)", word)]
        named += [f"extra_body.{key}" for key in self.extra_body if _SECRET.fullmatch(key)]
        if named or (self.url is not None and "@" in self.url.partition("://")[2].split("/")[0]):
            raise ValueError(
                f"{named[0] if named else 'url'} holds a secret, and recipes are written into run "
                "directories and onto cards: put it into an environment variable, and name that "
                "(api_key_env; a server that topr starts inherits the environment)"
            )
        return self

    @model_validator(mode="after")
    def _one_server(self) -> "ServerConfig":
        if self.url is not None and (self.command is not None or self.arguments):
            raise ValueError(
                f"url={self.url} names a server that is there, and command or arguments say how to "
                "start one: set one of them"
            )
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url={self.url} must begin with http:// or https://")
        if self.command is not None and self.arguments:
            raise ValueError("arguments are for vLLM's own server: write them into command")
        if self.command is not None and not any("{port}" in word for word in self.command):
            raise ValueError(
                "command has no word with {port}: the server must listen where it is asked"
            )
        return self


class RayConfig(Section):
    """Ray Data over another engine, for engine `ray`."""

    # Where it is sampled, not what: a run resumes on another cluster.
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"workers", "address", "gpus_per_worker", "cpus_per_worker"}
    )

    engine: Literal["transformers", "server", "vllm"] = "transformers"
    """What samples completions in each worker, with the settings that it has without Ray."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Copies of the model; defaults to as many as the cluster's GPUs allow, or 1 without a GPU."""
    address: str | None = None
    """Of a cluster: `auto` (the one on this machine), or host and port; defaults to that of
    RAY_ADDRESS, else one that is started here and ends with the run."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each worker; defaults to 1 (with vllm, its tensor_parallel_size) where the cluster
    has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of each worker."""
