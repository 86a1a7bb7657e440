"""The section `train`. `TrainSettings` is the one definition of what training's settings are
called, may be and are by default: the recipe's section and `TOPRConfig` are made of it.
"""

import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import BeforeValidator, Field, model_validator

from topr.config.base import Section

logger = logging.getLogger(__name__)

RENAMED: Mapping[str, str] = {
    "normalization": "loss_normalization", "batch_size": "global_batch_size",
}  # fmt: skip

Count = Annotated[int, Field(ge=1)]


def _parsed(value: Any) -> Any:
    """Read a mapping that the command line gives as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _spelled(value: Any) -> Any:
    """Read the word that YAML takes for a boolean."""
    return "off" if value is False else value


@cache
def _say_renamed(name: str) -> None:
    logger.warning("train.%s is called train.%s: write that", name, RENAMED[name])


class TrainSettings(Section):
    """What a recipe's section `train` and `TOPRConfig` have in common. Names are those of
    `transformers.TrainingArguments` where it has one. The defaults are the paper's."""

    RENAMED: ClassVar[Mapping[str, str]] = RENAMED
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_tokens", "layout", "save_steps", "logging_steps", "report_to"}
    )

    objective: str = "topr"
    """A name in `topr.objectives.OBJECTIVES`, or `taper` with custom limits."""
    objective_args: Annotated[dict[str, Any], BeforeValidator(_parsed)] = Field(
        default_factory=dict
    )
    """Arguments of the objective, such as `beta` of dpo or `level` of ppo."""
    loss_normalization: Literal["length", "none", "constant"] | None = None
    """What each completion's loss is divided by: its tokens (`length`), nothing, or
    `normalization_constant`. Defaults to what the objective's paper has, `length` for TOPR."""
    normalization_constant: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """With loss_normalization `constant`."""
    baseline: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """c in A = R - c. Defaults to 0, or what `effective_positive_share` asks for."""
    effective_positive_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of positives that the baseline should make the dataset act like."""
    behavior_logprobs: Literal["sampler", "recompute"] = "sampler"
    """Where log mu comes from: `sampler` (as recorded) or `recompute` (one forward pass of the
    behaviour model in the trainer's numerics, cached)."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-7
    """Peak learning rate."""
    lr_scheduler_type: str = "constant"
    """A schedule of transformers: constant, constant_with_warmup, linear, cosine, ..."""
    warmup_steps: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)], BeforeValidator(_whole)
    ] = 0
    """Steps in which the learning rate rises from 0, or their share of all steps; needs a schedule
    with a warm-up."""
    optim: str = "adafactor"
    """An optimizer of transformers: adafactor, adamw_torch, ..."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """With an Adam."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """With an Adam."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Gradient clipping by norm. 0 means off."""
    num_train_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Passes over the dataset, unless `max_steps` is given."""
    max_steps: Count | None = None
    """Optimizer steps; defaults to as many as the epochs take."""
    global_batch_size: Count = 64
    """Completions per optimizer step, over all devices."""
    shuffle_by: Literal["completion", "prompt"] = "completion"
    """What is shuffled into batches: single completions, or prompts with all their completions,
    which are then computed with their prompt once."""
    micro_batch_tokens: Count | None = None
    """Tokens of one forward pass, padding included and what is shared once; defaults to 4096 on a
    CPU, else the whole batch, and 16,384 where log mu is recomputed; halved whenever memory runs
    out. It changes memory and time, never the gradient."""
    layout: Literal["auto", "shared", "padded"] = "auto"
    """`shared`: a prompt is computed once for all its completions, and nothing is padded; `padded`:
    every sequence by itself; `auto`: `shared` where the model allows it. Same gradient."""
    skip_negatives: Annotated[float, Field(ge=0, lt=1)] | Literal["sample"] | None = None
    """Negatives that get no backward pass: those whose taper is at most this number (0 is exact),
    or with `sample` each with the chance that its taper leaves, unbiased. By default every one has
    a backward pass."""
    bf16: bool = False
    """Autocast to bfloat16; log-probabilities stay float32."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Prompt and completion tokens at most; longer rows are dropped and counted."""
    mask_truncated: bool = False
    """Leave out truncated completions (`finish_reason` `length`), and count them: for rows that
    topr did not grade, which `grade.truncated` does not reach."""
    watch: Annotated[Literal["warn", "stop", "off"], BeforeValidator(_spelled)] = "warn"
    """What happens when training ruins the model: right answers are unlearned along with wrong
    ones, the taper shuts in the first steps, or the probe drops. `warn`; `stop`, with the last good
    weights as the trained model; or nothing (`off`)."""
    watch_steps: Count | None = None
    """Steps between probes and, with `stop`, between good weights that are kept; defaults to a
    tenth of the training, and 10 at least."""
    save_steps: Count = 100
    """Steps between checkpoints: what an interruption may cost at most."""
    logging_steps: Count = 1
    """Steps between lines of the log."""
    report_to: tuple[str, ...] = ()
    """Trackers of transformers, next to the run's log: wandb, tensorboard, trackio, mlflow."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "TrainSettings":
        if self.baseline is not None and self.effective_positive_share is not None:
            raise ValueError(
                f"both baseline={self.baseline} and "
                f"effective_positive_share={self.effective_positive_share} are set: "
                "each fixes the other, so set one"
            )
        if self.normalization_constant != 1.0 and self.loss_normalization != "constant":
            self._has_no_effect("normalization_constant", "loss_normalization", "'constant'")
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            self._has_no_effect("warmup_steps", "lr_scheduler_type", "'constant_with_warmup'")
        if self.watch_steps is not None and self.watch == "off":
            self._has_no_effect("watch_steps", "watch", "'warn' or 'stop'")
        return self

    def _has_no_effect(self, name: str, other: str, wanted: str) -> NoReturn:
        raise ValueError(
            f"{name}={getattr(self, name)} does nothing with {other}={getattr(self, other)!r}: set "
            f"that to {wanted}, or leave the key out"
        )


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
    adapter next to it in `adapter/`; else the adapter alone is the model, and only topr, peft and
    transformers load that."""


class TrainConfig(TrainSettings):
    """How a model is trained on a dataset."""

    NO_EFFECT: ClassVar[frozenset[str]] = TrainSettings.NO_EFFECT | {"gradient_checkpointing"}

    taper: TaperConfig | None = None
    """Custom limits, for objective `taper`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter instead of the model's own weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trained weights in memory. bfloat16 rounds small updates away: at the default
    rate it learns next to nothing; use it with rates of 1e-5 and more."""
    snapshots: tuple[Count, ...] = ()
    """Optimizer steps after which the model on its way is kept, in `snapshots/`, and evaluated."""
    probe_problems: Annotated[int, Field(ge=0)] = 32
    """Validation questions that the model on its way answers, once each, every `watch_steps`; 0:
    none. Where there are any: in a run of a recipe, or with `topr train --probe`."""
    training_arguments: dict[str, Any] = Field(default_factory=dict)
    """Any further field of TOPRConfig, passed as it is; none that uploads (`topr push` does)."""

    def without_effect(self) -> frozenset[str]:
        """See `Section.without_effect`: a watch that only warns may be turned off in a run."""
        watching = {"watch", "watch_steps", "probe_problems"}
        return self.NO_EFFECT if self.watch == "stop" else self.NO_EFFECT | watching

    @model_validator(mode="before")
    @classmethod
    def _new_names(cls, values: Any) -> Any:
        """Take old names of keys. The later of both counts: an override comes after its recipe."""
        if not isinstance(values, dict):
            return values
        renamed = {}
        for name, value in values.items():
            if name in RENAMED:
                _say_renamed(name)
            renamed[RENAMED.get(name, name)] = value
        return renamed

    @model_validator(mode="after")
    def _choices_agree(self) -> "TrainConfig":
        if (self.objective == "taper") != (self.taper is not None):
            raise ValueError(
                f"objective {self.objective!r} with taper={self.taper}: "
                "the section `taper` belongs to objective 'taper', which needs it"
            )
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is not a multiple of logging_steps="
                f"{self.logging_steps}: a resumed log would differ from a straight one"
            )
        if self.watch == "off" and self.probe_problems != 32:
            self._has_no_effect("probe_problems", "watch", "'warn' or 'stop'")
        if self.watch_steps and self.watch == "warn" and not self.probe_problems:
            raise ValueError(
                f"watch_steps={self.watch_steps} does nothing with watch='warn' and "
                "probe_problems=0: every step is looked at; leave the key out"
            )
        late = [step for step in self.snapshots if self.max_steps and step > self.max_steps]
        if late:
            raise ValueError(
                f"snapshots={late} with max_steps={self.max_steps}: training ends before"
            )
        return self
