"""A training set and a model to a trained model on disk."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, set_seed

from topr.config import ModelConfig, TrainConfig
from topr.errors import DataError
from topr.interop import read_rows
from topr.models.files import fingerprint
from topr.models.gguf import gguf_details
from topr.models.loading import LoadedModel, identity, load
from topr.objectives import BaselineRole, share_advice
from topr.progress import Advance, Progress, Silent
from topr.stages.callbacks import Bar, CompleteCheckpoints, LogFile, Snapshots, log_lines
from topr.stages.common import OpenStage, data_fingerprint, open_stage
from topr.stages.probe import Probe, ProbeSource
from topr.stages.train_arguments import adapter_of, training_arguments
from topr.stages.train_files import drop_checkpoints, last_complete, save_model
from topr.store import (
    Manifest,
    atomic_path,
    write_json_atomic,
    write_text_atomic,
)
from topr.training import TOPRTrainer, Writers
from topr.training.examples import examples_table
from topr.training.processes import processes_of
from topr.training.sharding import shards_weights

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
"""A line for each logged step, in `training/`; there while training runs."""
SNAPSHOTS = "snapshots"
"""Where the models on the way lie, beside `model/` and `training/`."""


def train_model(
    model: ModelConfig,
    datasets: Sequence[Path],
    config: TrainConfig,
    directory: Path,
    *,
    seed: int,
    progress: Progress,
    writers: Sequence[ModelConfig] = (),
    probe: ProbeSource | None = None,
) -> Manifest:
    """Train, and write `model/`, `training/` and any `snapshots/` into `directory`.

    Killed and called again, it resumes from the last checkpoint and ends with the same weights.

    Args:
        model: what training starts from; `path` is a directory or a hub name.
        datasets: trained on together: each a directory of graded rollouts, or a file of rows with
            prompt, completion, reward.
        config: the section `train`.
        directory: an iteration's or a comparison's.
        seed: of the order of the rows.
        progress: told of optimizer steps.
        writers: models that wrote the rows, beside the one that is trained: they are scored with
            them where log mu is recomputed. Known by their revision; rows without one are taken to
            be of the only one of them, where it is one.
        probe: what the model on its way is asked now and then; see `train.watch`.

    """
    work = directory / "training"
    args = training_arguments(config, model, work, seed)
    processes = processes_of(args)
    if processes.count > 1:
        progress = progress if processes.first else Silent()
    with ExitStack() as held:  # by the first process alone, to the end
        parts = (model, datasets, config, seed, writers, probe)
        stage = processes.from_first(lambda: held.enter_context(_open(work, *parts)))
        if stage.done is not None:
            processes.from_first(lambda: drop_checkpoints(work))  # killed right after its manifest
            return stage.done
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
                lambda path: save_model(trainer, path, config),
            )
        )
        if probe is not None and _can_probe(trainer, config, progress):
            trainer.add_callback(Probe(trainer, probe, config.probe_problems, progress))
        resume = processes.from_first(lambda: last_complete(work))
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
                steps = trainer.settings.optimizer_steps(len(trainer.get_train_dataloader()))
                return stack.enter_context(progress.bar("training", steps, "steps"))

            trainer.add_callback(Bar(first_step))
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        lineage = {
            "datasets": [os.path.relpath(dataset, directory) for dataset in datasets],
            "written_by": dict(Counter(filter(None, trainer.rows["revision"]))),
            "optimizer": config.optim,
            "optimizer_state": "fresh",
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": config.lr_scheduler_type,
            **gguf_details(model.path),
        }
        if config.lora is not None:
            lineage["lora"] = config.lora.model_dump(mode="json")
        save_model(trainer, directory / "model", config)
        examples = examples_table(trainer, rows)
        return processes.from_first(
            lambda: _write(trainer, loaded, examples, directory, stage, lineage)
        )


def _open(
    work: Path, model: ModelConfig, datasets: Sequence[Path], config: TrainConfig, seed: int,
    writers: Sequence[ModelConfig], probe: ProbeSource | None,
) -> AbstractContextManager[OpenStage]:  # fmt: skip
    """Open the stage by what fixes the trained weights."""
    scored_by = writers if config.behavior_logprobs == "recompute" else ()
    probed = config.watch != "off" and config.probe_problems > 0
    return open_stage(
        work,
        "train",
        [data_fingerprint(dataset) for dataset in datasets],
        config,
        identity(model),
        model.at(""),
        seed,
        sorted({str(identity(writer)) for writer in scored_by}),
        probe if probed else None,
    )


def _say_shares(trainer: TOPRTrainer, progress: Progress) -> None:
    """Show p, c and p~ before the first step, whichever was set; warn where p~ is far out."""
    p, c = trainer.composition.positive_share, trainer.baseline
    share = trainer.effective_positive_share
    line = f"share of positives p {p:.1%}, baseline c {c:+.2f}"
    if trainer.objective.uses.baseline is BaselineRole.CANCELS:
        progress.say(f"share of positives p {p:.1%}; each prompt's mean reward is the baseline")
        return
    if share is None:
        progress.say(line)
        return
    progress.say(f"{line}, effective share p~ {share:.1%}")
    advice = share_advice(p, c, share)
    if advice is not None:
        logger.warning("%s", advice)


def _can_probe(trainer: TOPRTrainer, config: TrainConfig, progress: Progress) -> bool:
    """Return whether the model on its way can be probed; say so where only sharding forbids it."""
    wanted = config.watch != "off" and config.probe_problems > 0
    if wanted and trainer.sharded:
        progress.say("no probe while training: weights are sharded, and no process has the model")
    return wanted and not trainer.sharded


def alarm_lines(watch: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of a training whose watch gave alarms; `watch` is its result."""
    lines = [
        f"this training looks ruined ({alarm['kind']}): {alarm['message']}"
        for alarm in watch.get("alarms") or ()
    ]
    if not lines:
        return []
    if watch["mode"] == "stop":
        return [*lines, f"it was stopped: the model has the weights of step {watch['kept_step']}, "
                "the last good ones"]  # fmt: skip
    return [*lines, "the model has the weights of the last step; with train.watch=stop it would "
            "have the last good ones"]  # fmt: skip


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


def _write(
    trainer: TOPRTrainer, loaded: LoadedModel, examples: pa.Table, directory: Path,
    stage: OpenStage, lineage: dict[str, Any],
) -> Manifest:  # fmt: skip
    """Write everything but the weights, the manifest last."""
    work, target = directory / "training", directory / "model"
    write_text_atomic(work / LOG_FILE, log_lines(trainer.state.log_history))
    with atomic_path(work / "examples.parquet", overwrite=True) as path:
        pq.write_table(examples, path)
    composition, watch = trainer.composition, trainer.watch.result()
    kept_step = watch.get("kept_step")
    details = {
        "model": loaded.name,
        "revision": loaded.revision,
        "objective": trainer.settings.objective,
        "steps": trainer.state.global_step if kept_step is None else kept_step,
        "rows": composition.rows,
        "unscored": composition.unscored,
        "empty": composition.empty,
        "too_long": composition.too_long,
        "truncated": composition.truncated,
        "greedy": composition.greedy,
        "positive_share": composition.positive_share,
        "baseline": trainer.baseline,
        "effective_positive_share": trainer.effective_positive_share,
        "behavior_gap": trainer.behavior_gap.as_log() if trainer.behavior_gap else None,
        "watch": watch,
        **lineage,
        "made": fingerprint(target),
    }
    write_json_atomic(target / "topr.json", details)
    files = (LOG_FILE, "examples.parquet")
    manifest = stage.finish(rows=composition.rows, details=details, files=files)
    drop_checkpoints(work)
    return manifest
