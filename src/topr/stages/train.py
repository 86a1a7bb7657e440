"""A training set and a model to a trained model on disk."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn
from transformers import PrinterCallback, set_seed

from topr.config import ModelConfig, TrainConfig
from topr.errors import DataError
from topr.models.files import fingerprint
from topr.models.gguf import gguf_details
from topr.models.loading import LoadedModel, load, load_tokenizer
from topr.models.places import identity
from topr.objectives import BaselineRole, share_advice
from topr.progress import Advance, Progress, Silent
from topr.stages.callbacks import Bar, CompleteCheckpoints, LogFile, Snapshots, log_lines
from topr.stages.common import OpenStage, data_fingerprint, open_stage
from topr.stages.probe import Probe, ProbeSource
from topr.stages.train_arguments import adapter_of, training_arguments
from topr.stages.train_files import (
    drop_checkpoints,
    last_complete,
    last_step,
    save_model,
)
from topr.stages.train_sources import GradedRows
from topr.store import (
    Manifest,
    atomic_path,
    parquet_options,
    write_json_atomic,
    write_text_atomic,
)
from topr.tokenization.digest import tokenizer_digest
from topr.training import BehaviorPolicies, TOPRConfig, TOPRTrainer
from topr.training.behavior import rows_by_revision
from topr.training.data import LEFT_OUT
from topr.training.distributed import distributed_context
from topr.training.examples import examples_table
from topr.training.sharding import reads_weights, shards_weights
from topr.user_code import code_digest

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
"""A line for each logged step, in `training/`; there while training runs."""
SNAPSHOTS = "snapshots"
"""The models that are kept while training runs, next to `model/` and `training/`."""


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

    Interrupted and called again, it resumes and ends with the same weights.

    Args:
        model: what training starts from; `path` is a directory or a hub name.
        datasets: trained on together: each a directory of graded rollouts, or a file of rows with
            prompt, completion, reward.
        config: the section `train`.
        directory: an iteration's or a comparison's.
        seed: of the order of the rows.
        progress: receives optimizer steps.
        writers: behavior policies other than the model that is trained, known by their revision,
            for log mu that is recomputed. Of a single one are rows without a revision, too.
        probe: what the model on its way is asked now and then; see `train.watch`.

    """
    work = directory / "training"
    args = training_arguments(config, model, work, seed)
    distributed = distributed_context(args)
    progress = progress if distributed.is_rank0 else Silent()
    with ExitStack() as held:  # by the first process alone, to the end
        parts = (model, datasets, config, seed, writers, probe)
        stage = distributed.run_on_rank0(lambda: held.enter_context(_open(work, *parts)))
        if stage.done is not None:
            distributed.run_on_rank0(lambda: drop_checkpoints(work))  # killed after its manifest
            return stage.done
        rows = GradedRows(datasets)
        _say_start(work, model, progress)
        loaded = _load(model, config, args)
        set_seed(seed)
        trainer = TOPRTrainer(
            model=loaded.model,
            args=args,
            train_dataset=rows,
            processing_class=loaded.tokenizer,
            callbacks=[CompleteCheckpoints(distributed), LogFile(work / LOG_FILE)],
            peft_config=adapter_of(config.lora, loaded, model) if config.lora else None,
            behavior_model=behavior_policies(loaded, writers, config),
        )
        _say_shares(trainer, progress)
        _set_callbacks(trainer, config, directory, probe, progress)
        _run(trainer, config, progress)
        save_model(trainer, directory / "model", config)
        examples = examples_table(trainer, rows.take)
        details = _details(trainer, loaded, config) | gguf_details(model.path)
        details["datasets"] = [os.path.relpath(dataset, directory) for dataset in datasets]
        return distributed.run_on_rank0(
            lambda: _write(trainer, examples, directory, stage, details)
        )


def _say_start(work: Path, model: ModelConfig, progress: Progress) -> None:
    if step := last_step(work):
        progress.say(f"continues from {work.parent}: {step}")
    progress.say(f"loading {model.path}")


def _open(
    work: Path, model: ModelConfig, datasets: Sequence[Path], config: TrainConfig, seed: int,
    writers: Sequence[ModelConfig], probe: ProbeSource | None,
) -> AbstractContextManager[OpenStage]:  # fmt: skip
    """Open the stage by the inputs that determine the trained weights."""
    scored_by = writers if config.behavior_logprobs == "recompute" else ()
    probed = config.watch == "stop" and config.probe_problems > 0  # a warning changes no number
    own = [code_digest(config.objective)] if ":" in config.objective else []
    return open_stage(
        work,
        "train",
        [data_fingerprint(dataset) for dataset in datasets],
        config,
        identity(model),
        tokenizer_digest(load_tokenizer(model)),  # of rows that are text
        model.at(""),
        seed,
        sorted({str(identity(writer)) for writer in scored_by}),
        probe if probed else None,
        *own,
    )


def _load(model: ModelConfig, config: TrainConfig, args: TOPRConfig) -> LoadedModel:
    # Whole it may be larger than a device: pieces go there when it is sharded.
    place = {"device": "cpu"} if shards_weights(args) else {}
    start = model.model_copy(update={"dtype": config.dtype, **place})
    bits = config.lora.quantize if config.lora else None
    return load(start, bits, read=reads_weights(args))


def _set_callbacks(
    trainer: TOPRTrainer, config: TrainConfig, directory: Path, probe: ProbeSource | None,
    progress: Progress,
) -> None:  # fmt: skip
    def save(path: Path) -> None:
        save_model(trainer, path, config)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Snapshots(config.snapshots, directory / SNAPSHOTS, save))
    if probe is not None and _can_probe(trainer, config, progress):
        trainer.add_callback(Probe(trainer, probe, config.probe_problems, progress))


def _run(trainer: TOPRTrainer, config: TrainConfig, progress: Progress) -> None:
    """Train, from the last complete checkpoint where there is one."""
    resume = trainer.distributed.run_on_rank0(lambda: last_complete(trainer.directory))
    if config.behavior_logprobs == "recompute" and not trainer.sharded:
        with progress.bar("recomputing log mu", len(trainer.rows), "completions") as advance:
            trainer.prepare_behavior(lambda n: advance(n))
    with ExitStack() as stack:
        # The bar starts with the first step: its rate must not count what comes before.
        def first_step() -> Advance:
            _say_mismatch(trainer, progress)
            steps = trainer.settings.optimizer_steps(len(trainer.get_train_dataloader()))
            return stack.enter_context(progress.bar("training", steps, "steps"))

        trainer.add_callback(Bar(first_step))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)


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


def _say_mismatch(trainer: TOPRTrainer, progress: Progress) -> None:
    """Show how far the recorded log mu is from the trainer's own, where both are known."""
    found = trainer.behavior_gap
    if found is not None:
        progress.say(
            f"log mu as recorded differs from the trainer's own by {found.token_mean:.2g} nats a "
            f"token on average, and by {found.sequence_max:.2g} a completion at most, over "
            f"{found.rows} completions"
        )


def behavior_policies(
    loaded: LoadedModel, others: Sequence[ModelConfig], config: TrainConfig
) -> BehaviorPolicies:
    """Return who may have written the rows: the trained model, and others by revision."""
    if config.behavior_logprobs == "sampler":
        return BehaviorPolicies(own=loaded.revision, find=lambda revision: None)
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

    return BehaviorPolicies(own=loaded.revision, find=find)


def _details(trainer: TOPRTrainer, loaded: LoadedModel, config: TrainConfig) -> dict[str, Any]:
    """Return what the manifest says of the training and its rows."""
    composition, watch = trainer.composition, trainer.watch.result()
    kept_step = watch.get("kept_step")
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "objective": config.objective,
        "steps": trainer.state.global_step if kept_step is None else kept_step,
        "rows": composition.rows,
        **{reason: getattr(composition, reason) for reason in LEFT_OUT},
        "positive_share": composition.positive_share,
        "baseline": trainer.baseline,
        "effective_positive_share": trainer.effective_positive_share,
        "behavior_gap": trainer.behavior_gap.as_log() if trainer.behavior_gap else None,
        "watch": watch,
        "written_by": rows_by_revision(trainer.rows),
        "optimizer": config.optim,
        "optimizer_state": "fresh",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        **({"lora": config.lora.model_dump(mode="json")} if config.lora else {}),
    }


def _write(
    trainer: TOPRTrainer, examples: pa.Table, directory: Path, stage: OpenStage,
    details: dict[str, Any],
) -> Manifest:  # fmt: skip
    """Write everything but the weights, the manifest last."""
    work, target = directory / "training", directory / "model"
    write_text_atomic(work / LOG_FILE, log_lines(trainer.state.log_history))
    with atomic_path(work / "examples.parquet", overwrite=True) as path:
        pq.write_table(examples, path, **parquet_options(examples.schema))
    details = {**details, "made": fingerprint(target)}
    write_json_atomic(target / "topr.json", details)
    files = (LOG_FILE, "examples.parquet")
    manifest = stage.finish(rows=trainer.composition.rows, details=details, files=files)
    drop_checkpoints(work)
    return manifest
