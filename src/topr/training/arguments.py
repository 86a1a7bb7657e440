"""`TOPRConfig`: the trainer's arguments, those of `transformers.TrainingArguments` and ours.

What ours are called, what they may be and what they are by default is `topr.config.TrainSettings`.
"""

import difflib
import os
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from topr.config import TrainSettings
from topr.config.mistakes import validate
from topr.errors import ConfigError
from topr.training.inherited import REFUSED_VALUES, Inherited, validate_inherited

SETTINGS = TrainSettings.model_fields
NOT_GIVEN: dict[str, Any] = {
    "objective_args": None, "global_batch_size": None, "max_steps": -1, "report_to": "none",
}  # fmt: skip
"""Values by which a `TOPRConfig` says that a setting is not given, where a recipe has another."""
CHOICES: dict[str, type[Enum]] = {"optim": OptimizerNames, "lr_scheduler_type": SchedulerType}


def setting(name: str, **default: Any) -> Any:
    """Return a dataclass field with the description and, unless one is given, the default that a
    setting of the section `train` has.
    """
    found = SETTINGS[name]
    text = " ".join(str(found.description).split())
    given = {"default": NOT_GIVEN.get(name, found.default)} | default
    return field(**given, metadata={"help": text})


@dataclass
class TOPRConfig(TrainingArguments):
    """Arguments of `TOPRTrainer`.

    The defaults are the paper's: Adafactor at a constant 5e-7, no weight decay, gradients clipped
    at 1, one epoch, each completion's loss divided by its length. Below stand the arguments that
    `transformers.TrainingArguments` lacks and the ones whose default differs from its. Of what is
    inherited, `topr.training.inherited` says what works.

    Raises:
        ConfigError: a value is none that the setting can have, or a setting would do nothing.

    """

    # What is trained.
    objective: str = setting("objective")
    objective_args: dict[str, Any] | str | None = setting("objective_args")
    loss_normalization: Literal["length", "none", "constant"] | None = setting("loss_normalization")
    normalization_constant: float = setting("normalization_constant")
    baseline: float | None = setting("baseline")
    effective_positive_share: float | None = setting("effective_positive_share")
    behavior_logprobs: Literal["sampler", "recompute"] = setting("behavior_logprobs")

    # How it is watched.
    watch: Literal["warn", "stop", "off"] = setting("watch")
    watch_steps: int | None = setting("watch_steps")

    # How rows become batches.
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions per optimizer step over all processes; None: "
            "per_device_train_batch_size times the processes and gradient_accumulation_steps"
        },
    )
    max_length: int | None = setting("max_length")
    mask_truncated: bool = setting("mask_truncated")
    micro_batch_tokens: int | None = setting("micro_batch_tokens")
    layout: Literal["auto", "shared", "padded"] = setting("layout")
    skip_negatives: float | str | None = setting("skip_negatives")
    shuffle_by: Literal["completion", "prompt"] = setting("shuffle_by")

    # Defaults of transformers that differ here.
    per_device_train_batch_size: int = field(
        default=SETTINGS["global_batch_size"].default,
        metadata={"help": "Completions per batch and process"},
    )
    learning_rate: float = setting("learning_rate")
    lr_scheduler_type: str = setting("lr_scheduler_type")
    optim: str = setting("optim")
    num_train_epochs: float = setting("num_train_epochs")
    save_steps: float = setting("save_steps")
    logging_steps: float = setting("logging_steps")
    report_to: list[str] | str | None = setting("report_to")  # HfArgumentParser takes the second
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: NaN and infinity stop the run instead"}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off: the trainer picks its own columns"}
    )

    def __post_init__(self) -> None:
        """See `transformers.TrainingArguments`. Models are loaded whole, with ZeRO-3 too."""
        given = self.report_to or "none"
        self.report_to = given if isinstance(given, str) else list(given)
        self.validate()
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except (ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(str(error)) from error
        load_models_whole()
        if self.torch_compile:  # All later trainings of the process would find it there.
            os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
            os.environ.pop("ACCELERATE_DYNAMO_MODE", None)

    def validate(self) -> None:
        """Check every value by the one definition of the settings, and what is inherited.

        Raises:
            ConfigError: a value is none that the setting can have, or a setting would do nothing.

        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if values["accelerator_config"] == AcceleratorConfig():
            values["accelerator_config"] = None
        defaults = {
            each.name: each.default if each.default_factory is MISSING else each.default_factory()
            for each in fields(self)
        }
        validate_inherited(values, defaults)
        given = {
            name: values[name]
            for name in SETTINGS
            if name not in NOT_GIVEN or values[name] not in (NOT_GIVEN[name], None, [])
        }
        for name, names in CHOICES.items():
            if values[name] not in list(names):
                known = [
                    v for v in (each.value for each in names) if (name, v) not in REFUSED_VALUES
                ]
                near = difflib.get_close_matches(str(values[name]), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise ConfigError(f"no {name} {values[name]!r}; {hint}")
        inherited = {name: values[name] for name in Inherited.model_fields}
        for name, value in validate(Inherited, inherited, where="TOPRConfig"):
            setattr(self, name, value)
        settings = validate(TrainSettings, given, where="TOPRConfig")
        for name in given.keys() - {"report_to", "optim", "lr_scheduler_type"}:
            setattr(self, name, getattr(settings, name))
        if self.global_batch_size is not None:
            self._check_sizes(self.global_batch_size)

    def _check_sizes(self, size: int) -> None:
        each, parts = self.per_device_train_batch_size, self.gradient_accumulation_steps
        if each != SETTINGS["global_batch_size"].default:
            raise ConfigError(
                f"global_batch_size={size} with per_device_train_batch_size={each}: the first says "
                "how many completions an optimizer step has, over all devices: leave one out"
            )
        if size % parts:
            raise ConfigError(
                f"global_batch_size={size} with gradient_accumulation_steps={parts}: an optimizer "
                "step's completions must make that many equal batches (micro_batch_tokens splits "
                "them without)"
            )

    def batch_size(self, processes: int) -> int:
        """Return the completions of one batch of the loader, over all processes."""
        if self.global_batch_size is not None:
            return self.global_batch_size // self.gradient_accumulation_steps
        return self.per_device_train_batch_size * processes

    def steps_per_epoch(self, batches: int) -> int:
        """Return the optimizer steps that a pass over that many batches takes."""
        return -(-batches // self.gradient_accumulation_steps)

    def optimizer_steps(self, batches: int) -> int:
        """Return the optimizer steps of a training with that many batches an epoch."""
        if self.max_steps > 0:
            return int(self.max_steps)
        epochs = self.num_train_epochs * self.steps_per_epoch(batches)
        return max(1, -(-int(epochs * 1000) // 1000))


def load_models_whole() -> None:
    """Keep transformers from handing out models in pieces once it has heard of ZeRO-3.

    Only DeepSpeed's engine can run those; but how a model is to be run is tried before there is
    one, and other models that wrote rows are run without.
    """
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
