"""The sections of a recipe, one per stage. A stage is given its own section and no other."""

import re
from fnmatch import fnmatch
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    SHOWN: ClassVar[tuple[str, ...]] = ("description", "needs")
    """Dotted keys, `*` for any, that no number depends on."""

    def fixed(self) -> dict[str, Any]:
        """Return the values that numbers depend on, for a hash of them."""
        return _without(self.model_dump(mode="json"), self.SHOWN)


def _without(values: dict[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if any(fnmatch(dotted, key) for key in keys):
            continue
        kept[name] = _without(value, keys, f"{dotted}.") if isinstance(value, dict) else value
    return kept


class ModelConfig(Section):
    """The model that the first iteration starts from."""

    path: str = "builtin"
    """A hub name, a local directory, or `builtin`: the base model that the task makes itself
    (arithmetic, and a verifier of its solutions)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory while drawing; training has `train.dtype`."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Off unless you have read that code."""


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
    """vLLM inside topr, for engine `vllm`. It draws as many completions side by side as its memory
    holds: `generate.batch_size` is not for it."""

    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs that one copy of the model is spread over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory (on a CPU, of the machine's) for weights and cache."""
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt and completion at most; none given: as many as the model allows."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: quicker to start, slower to draw."""
    args: dict[str, Any] = {}
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

SERVER_SHOWN = tuple(
    f"server.{key}" for key in ("url", "concurrency", "timeout", "patience", "api_key_env")
)
"""Keys of `generate` that say how a server is reached, not what it draws: a run goes on when its
server has moved."""


SERVER_BODY_OF_TOPR = frozenset(
    {
        "model", "prompt", "n", "best_of", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "logprobs", "echo", "stream",
        "return_token_ids", "include_stop_str_in_output", "skip_special_tokens",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    }
)  # fmt: skip
"""Fields of a request that fix what is sampled, or how it is read."""


class ServerConfig(Section):
    """An OpenAI-compatible completions server, for engine `server`: one that is there, or one that
    topr starts for each model and ends."""

    url: str | None = None
    """Of a server that is there, such as `http://10.0.0.7:8000/v1`; none given: topr starts one."""
    command: tuple[str, ...] | None = None
    """Words that start a server; in each, `{model}`, `{revision}`, `{dtype}`, `{host}` and `{port}`
    stand for what they say. None given: vLLM's own server, where vllm can be imported."""
    arguments: tuple[str, ...] = ()
    """Further words for vLLM's own server, such as `--tensor-parallel-size` and `4`."""
    model: str | None = None
    """What the server calls the model, `{model}` for its path; none given: it is asked."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Requests under way at a time, one completion each."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that one request may take before it is made again."""
    patience: Annotated[float, Field(gt=0)] = 900.0
    """Seconds without any answer (a server that starts, restarts or is gone) before giving up."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key. The key itself is read there
    and written nowhere."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, beside those that topr sends."""

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


RAY_SHOWN = tuple(
    f"ray.{key}" for key in ("workers", "address", "gpus_per_worker", "cpus_per_worker")
)
"""Keys of `generate` that say where it is drawn, not what: a run goes on on another cluster."""


class RayConfig(Section):
    """Ray Data over another engine, for engine `ray`."""

    engine: Literal["transformers", "server", "vllm"] = "transformers"
    """What draws completions in each worker, with the settings that it has without Ray."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Copies of the model; none given: as many as the cluster's GPUs allow, or 1 without a GPU."""
    address: str | None = None
    """Of a cluster: `auto` (the one on this machine), or host and port; none given: that of
    RAY_ADDRESS, else one that is started here and ends with the run."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each worker; none given: 1 (with vllm, its tensor_parallel_size) where the cluster
    has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of each worker."""


class GenerateConfig(Section):
    """How completions are drawn for training."""

    SHOWN: ClassVar[tuple[str, ...]] = (*Section.SHOWN, *SERVER_SHOWN, *RAY_SHOWN)

    engine: Literal["transformers", "ray", "server", "vllm"] = "transformers"
    """What draws completions."""
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
    """Strings that end a completion; none given: the task's own."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions that are decoded side by side (engine `transformers`)."""
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

    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes; none given: one per core."""
    timeout: Annotated[float, Field(gt=0)] = 3.0
    """Seconds that one completion may take before its worker is killed."""
    memory_mb: Annotated[int, Field(ge=256)] = 2048
    """Address space of one worker, in MiB."""
    truncated: Literal["wrong", "grade", "drop"] = "wrong"
    """A completion that the token limit cut off: `wrong` whatever it says (the paper's rule),
    `grade` it as if it had ended, or `drop` it from training (reward none)."""


Limits = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class TaperConfig(Section):
    """The four limits of a taper and the level of its ratio, where the preset's are not wanted."""

    positive: Limits = (1.0, 1.0)
    """[a+, b+]: limits of the ratio on completions with advantage >= 0. `.inf` for no limit."""
    negative: Limits = (0.0, 1.0)
    """[a-, b-]: limits of the ratio on completions with advantage < 0."""
    level: Literal["sequence", "token", "geometric"] = "sequence"
    """Ratio of the whole completion (the paper's), of each token, or the geometric mean."""


class LoraConfig(Section):
    """A low-rank adapter of peft, trained in the place of the model's own weights. It has no
    dropout: ratios need the model as it samples."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank."""
    alpha: Annotated[int, Field(ge=1)] = 32
    """Its product counts alpha / r."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get one; `all-linear`: all linear ones but the output layer."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Keep the frozen weights in 4 bits (NF4: QLoRA) or 8, with bitsandbytes. Needs CUDA."""
    merge: bool = True
    """Write the model with the adapter added into its weights, which every tool loads, and the
    adapter beside it in `adapter/`; else the adapter alone is the model, and only topr, peft and
    transformers load that."""


class TrainConfig(Section):
    """How a model is trained on a dataset. Names are those of `transformers.TrainingArguments`
    where it has one. The defaults are the paper's."""

    objective: str = "topr"
    """A name in `topr.objectives.OBJECTIVES`, or `taper` with the limits given in `taper`."""
    taper: TaperConfig | None = None
    """Limits of one's own, with objective `taper`."""
    objective_args: dict[str, float | str] = {}
    """Further settings of the objective, such as `beta` of dpo or `level` of ppo."""
    normalization: Literal["length", "none", "constant"] | None = None
    """What each completion's loss is divided by: its tokens (`length`), nothing, or
    `normalization_constant`. None given: as the objective's paper has it, `length` for TOPR."""
    normalization_constant: Annotated[float, Field(gt=0)] = 1.0
    """With normalization `constant`."""
    baseline: float | None = None
    """c in A = R - c. None given: 0, or what `effective_positive_share` asks for."""
    effective_positive_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of positives that the baseline should make the dataset act like."""
    behavior_logprobs: Literal["sampler", "recompute"] = "sampler"
    """Where log mu comes from: `sampler` (as recorded) or `recompute` (one forward pass of the
    behaviour model in the trainer's numerics, cached)."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    """Peak rate."""
    lr_scheduler_type: str = "constant"
    """A schedule of transformers: constant, constant_with_warmup, linear, cosine, ..."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates in which the rate rises from 0; needs a schedule that warms up."""
    optim: str = "adafactor"
    """An optimizer of transformers: adafactor, adamw_torch, ..."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """With an Adam."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """With an Adam."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradient clipping by norm. 0 means off."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the dataset, unless `max_steps` is given."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; none given: as many as the epochs take."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions per optimizer step, over all devices."""
    shuffle_by: Literal["completion", "prompt"] = "completion"
    """What is shuffled into batches: single completions, or prompts with all their completions,
    which are then computed with their prompt once."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward pass, prompts and padding included; none given: 4096 on a CPU, else the
    whole batch, halved whenever memory runs out. It changes memory and time, never the gradient."""
    layout: Literal["auto", "shared", "padded"] = "auto"
    """`shared`: a prompt is computed once for all its completions, and nothing is padded; `padded`:
    every sequence by itself; `auto`: `shared` where the model allows it. Same gradient."""
    skip_negatives: Annotated[float, Field(ge=0, lt=1)] | Literal["sample"] | None = None
    """Negatives that get no backward pass: those whose taper is at most this number (0 is exact),
    or with `sample` each with the chance that its taper leaves, unbiased. None given: every one has
    a backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter instead of the model's own weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights in memory. bfloat16 rounds small updates away: at the default
    rate it learns next to nothing; use it with rates of 1e-5 and more."""
    bf16: bool = False
    """Autocast to bfloat16; log-probabilities stay float32."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Prompt and completion tokens at most; longer rows are dropped and counted."""
    save_steps: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints: what an interruption may cost at most."""
    snapshots: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Optimizer steps after which the model on its way is kept, in `snapshots/`, and evaluated."""
    logging_steps: Annotated[int, Field(ge=1)] = 1
    """Steps between lines of the log."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers beside the run's own log: wandb, tensorboard, trackio, mlflow."""
    training_arguments: dict[str, Any] = {}
    """Any further field of TOPRConfig, passed as it is."""

    @model_validator(mode="after")
    def _choices_agree(self) -> "TrainConfig":
        if self.baseline is not None and self.effective_positive_share is not None:
            raise ValueError(
                f"both baseline={self.baseline} and "
                f"effective_positive_share={self.effective_positive_share} are set: "
                "each fixes the other, so set one"
            )
        if (self.objective == "taper") != (self.taper is not None):
            raise ValueError(
                f"objective {self.objective!r} with taper={self.taper}: "
                "the section `taper` belongs to objective 'taper', which needs it"
            )
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is no multiple of logging_steps="
                f"{self.logging_steps}: a resumed log would differ from a straight one"
            )
        late = [step for step in self.snapshots if self.max_steps and step > self.max_steps]
        if late:
            raise ValueError(
                f"snapshots={late} with max_steps={self.max_steps}: training ends before"
            )
        self._refuse_idle_keys()
        return self

    def _refuse_idle_keys(self) -> None:
        """Refuse keys that would do nothing."""
        idle = {
            "normalization_constant": (1.0, self.normalization == "constant"),
            "warmup_steps": (0, self.lr_scheduler_type != "constant"),
            "adam_beta1": (0.9, "adam" in self.optim),
            "adam_beta2": (0.999, "adam" in self.optim),
        }
        for key, (default, used) in idle.items():
            value = getattr(self, key)
            if value != default and not used:
                raise ValueError(
                    f"{key}={value} does nothing with normalization={self.normalization!r}, "
                    f"lr_scheduler_type={self.lr_scheduler_type!r}, optim={self.optim!r}: change "
                    "one of them, or leave the key out"
                )


class LoopConfig(Section):
    """How an iteration follows from those before it."""

    start: Literal["last", "base"] = "last"
    """Which model training starts from in each iteration: the last iteration's, or the base, anew.
    Rollouts are drawn with the last iteration's model either way."""
    window: Annotated[int, Field(ge=1)] | None = 1
    """Iterations whose datasets are trained on together, the newest included: 1 is the newest
    alone, `null` all of them. Each completion keeps the log-probabilities of the model that wrote
    it."""
    keep: Literal["last", "best"] = "last"
    """Which iteration's model is the run's result: the last one, or the best by pass@1 on the
    validation split, the base included. All models stay on disk."""


class EvaluateConfig(Section):
    """How a model is measured on held-out problems."""

    split: Literal["validation", "test"] = "test"
    """`validation` where a choice is made on the numbers, `test` where they are reported."""
    problems: Annotated[int, Field(ge=1)] | None = None
    """The first this many problems of the split; none given: all."""
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
    """Completion tokens at most; none given: as in `generate`."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the problems for the 95 % intervals."""
