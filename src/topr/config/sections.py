"""The sections of a recipe, one per stage. A stage is given its own section and no other."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from topr.config.base import Section
from topr.config.engines import RayConfig, ServerConfig, VllmConfig


class ModelConfig(Section):
    """The model that the first iteration starts from."""

    path: str = "builtin"
    """A hub name, a local directory, or `builtin`: the base model that the task makes itself
    (arithmetic, and a verifier of its solutions)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    gguf_file: str | None = None
    """Name of a GGUF file in `path`: the model is its weights, dequantized."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the weights in memory while sampling; training has `train.dtype`. `auto`: bfloat16
    where the device is faster in it, else float32; a server or vLLM decides by itself."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Off unless you have read that code."""

    def at(self, path: str) -> "ModelConfig":
        """Return the section for the model at another path."""
        return self.model_copy(update={"path": path, "revision": None, "gguf_file": None})


class GenerateConfig(Section):
    """How completions are sampled for training."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    engine: Literal["transformers", "ray", "server", "vllm"] = "transformers"
    """What samples completions."""
    n: Annotated[int, Field(ge=1)] = 16
    """Completions per problem; per problem and round where `curate` has a rule that knows when a
    problem is full (`anna_karenina`)."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Softmax temperature. 0 means greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass. 1 means off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Likeliest tokens kept. 0 means off."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Completion tokens at most, the end-of-sequence token included."""
    stop: tuple[str, ...] | None = None
    """Strings that end a completion; defaults to the task's own."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 64
    """Completions that are decoded side by side (engine `transformers`). `auto`: as many as half of
    the free memory holds, 256 at most."""
    shard_problems: Annotated[int, Field(ge=1)] = 64
    """Problems per parquet shard: what an interruption may cost at most."""
    server: ServerConfig = ServerConfig()
    """For engine `server`."""
    vllm: VllmConfig = VllmConfig()
    """For engine `vllm`."""
    ray: RayConfig = RayConfig()
    """For engine `ray`."""


class GradeConfig(Section):
    """How completions are graded: in worker processes that can be killed."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"none_right", "workers"})

    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes; defaults to one per core."""
    timeout: Annotated[float, Field(gt=0)] = 3.0
    """Seconds that one completion may take before its worker is killed."""
    memory_mb: Annotated[int, Field(ge=256)] = 2048
    """Address space of one worker, in MiB."""
    truncated: Literal["wrong", "grade", "drop"] = "wrong"
    """A completion that reached the token limit: `wrong` whatever it says (the paper's rule),
    `grade` it as if it had ended, or `drop` it from training (reward none)."""
    none_right: Literal["stop", "warn"] = "stop"
    """Before a run trains on completions of which a built-in grader found none right: `stop`, or
    `warn` and train on wrong ones alone."""


class LoopConfig(Section):
    """How an iteration follows from those before it."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"keep_models"})

    start: Literal["last", "base"] = "last"
    """Which model training starts from in each iteration: the last iteration's, or the base, again.
    Rollouts are sampled with the last iteration's model either way."""
    window: Annotated[int, Field(ge=1)] | None = 1
    """Iterations whose datasets are trained on together, the newest included: 1 is the newest
    alone, `null` all of them. Each completion keeps the log-probabilities of the model that wrote
    it."""
    keep: Literal["last", "best"] = "last"
    """Which iteration's model is the run's result: the last one, or the best by pass@1 on the
    validation split, the base included."""
    keep_models: Literal["all", "last", "best"] = "all"
    """Whose weights stay on disk: `all` models', or those of the run's result alone, `last` or
    `best` as `keep` has it. Others are deleted when they are evaluated and nothing is made from
    them any more."""


class EvaluateConfig(Section):
    """How a model is measured on held-out problems."""

    split: Literal["validation", "test"] = "test"
    """`validation` where a choice is made on the numbers, `test` where they are reported."""
    problems: Annotated[int, Field(ge=1)] | None = None
    """The first this many problems of the split; defaults to all."""
    n: Annotated[int, Field(ge=1)] = 16
    """Sampled completions per problem."""
    greedy: bool = True
    """Also decode each problem once greedily."""
    pass_at: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16)
    """The k of pass@k; those above `n` are left out."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the sampled completions."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass. 1 means off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Likeliest tokens kept. 0 means off."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Completion tokens at most; defaults to that of `generate`."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the problems for the 95 % intervals."""
