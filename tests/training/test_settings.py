"""One definition of training's settings: recipe and Python take the same, and refuse the same."""

import dataclasses
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from topr.config import ModelConfig, TrainConfig, TrainSettings, load_section
from topr.config.mistakes import validate
from topr.errors import ConfigError, ToprError
from topr.stages.train_arguments import training_arguments
from topr.training import TOPRConfig
from topr.training.arguments import NOT_GIVEN
from topr.training.checks import check_arguments
from topr.training.inherited import (
    FOR_SCRIPTS,
    NOT_IN_RECIPES,
    REFUSED,
    REFUSED_VALUES,
)

OWN = {f.name: f for f in dataclasses.fields(TOPRConfig)}
INHERITED = {f.name for f in dataclasses.fields(TrainingArguments)}

WORKS = frozenset(
    {
        "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim",
        "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32",
        "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "logging_strategy",
        "logging_steps", "logging_first_step", "log_on_each_node", "log_level",
        "log_level_replica", "disable_tqdm", "report_to", "run_name", "project",
        "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "save_only_model",
        "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
        "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id",
        "hub_strategy", "hub_always_push", "hub_revision", "ignore_data_skip",
        "restore_callback_states_from_checkpoint", "full_determinism", "seed", "use_cpu",
        "dataloader_num_workers", "dataloader_pin_memory", "ddp_backend", "ddp_timeout", "fsdp",
        "fsdp_config", "deepspeed", "debug", "skip_memory_metrics",
    }
)  # fmt: skip
"""They do what transformers says of them."""


def config(**values):
    return TOPRConfig(output_dir="unused", use_cpu=True, **values)


def from_recipe(**values):
    """What a run's training gets of a section `train`."""
    section = validate(TrainConfig, values, where="train")
    return training_arguments(section, ModelConfig(device="cpu"), Path("unused"), 0)


def test_a_setting_is_in_both_with_one_default():
    assert set(TrainSettings.model_fields) <= set(OWN)
    # Nothing of our own beside it: a setting cannot be in Python alone.
    assert set(OWN) - INHERITED <= set(TrainSettings.model_fields)
    for name, setting in TrainSettings.model_fields.items():
        assert OWN[name].default == NOT_GIVEN.get(name, setting.default), name
    assert config().per_device_train_batch_size == TrainSettings().global_batch_size


def test_a_recipe_without_keys_is_a_config_without_arguments():
    ours, theirs = from_recipe(), config(global_batch_size=64)
    for name in TrainSettings.model_fields.keys() - {"objective_args"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.objective_args or {}) == (theirs.objective_args or {})


SOME = {
    "objective": "dpo", "objective_args": {"beta": 0.3}, "loss_normalization": "none",
    "baseline": 0.25, "behavior_logprobs": "recompute", "learning_rate": 1e-5,
    "lr_scheduler_type": "linear", "warmup_steps": 3, "optim": "adamw_torch", "adam_beta1": 0.8,
    "adam_beta2": 0.9, "weight_decay": 0.1, "max_grad_norm": 2.0, "num_train_epochs": 2.5,
    "max_steps": 7, "global_batch_size": 8, "shuffle_by": "prompt", "micro_batch_tokens": 100,
    "layout": "padded", "bf16": True, "max_length": 50, "mask_truncated": True, "save_steps": 4,
    "logging_steps": 2, "report_to": ["tensorboard"], "watch": "stop", "watch_steps": 3,
}  # fmt: skip


def test_every_value_of_a_recipe_arrives():
    args = from_recipe(**SOME)
    for name, value in SOME.items():
        assert getattr(args, name) == value, name
    rest = {"normalization_constant", "effective_positive_share", "skip_negatives"}
    assert TrainSettings.model_fields.keys() - SOME.keys() == rest
    assert from_recipe(skip_negatives="sample").skip_negatives == "sample"
    assert from_recipe(effective_positive_share=0.2).effective_positive_share == 0.2
    limits = {"positive": [0, 2], "negative": [0, 1], "level": "token"}
    assert from_recipe(objective="taper", taper=limits).objective_args["level"] == "token"


@pytest.mark.parametrize(
    "values",
    [
        {"behavior_logprobs": "sampled"},
        {"layout": "share"},
        {"shuffle_by": "prompts"},
        {"loss_normalization": "lenght"},
        {"loss_normalization": "constant", "normalization_constant": -2.0},
        {"loss_normalization": "constant", "normalization_constant": 0.0},
        {"normalization_constant": 3.0},
        {"skip_negatives": 1.5},
        {"skip_negatives": -0.1},
        {"skip_negatives": "often"},
        {"skip_negatives": False},
        {"skip_negatives": True},
        {"baseline": True},
        {"max_steps": True},
        {"baseline": float("nan")},
        {"baseline": 0.1, "effective_positive_share": 0.1},
        {"effective_positive_share": 0.0},
        {"effective_positive_share": 1.5},
        {"learning_rate": -1e-6},
        {"learning_rate": float("inf")},
        {"warmup_steps": 5},
        {"warmup_steps": -5, "lr_scheduler_type": "linear"},
        {"adam_beta1": 1.0, "optim": "adamw_torch"},
        {"weight_decay": -0.1},
        {"max_grad_norm": -1.0},
        {"num_train_epochs": 0.0},
        {"max_steps": 0},
        {"global_batch_size": 0},
        {"micro_batch_tokens": 0},
        {"max_length": 1},
        {"save_steps": 0},
        {"logging_steps": 0},
        {"mask_truncated": "perhaps"},
        {"watch": "sometimes"},
        {"watch": "off", "watch_steps": 5},
        {"watch_steps": 0},
        {"objective_args": "beta"},
        # And what needs more than a look at the values.
        {"objective": "tpor"},
        {"objective": "dpo", "objective_args": {"beta": -1}},
        {"objective": "dpo", "objective_args": {"low": 1}},
        {"objective": "dpo", "objective_args": {"beta": True}},
        {"objective": "sft", "objective_args": {"level": "token"}},
        {"objective": "dpo", "skip_negatives": 0.1},
        {"objective": "reinforce", "skip_negatives": 0.1},
        {"objective": "reinforce", "skip_negatives": "sample"},
        {"objective": "grpo", "effective_positive_share": 0.2},
        {"objective": "dpo", "effective_positive_share": 0.2},
        {"objective": "sft", "effective_positive_share": 0.2},
        {"optim": "adamw_troch"},
        {"optim": "lomo"},
        {"optim": "schedule_free_adamw"},
        {"optim": "adamw_bnb_8bit"},  # needs a package that is not here
        {"adam_beta1": 0.5},  # of adafactor
        {"objective": "taper"},  # whose limits are the point
        {"lr_scheduler_type": "linaer"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "cosine_with_min_lr"},  # which needs its minimum
        {"report_to": ["tensorbored"]},
        {"report_to": ["comet_ml"]},
    ],
)
def test_what_cannot_work_is_refused_by_recipe_and_python_alike(values):
    named = "|".join(values)
    with pytest.raises(ConfigError, match=named):
        from_recipe(**values)
    with pytest.raises(ConfigError, match=named):
        check_arguments(config(**values))


def test_every_argument_of_transformers_is_sorted():
    """A new one must be looked at: does it do under topr what it says?"""
    sorted_ = [WORKS, FOR_SCRIPTS, REFUSED.keys()]
    assert set().union(*sorted_) >= INHERITED
    assert sum(map(len, sorted_)) == len(set().union(*sorted_))
    assert {name for name, _ in REFUSED_VALUES} <= WORKS


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & INHERITED))
def test_an_argument_that_would_do_nothing_is_refused(name):
    args = config()
    setattr(args, name, "something else")
    with pytest.raises(ConfigError, match=f"{name}=something else: "):
        check_arguments(args)


@pytest.mark.parametrize(
    "values",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"dataloader_drop_last": True},
        {"data_seed": 3},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 5, "load_best_model_at_end": True},
        {"remove_unused_columns": True},
        {"logging_nan_inf_filter": True},
        {"accelerator_config": {"split_batches": True}},
        {"save_strategy": "best"},
        {"use_cache": True},
        {"include_num_input_tokens_seen": "all"},
    ],
)
def test_so_it_is_when_it_is_given(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        config(**values)
    with pytest.raises(ConfigError, match=next(iter(values))):
        from_recipe(training_arguments=values)


def test_arguments_that_work_still_do():
    args = config(
        label_smoothing_factor=0.0, eval_strategy="no", include_num_input_tokens_seen=False,
        accelerator_config=None, report_to=None, do_train=True, max_steps=-1, save_steps=10.0,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-8},
        objective_args='{"lookahead": 1.0}', skip_negatives="0.5",
    )  # fmt: skip
    assert (args.objective_args, args.skip_negatives) == ({"lookahead": 1.0}, 0.5)
    check_arguments(args)
    check_arguments(dataclasses.replace(args, learning_rate=1e-6))  # what transformers filled in


def test_a_step_has_one_size():
    with pytest.raises(ConfigError, match="global_batch_size=8 with per_device_train_batch_size=4"):
        config(global_batch_size=8, per_device_train_batch_size=4)
    with pytest.raises(ConfigError, match="global_batch_size=8 with gradient_accumulation_steps=3"):
        config(global_batch_size=8, gradient_accumulation_steps=3)
    assert config(global_batch_size=8, gradient_accumulation_steps=2).batch_size(processes=2) == 4
    assert config(per_device_train_batch_size=8).batch_size(processes=2) == 16


def test_a_script_can_read_them_from_its_command_line():
    parser = HfArgumentParser(TOPRConfig)
    given = ["--output_dir", "unused", "--use_cpu"]
    words = ["--skip_negatives", "0.5", "--layout", "padded", "--objective_args", '{"lookahead":1}']
    (args,) = parser.parse_args_into_dataclasses([*given, *words])
    assert (args.skip_negatives, args.layout) == (0.5, "padded")
    assert args.objective_args == {"lookahead": 1}
    with pytest.raises(ConfigError, match="skip_negatives"):
        parser.parse_args_into_dataclasses([*given, "--skip_negatives", "1.5"])


@pytest.mark.parametrize(
    "values",
    [
        {"gradient_accumulation_steps": 0},
        {"gradient_accumulation_steps": 1.5},
        {"gradient_accumulation_steps": "two"},
        {"adam_epsilon": "small", "optim": "adamw_torch"},
        {"adam_epsilon": 0.0, "optim": "adamw_torch"},
        {"log_level": "loud"},
        {"lr_scheduler_kwargs": 3},
        {"lr_scheduler_kwargs": {"num_cycles": 3}},  # of a constant schedule
        {"lr_scheduler_kwargs": {"num_cycles": 3}, "lr_scheduler_type": "constant_with_warmup"},
        {"lr_scheduler_kwargs": {"cycles": 3}, "lr_scheduler_type": "cosine"},
        {"optim_args": 5},
        {"optim_args": "beta1"},
        {"optim_args": "lr=3"},  # adafactor reads none
        {"optim_args": "eps=1,lr=3", "optim": "adamw_torch"},
        {"optim_args": "weight_decay=0.1", "optim": "sgd"},  # that is another setting's
        {"optim_args": "momentum=0.9,inertia=1", "optim": "sgd"},
        {"optim_args": "nesterov=true", "optim": "sgd"},  # which needs momentum
        {"dataloader_num_workers": -1},
        {"dataloader_pin_memory": "perhaps"},
        {"fp16": "perhaps"},
    ],
)
def test_an_argument_of_transformers_has_a_type_and_a_range(values):
    name = next(iter(values))
    own = {k: v for k, v in values.items() if k in TrainSettings.model_fields}
    further = {k: v for k, v in values.items() if k not in own}
    with pytest.raises(ConfigError, match=name):
        from_recipe(**own, training_arguments=further)
    with pytest.raises(ConfigError, match=name):
        check_arguments(config(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"per_device_train_batch_size": 0},
        {"per_device_train_batch_size": -3},
        {"per_device_train_batch_size": True},
        {"seed": "x"},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_what_a_recipe_has_under_another_name_has_a_range_too(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        config(**values)


def test_numbers_as_text_become_numbers():
    args = config(gradient_accumulation_steps="2", seed="7", global_batch_size="8")
    assert (args.gradient_accumulation_steps, args.seed, args.global_batch_size) == (2, 7, 8)


def test_an_optimizers_own_arguments_are_taken():
    check_arguments(config(optim="sgd", optim_args="momentum=0.9, nesterov=true"))


def test_messages_have_the_names_that_are_written():
    with pytest.raises(ConfigError, match="optim=adafactor with optim_args=x: "):
        check_arguments(config(optim_args="x"))
    with pytest.raises(ConfigError, match="lr_scheduler_type=cosine_with_min_lr with"):
        check_arguments(config(lr_scheduler_type="cosine_with_min_lr"))
    with pytest.raises(ConfigError, match="no optim 'adam'; ") as caught:
        config(optim="adam")
    assert "lomo" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(NOT_IN_RECIPES))
def test_what_is_no_recipes_is_refused_in_training_arguments(name):
    with pytest.raises(ConfigError, match=rf"training_arguments\.{name}"):
        from_recipe(training_arguments={name: 1})


def test_old_names_are_understood_and_said(caplog):
    overrides = ["train.batch_size=8", "train.loss_normalization=none"]
    section = load_section(TrainConfig, "train", "quickstart", overrides)
    assert section.global_batch_size == 8  # though the recipe has the new name
    assert section.loss_normalization == "none"
    assert TrainConfig(normalization="none").loss_normalization == "none"
    assert TrainConfig(batch_size=8).fixed() == TrainConfig(global_batch_size=8).fixed()


@pytest.mark.parametrize(
    "values", [{"fp16": True}, {"use_liger_kernel": True}, {"fsdp": True}, {"torch_compile": True}]
)
def test_what_this_machine_cannot_do_is_known_before_work(values):
    with pytest.raises(ToprError, match=next(iter(values)).removesuffix("16")):
        from_recipe(training_arguments=values)
