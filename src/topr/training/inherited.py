"""Fields of `transformers.TrainingArguments` that do not do under topr what they say, and ranges of
those that do.

A field that is neither here nor known to work fails a test, so that a new release of transformers
is looked at.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from topr.config import Section
from topr.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]


class Inherited(Section):
    """Values of those that work and can be checked: transformers would take any."""

    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    adam_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    lr_scheduler_kwargs: dict[str, Any] | str | None
    optim_args: str | None
    optim_target_modules: str | list[str] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    full_determinism: bool
    fp16: bool
    torch_compile: bool
    use_cpu: bool
    save_total_limit: Count | None
    save_only_model: bool
    ignore_data_skip: bool
    logging_first_step: bool
    log_level: LogLevel
    log_level_replica: LogLevel
    dataloader_num_workers: Annotated[int, Field(ge=0)]
    dataloader_pin_memory: bool
    ddp_timeout: Count


FOR_SCRIPTS = frozenset(
    {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"}
)
"""No trainer reads them: they are for scripts around one."""

_NO_EVALUATION = (
    "there is no evaluation while TOPRTrainer trains: leave it out, and measure models with "
    "`topr eval`, or snapshots of a recipe's training (train.snapshots)"
)
_ORDER = (
    "batches are whole optimizer steps, shuffled by `seed` and the epoch: leave it out, and choose "
    "with `shuffle_by` what is shuffled"
)
_LOADER = (
    "rows are read from a file that is mapped into memory, and the loader has no such switch: "
    "leave it out"
)
_NO_WRAPPER = (
    "the model is not wrapped in DistributedDataParallel, gradients are summed once a step: leave "
    "it out"
)

REFUSED: Mapping[str, str] = {
    "neftune_noise_alpha": "noise on the embeddings makes the trained policy another one than the "
    "one that sampled, and ratios wrong: leave it out",
    "label_smoothing_factor": "the loss is an objective's, and has no labels to smooth: leave it "
    "out",
    "parallelism_config": "tensor, sequence or context parallelism splits single sequences or "
    "weights in a way that the forward pass here does not know: shard weights with fsdp instead",
    "average_tokens_across_devices": "a step's loss is divided by its completions over all "
    "devices, always: leave it out",
    "use_cache": "training keeps no cache of keys and values: leave it out",
    "torch_empty_cache_steps": "topr's training step does not do that: leave it out, and lower "
    "`micro_batch_tokens` where memory is short",
    "auto_find_batch_size": "it would change what a step is; here `micro_batch_tokens` is halved "
    "where memory runs out, which does not: leave it out",
    "logging_nan_inf_filter": "NaN and infinity stop the training instead of being hidden: leave "
    "it out",
    "include_num_input_tokens_seen": "transformers would count the rows of a batch, which are not "
    "tokens: leave it out, and read `tokens_per_second`",
    "remove_unused_columns": "the trainer picks its own columns: leave it out",
    "label_names": "rows have no labels but rewards: leave it out",
    "accelerator_config": "what it says of loading data and of gradients does nothing here: leave "
    "it out",
    "dataloader_drop_last": "every row is trained on once an epoch: leave it out",
    "data_seed": "rows are shuffled by `seed`: leave it out, and set that",
    "train_sampling_strategy": _ORDER,
    "group_by_length": _ORDER,
    "length_column_name": _ORDER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "ddp_find_unused_parameters": _NO_WRAPPER,
    "ddp_bucket_cap_mb": _NO_WRAPPER,
    "ddp_broadcast_buffers": _NO_WRAPPER,
    "ddp_static_graph": _NO_WRAPPER,
    **dict.fromkeys(
        (
            "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size",
            "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
            "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
            "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "load_best_model_at_end",
            "metric_for_best_model", "greater_is_better",
        ),
        _NO_EVALUATION,
    ),
}  # fmt: skip
"""They would do nothing, or something wrong: each with the reason, and what to do instead."""

REFUSED_VALUES: Mapping[tuple[str, str], str] = {
    ("save_strategy", "best"): _NO_EVALUATION,
    ("lr_scheduler_type", "reduce_lr_on_plateau"): _NO_EVALUATION,
    **{
        ("optim", name): "it changes weights within the backward pass, before all micro-batches of "
        "a step are in: take another optimizer"
        for name in (
            "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
            "galore_adafactor_layerwise", "apollo_adamw_layerwise",
        )
    },
    **{
        ("optim", f"schedule_free_{name}"): "topr's training step does not switch it between its "
        "two sets of weights: take another optimizer"
        for name in ("radam", "adamw", "sgd")
    },
}  # fmt: skip
"""Single values of fields that work otherwise."""

_UPLOADS = (
    "training uploads nothing (transformers would upload a pickle, training_args.bin, with the "
    "model): leave it out, and upload what was trained with `topr push`"
)
_RESUMES = "an interrupted run must end as an undisturbed one, so that is not a recipe's to change"

NOT_IN_RECIPES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
            "hub_always_push", "hub_revision",
        ),
        _UPLOADS,
    ),
    **dict.fromkeys(("save_only_model", "ignore_data_skip", "resume_from_checkpoint"), _RESUMES),
    **dict.fromkeys(
        FOR_SCRIPTS - {"resume_from_checkpoint"}, "no training reads it: leave it out"
    ),
    "per_device_train_batch_size": "train.global_batch_size says how large a step is, over all "
    "devices",
}  # fmt: skip
"""What `train.training_arguments` does not take, in addition to `REFUSED`, and why."""


def validate_inherited(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse what was set and would do nothing, or something wrong.

    Args:
        values: fields of a `TOPRConfig`.
        defaults: of the same fields.

    Raises:
        ConfigError: the first one that is refused, with the reason.

    """
    for name, why in REFUSED.items():
        value = values.get(name, defaults.get(name))
        switched_off = value is False and defaults.get(name) == "no"
        if value != defaults.get(name) and not switched_off:
            raise ConfigError(f"{name}={value}: {why}")
    for (name, value), why in REFUSED_VALUES.items():
        if values[name] == value:
            raise ConfigError(f"{name}={value}: {why}")
