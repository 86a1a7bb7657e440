"""`TOPRConfig`: the trainer's arguments, those of `transformers.TrainingArguments` and ours."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config


@dataclass
class TOPRConfig(TrainingArguments):
    """Arguments of `TOPRTrainer`.

    The defaults are the paper's: Adafactor at a constant 5e-7, no weight decay, gradients clipped
    at 1, one epoch, each completion's loss divided by its length. Below stand the arguments that
    `transformers.TrainingArguments` lacks and the ones whose default differs from its.
    """

    # What is trained.
    objective: str = field(
        default="topr",
        metadata={"help": "Name in topr.objectives.OBJECTIVES, or `taper` for limits of one's own"},
    )
    objective_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Numbers of the objective, such as {'beta': 0.1} for dpo"}
    )
    loss_normalization: Literal["length", "none", "constant"] | None = field(
        default=None,
        metadata={
            "help": "What a completion's loss is divided by; none given: the objective's own"
        },
    )
    normalization_constant: float = field(
        default=1.0, metadata={"help": "The constant of loss_normalization=constant"}
    )
    baseline: float | None = field(default=None, metadata={"help": "c in A = R - c"})
    effective_positive_share: float | None = field(
        default=None, metadata={"help": "Share of positives that the baseline should act like"}
    )
    behavior_logprobs: Literal["sampler", "recompute"] = field(
        default="sampler",
        metadata={"help": "log mu as recorded, or by one forward pass of the behaviour model"},
    )

    # How rows become batches.
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions per optimizer step over all processes; None: "
            "per_device_train_batch_size times the processes"
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Prompt and completion tokens at most; longer rows go"}
    )
    mask_truncated: bool = field(
        default=False,
        metadata={
            "help": "Leave out completions that the token limit cut off (finish_reason length)"
        },
    )
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of one forward pass, padding included and what is shared once. It "
            "splits the batch, and changes memory and time, never the gradient. None: 4096 on a "
            "CPU; elsewhere the whole batch, and 16,384 where log mu is recomputed; halved "
            "whenever memory runs out"
        },
    )
    layout: Literal["auto", "shared", "padded"] = field(
        default="auto",
        metadata={
            "help": "shared: a prompt is computed once for all its completions, and nothing is "
            "padded; padded: every sequence by itself; auto: shared where the model allows it"
        },
    )
    skip_negatives: float | str | None = field(
        default=None,
        metadata={
            "help": "Which negatives get no backward pass. A number: those whose taper is at most "
            "that (0: exact). `sample`: each keeps it with probability equal to its taper, unbiased"
        },
    )
    shuffle_by: Literal["completion", "prompt"] = field(
        default="completion",
        metadata={
            "help": "Unit of shuffling: single completions, or prompts with all their completions "
            "in one batch (always so for objectives that compare within a group)"
        },
    )

    # Defaults of transformers that differ here.
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Completions per optimizer step and process"}
    )
    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate"})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule"})
    optim: str = field(default="adafactor", metadata={"help": "Optimizer"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the dataset"})
    logging_steps: float = field(default=1, metadata={"help": "Steps between lines of the log"})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Off: NaN and infinity stop the run instead"}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off: the trainer picks its own columns"}
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Trackers beside the run's own log"}
    )

    def __post_init__(self) -> None:
        """See `transformers.TrainingArguments`. Models are loaded whole, with ZeRO-3 too."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        load_models_whole()
        if self.torch_compile:  # All later trainings of the process would find it there.
            os.environ.pop("ACCELERATE_DYNAMO_BACKEND", None)
            os.environ.pop("ACCELERATE_DYNAMO_MODE", None)


def load_models_whole() -> None:
    """Keep transformers from handing out models in pieces once it has heard of ZeRO-3.

    Only DeepSpeed's engine can run those; but how a model is to be run is tried before there is
    one, and other models that wrote rows are run without.
    """
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
