"""The sections of a recipe, one per stage. A stage is given its own section and no other."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from topr.config.base import Section
from topr.config.engines import RAY_SHOWN, SERVER_SHOWN, RayConfig, ServerConfig, VllmConfig


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
    objective_args: dict[str, float | str] = Field(default_factory=dict)
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
    """Tokens of one forward pass, padding included and what is shared once; none given: 4096 on a
    CPU, else the whole batch, and 16,384 where log mu is recomputed; halved whenever memory runs
    out. It changes memory and time, never the gradient."""
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
    mask_truncated: bool = False
    """Leave out completions that the token limit cut off (`finish_reason` `length`), and count
    them: for rows that topr did not grade, which `grade.truncated` does not reach."""
    save_steps: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints: what an interruption may cost at most."""
    snapshots: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Optimizer steps after which the model on its way is kept, in `snapshots/`, and evaluated."""
    logging_steps: Annotated[int, Field(ge=1)] = 1
    """Steps between lines of the log."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers beside the run's own log: wandb, tensorboard, trackio, mlflow."""
    training_arguments: dict[str, Any] = Field(default_factory=dict)
    """Any further field of TOPRConfig, passed as it is; none that uploads (`topr push` does)."""

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
