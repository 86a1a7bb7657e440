"""A training set and a model to a trained model on disk."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from topr.config import LoraConfig, ModelConfig, TrainConfig
from topr.errors import ConfigError, DataError
from topr.models import (
    LoadedModel,
    fingerprint,
    identity,
    is_adapter,
    load,
    load_model,
    resolve_device,
)
from topr.objectives import Taper, share_advice
from topr.progress import Advance, Progress, Silent
from topr.stages.callbacks import (
    COMPLETE,
    Bar,
    CompleteCheckpoints,
    LogFile,
    Snapshots,
    log_lines,
)
from topr.store import (
    Manifest,
    atomic_path,
    begin,
    read_rows,
    write_json_atomic,
    write_manifest,
    write_text_atomic,
)
from topr.training import TOPRConfig, TOPRTrainer, Writers
from topr.training.examples import examples_table
from topr.training.processes import processes_of
from topr.training.sharding import shards_weights

logger = logging.getLogger(__name__)

CHECKPOINTING = next(
    field.name
    for field in fields(TOPRConfig)
    if field.name in ("activation_checkpointing", "gradient_checkpointing")
)
"""What the argument is called: transformers had it as `gradient_checkpointing` before 5.23."""
ADAPTER = "adapter"
"""Where an adapter lies that was merged, beside `model/`; a snapshot's is `adapter-step-N`."""
LOG_FILE = "log.jsonl"
"""A line for each logged step, in `training/`; there while training goes on."""
SNAPSHOTS = "snapshots"
"""Where the models on the way lie, beside `model/` and `training/`."""


def train_model(
    model: ModelConfig,
    datasets: Sequence[Path],
    config: TrainConfig,
    directory: Path,
    *,
    seed: int,
    mark: str,
    progress: Progress,
    writers: Sequence[ModelConfig] = (),
) -> Manifest:
    """Train, and write `model/`, `training/` and any `snapshots/` into `directory`.

    Killed and called again, it goes on from the last checkpoint and ends with the same weights.

    Args:
        model: what training starts from; `path` is a directory or a hub name.
        datasets: trained on together: each a directory of graded rollouts, or a file of rows with
            prompt, completion, reward.
        config: the section `train`.
        directory: an iteration's or a comparison's.
        seed: of the order of the rows.
        mark: fingerprint of the result.
        progress: told of optimizer steps.
        writers: models that wrote the rows, beside the one that is trained: they are scored with
            them where log mu is recomputed. Known by their revision; rows without one are taken to
            be of the only one of them, where it is one.

    """
    work = directory / "training"
    args = training_arguments(config, model, work, seed)
    processes = processes_of(args)
    if processes.count > 1:
        progress = progress if processes.first else Silent()
    with ExitStack() as held:  # by the first process alone, to the end
        done = processes.from_first(lambda: held.enter_context(begin(work, "train", mark)))
        if done is not None:
            processes.from_first(lambda: _drop_checkpoints(work))  # killed right after its manifest
            return done
        rows = _read_all(datasets)
        # Whole it may be larger than a device: pieces go there when it is sharded.
        place = {"device": "cpu"} if shards_weights(args) else {}
        start = model.model_copy(update={"dtype": config.dtype, **place})
        loaded = load(start, config.lora.quantize if config.lora else None)
        set_seed(seed)
        trainer = TOPRTrainer(
            model=loaded.model,
            args=args,
            train_dataset=Dataset(rows),
            processing_class=loaded.tokenizer,
            callbacks=[CompleteCheckpoints(processes), LogFile(work / LOG_FILE)],
            peft_config=adapter_of(config.lora, loaded, model) if config.lora else None,
            behavior_model=_writers(loaded, writers, config),
        )
        trainer.remove_callback(PrinterCallback)
        _say_shares(trainer, progress)
        trainer.add_callback(
            Snapshots(
                config.snapshots,
                directory / SNAPSHOTS,
                lambda path: _save_model(trainer, path, config),
            )
        )
        resume = processes.from_first(lambda: _last_complete(work))
        if resume is not None:
            progress.say(f"resuming training from {resume.name}")
        if config.behavior_logprobs == "recompute" and not trainer.sharded:
            title = "recomputing log mu"
            with progress.bar(title, len(trainer.rows), "completions") as advance:
                trainer.prepare_behavior(lambda n: advance(n))
        with ExitStack() as stack:
            # The bar starts with the first step: its rate must not count what comes before.
            def first_step() -> Advance:
                _say_gap(trainer, progress)
                return stack.enter_context(progress.bar("training", _steps(trainer), "steps"))

            trainer.add_callback(Bar(first_step))
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        lineage = {
            "datasets": [os.path.relpath(dataset, directory) for dataset in datasets],
            "written_by": dict(Counter(filter(None, trainer.rows["revision"]))),
            "optimizer": config.optim,
            "optimizer_state": "fresh",
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": config.lr_scheduler_type,
        }
        if config.lora is not None:
            lineage["lora"] = config.lora.model_dump(mode="json")
        _save_model(trainer, directory / "model", config)
        examples = examples_table(trainer, rows)
        return processes.from_first(
            lambda: _write(trainer, loaded, examples, directory, mark, lineage)
        )


def _say_shares(trainer: TOPRTrainer, progress: Progress) -> None:
    """Show p, c and p~ before the first step, whichever was set; warn where p~ is far out."""
    p, c = trainer.composition.positive_share, trainer.baseline
    share = trainer.effective_positive_share
    line = f"share of positives p {p:.1%}, baseline c {c:+.2f}"
    if share is None:
        progress.say(f"{line} (p~ is defined for rewards of +1 and -1 only)")
        return
    progress.say(f"{line}, effective share p~ {share:.1%}")
    objective = trainer.objective
    if not isinstance(objective, Taper) or objective.negative[1] == 0.0:
        return  # Negatives have another meaning there, or none.
    advice = share_advice(p, c, share)
    if advice is not None:
        logger.warning("%s", advice)


def _say_gap(trainer: TOPRTrainer, progress: Progress) -> None:
    """Show how far the recorded log mu is from the trainer's own, where both are known."""
    gap = trainer.behavior_gap
    if gap is not None:
        progress.say(
            f"log mu as recorded differs from the trainer's own by {gap.token_mean:.2g} nats a "
            f"token on average, and by {gap.sequence_max:.2g} a completion at most, over "
            f"{gap.rows} completions"
        )


def _writers(loaded: LoadedModel, others: Sequence[ModelConfig], config: TrainConfig) -> Writers:
    """Return who may have written the rows: the trained model, and others by revision."""
    if config.behavior_logprobs == "sampler":
        return Writers(own=loaded.revision, find=lambda revision: None)
    places = {identity(other): other for other in others}

    def find(revision: str | None) -> nn.Module | None:
        there = places.get(revision)
        if revision is None and len(others) == 1:
            there = others[0]
        if there is None and others and revision is not None:
            raise DataError(
                f"rows were written by a model of revision {revision}, which is none of those "
                f"given ({', '.join(other.path for other in others)}): log mu cannot be "
                "recomputed. Give that model too, or train on other rows"
            )
        if there is None:
            return None
        return load(there.model_copy(update={"dtype": config.dtype})).model

    return Writers(own=loaded.revision, find=find)


def _read_all(datasets: Sequence[Path]) -> pa.Table:
    tables = [_read(dataset) for dataset in datasets]
    return pa.concat_tables(tables, promote_options="default")


def _read(dataset: Path) -> pa.Table:
    """Return rollouts, or the rows of any file that says prompt, completion and reward."""
    table = read_rows(dataset)
    for name in ("prompt", "completion"):
        if not {name, f"{name}_ids"} & set(table.column_names):
            raise DataError(
                f"{dataset} has no column {name!r}: found {', '.join(table.column_names)}. Rename "
                "one, or make rollouts of the file with `topr import`, which takes other names"
            )
    return table


def adapter_of(lora: LoraConfig, loaded: LoadedModel, model: ModelConfig) -> Any:
    """Translate the section `train.lora` into peft's config, and name the model it is put on.

    Raises:
        ConfigError: the model is itself an adapter that was not merged.

    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import prepare_model_for_kbit_training

    there = Path(model.path).expanduser()
    if is_adapter(there):
        raise ConfigError(
            f"{there} holds an adapter alone, and an adapter on an adapter is a model that other "
            "tools cannot load: start from a merged one (train.lora.merge), or leave train.lora out"
        )
    # Found again from everywhere: peft writes this name into the adapter.
    loaded.model.name_or_path = str(there.resolve()) if there.is_dir() else model.path
    if lora.quantize is not None:
        prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            loaded.model, use_gradient_checkpointing=False
        )
    modules = lora.target_modules
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_dropout=0.0,
        revision=model.revision,
    )


def training_arguments(
    config: TrainConfig, model: ModelConfig, output: Path, seed: int
) -> TOPRConfig:
    """Translate the section `train` into the trainer's arguments. The one place that does.

    Raises:
        ConfigError: `training_arguments` names no field, one that the section has itself, or one
            that uploads.

    """
    device = resolve_device(model.device)
    if device.index:
        raise ConfigError(
            f"model.device={model.device}: training runs on the first GPU that it sees; choose "
            "another with CUDA_VISIBLE_DEVICES and leave the device at auto"
        )
    taper = config.taper.model_dump() if config.taper else {}
    chosen: dict[str, Any] = {
        "output_dir": str(output),
        "objective": config.objective,
        "objective_args": {**config.objective_args, **taper},
        "loss_normalization": config.normalization,
        "normalization_constant": config.normalization_constant,
        "baseline": config.baseline,
        "effective_positive_share": config.effective_positive_share,
        "behavior_logprobs": config.behavior_logprobs,
        "max_length": config.max_length,
        "mask_truncated": config.mask_truncated,
        "micro_batch_tokens": config.micro_batch_tokens,
        "layout": config.layout,
        "shuffle_by": config.shuffle_by,
        "skip_negatives": config.skip_negatives,
        "global_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "optim": config.optim,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        CHECKPOINTING: config.gradient_checkpointing,
        "bf16": config.bf16,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_steps": config.logging_steps,
        "report_to": list(config.report_to) or "none",
        "seed": seed,
        "use_cpu": device.type == "cpu",
        "disable_tqdm": True,
    }
    known = {field.name for field in fields(TOPRConfig)}
    for name in config.training_arguments:
        if name.startswith(("push_to_hub", "hub_")):
            raise ConfigError(
                f"train.training_arguments.{name}: training uploads nothing (transformers would "
                "upload a pickle, training_args.bin, with the model): leave it out, and upload "
                "what was trained with `topr push`"
            )
        if name in chosen or name not in known:
            what = "is set by the section train itself" if name in chosen else "is unknown"
            raise ConfigError(
                f"train.training_arguments.{name} {what}; it takes fields of TOPRConfig that the "
                "section has no key for"
            )
    try:
        if config.report_to:
            get_reporting_integration_callbacks(list(config.report_to))  # type: ignore[no-untyped-call]
        return TOPRConfig(**chosen, **config.training_arguments)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"section train: {error}") from error


def _steps(trainer: TOPRTrainer) -> int:
    """Return the optimizer steps of the whole training."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    per_epoch = len(trainer.get_train_dataloader())
    per_epoch = -(-per_epoch // args.gradient_accumulation_steps)
    return max(1, -(-int(per_epoch * args.num_train_epochs * 1000) // 1000))


def _newest(work: Path) -> str | None:
    if not work.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(work))  # type: ignore[no-untyped-call]
    return found


def _last_complete(work: Path) -> Path | None:
    """Return the newest whole checkpoint; a broken one is removed."""
    while (last := _newest(work)) is not None:
        if (Path(last) / COMPLETE).is_file():
            return Path(last)
        logger.warning("%s is not complete (its writer was killed): removed", last)
        shutil.rmtree(last)
    return None


def _write(
    trainer: TOPRTrainer, loaded: LoadedModel, examples: pa.Table, directory: Path, mark: str,
    lineage: dict[str, Any],
) -> Manifest:  # fmt: skip
    """Write everything but the weights, the manifest last."""
    work, target = directory / "training", directory / "model"
    write_text_atomic(work / LOG_FILE, log_lines(trainer.state.log_history))
    with atomic_path(work / "examples.parquet", overwrite=True) as path:
        pq.write_table(examples, path)
    composition = trainer.composition
    details = {
        "model": loaded.name,
        "revision": loaded.revision,
        "objective": trainer.settings.objective,
        "steps": trainer.state.global_step,
        "rows": composition.rows,
        "unscored": composition.unscored,
        "empty": composition.empty,
        "too_long": composition.too_long,
        "truncated": composition.truncated,
        "positive_share": composition.positive_share,
        "baseline": trainer.baseline,
        "effective_positive_share": trainer.effective_positive_share,
        "behavior_gap": trainer.behavior_gap.as_log() if trainer.behavior_gap else None,
        **lineage,
        "made": fingerprint(target),
    }
    write_json_atomic(target / "topr.json", details)
    manifest = Manifest(
        stage="train",
        fingerprint=mark,
        rows=composition.rows,
        files=(LOG_FILE, "examples.parquet"),
        details=details,
    )
    write_manifest(work, manifest)
    _drop_checkpoints(work)
    return manifest


def _save_model(trainer: TOPRTrainer, folder: Path, config: TrainConfig) -> None:
    """Write the model into a folder that is there whole or not at all.

    All processes take part, for each may have a piece of the weights; the first one writes. Where
    an adapter is to be merged, it is written beside, and then added to the model it was put on.
    """
    processes = trainer.processes
    merge = config.lora is not None and config.lora.merge
    target = folder.with_name(ADAPTER if folder.name == "model" else f"{ADAPTER}-{folder.name}")
    trained = _temporary(target if merge else folder)
    processes.from_first(lambda: shutil.rmtree(trained, ignore_errors=True))
    trainer.save_model(str(trained))
    processes.wait()

    def put() -> None:
        (trained / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use
        _put(trained, target if merge else folder)
        if merge:
            whole = ModelConfig(path=str(target), dtype=config.dtype, device="cpu")
            load_model(whole).save_pretrained(_temporary(folder))
            trainer.tokenizer.save_pretrained(_temporary(folder))
            _put(_temporary(folder), folder)

    processes.from_first(put)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _put(temporary: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed before its manifest
    temporary.replace(folder)


def _drop_checkpoints(work: Path) -> None:
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
