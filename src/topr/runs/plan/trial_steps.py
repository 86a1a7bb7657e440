"""A few optimizer steps with a copy of the model, with a clock beside them. Nothing is kept."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from topr.config import ModelConfig, PositivesRule, Recipe
from topr.curation import most_per_problem
from topr.models.loading import load
from topr.runs.plan.costs import Training
from topr.stages.train_arguments import adapter_of, training_arguments
from topr.training import BehaviorPolicies, TOPRTrainer
from topr.training.checks import objective_of
from topr.training.diagnostics import NoEffectWarnings

STEPS = 5
"""Optimizer steps that are timed at most; the first, which finds its memory, is not."""
ENOUGH_SECONDS = 10.0
"""After which no further step is begun, from the second on."""
UNCHANGED = 1e-12
"""Learning rate: made-up rewards must not make a model diverge."""


def measure_training(
    recipe: Recipe, start: ModelConfig, graded: pa.Table, folder: Path
) -> Training:
    """Take a few optimizer steps with a copy of the model.

    Rewards are made up, right and wrong in turns, for a gradient flows only where there are both.
    """
    rows = _batch(recipe, graded)
    began = time.perf_counter()
    trainer, clock = _trainer(recipe, start, rows, folder)
    ready = time.perf_counter() - began
    trainer.prepare_behavior()
    scored = time.perf_counter() - began - ready
    on_cpu = trainer.args.device.type == "cpu"
    busy, at = time.process_time(), time.perf_counter()
    trainer.train()
    busy, at = time.process_time() - busy, time.perf_counter() - at
    model: Any = trainer.model
    parameters, used = list(model.parameters()), len(trainer.rows)
    recomputed = recipe.train.behavior_logprobs == "recompute"
    return Training(
        start_seconds=ready,
        score_seconds=scored / used if recomputed else None,
        completion_seconds=clock.seconds() / used,
        update_seconds=clock.update_seconds(),
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        optimizer_bytes=_bytes_of(trainer.optimizer),
        processor_share=busy / at / torch.get_num_threads() if on_cpu else None,
    )


def _trainer(
    recipe: Recipe, start: ModelConfig, rows: pa.Table, folder: Path
) -> "tuple[TOPRTrainer, _Clock]":
    """Return the trainer of a run, on a batch of all these rows, that reports and saves nothing."""
    further = dict(recipe.train.training_arguments)
    further.pop("gradient_accumulation_steps", None)
    update: dict[str, Any] = {
        "global_batch_size": len(rows),
        "max_steps": STEPS,
        "learning_rate": UNCHANGED,
        "snapshots": (),
        "report_to": (),
        "watch": "off",
        "watch_steps": None,
        "probe_problems": recipe.train.ADDED["probe_problems"],
        "training_arguments": further,
    }
    config = recipe.train.model_copy(update=update)
    args = training_arguments(config, recipe.model, folder, recipe.seed)
    args.save_strategy = "no"
    trained = start.model_copy(update={"dtype": config.dtype})
    loaded = load(trained, config.lora.quantize if config.lora else None)
    clock = _Clock()
    trainer = TOPRTrainer(
        model=loaded.model,
        args=args,
        train_dataset=Dataset(rows),
        processing_class=loaded.tokenizer,
        callbacks=[clock],
        peft_config=adapter_of(config.lora, loaded, start) if config.lora else None,
        behavior_model=BehaviorPolicies(own=loaded.revision, find=lambda revision: None),
    )
    for callback in (PrinterCallback, NoEffectWarnings):  # nothing is to be learned here
        trainer.remove_callback(callback)
    return trainer, clock


def _batch(recipe: Recipe, graded: pa.Table) -> pa.Table:
    """Return the rows of one step: whole prompts where the run keeps them together, else one
    completion of each problem, as in a batch of many problems.
    """
    size, n = recipe.train.global_batch_size, recipe.generate.n
    args = training_arguments(recipe.train, recipe.model, Path("unused"), recipe.seed)
    whole = objective_of(args).needs_group or recipe.train.shuffle_by == "prompt"
    by_problem: dict[str, list[int]] = {}
    for row, name in enumerate(graded["problem_id"].to_pylist()):
        by_problem.setdefault(name, []).append(row)
    take = most_per_problem(recipe.curate, n) if whole else 1
    chosen = [
        rows[i % len(rows)]
        for rows in list(by_problem.values())[: max(1, size // take)]
        for i in range(take)
    ]
    right_only = any(isinstance(step, PositivesRule) for step in recipe.curate.steps)
    rewards = [1.0 if right_only or i % 2 == 0 else -1.0 for i in range(len(chosen))]
    rows = graded.take(pa.array(chosen))
    rows = rows.set_column(
        rows.schema.get_field_index("sample"), "sample", pa.array(range(len(rows)), pa.int32())
    )
    index = rows.schema.get_field_index("reward")
    return rows.set_column(index, "reward", pa.array(rewards, pa.float32()))


class _Clock(TrainerCallback):
    """Times steps, and the optimizer's own part of each."""

    def __init__(self) -> None:
        self._at = 0.0
        self._updating = 0.0
        self._began = 0.0
        self._steps: list[tuple[float, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = self._at = time.perf_counter()
        self._updating = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._at = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._updating = time.perf_counter() - self._at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        whole = time.perf_counter() - self._began
        self._steps.append((whole - self._updating, self._updating))
        if len(self._steps) > 1 and sum(map(sum, self._steps)) > ENOUGH_SECONDS:
            control.should_training_stop = True

    def seconds(self) -> float:
        """Return those of a step's forward and backward passes."""
        return _middle([passes for passes, _ in self._steps[1:] or self._steps])

    def update_seconds(self) -> float:
        """Return those of the optimizer in a step."""
        return _middle([update for _, update in self._steps[1:] or self._steps])


def _bytes_of(optimizer: Any) -> int:
    """Return the size of an optimizer's state."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in (state.values() if isinstance(state, dict) else ())
        if isinstance(value, torch.Tensor)
    )


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
