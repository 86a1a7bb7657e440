"""A few completions, generated, graded and trained on for real, and timed.

The run's own code does it, on files and weights that are thrown away. What the times mean for a
whole run is worked out in `topr.runs.plan.costs`.
"""

import statistics
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import PrinterCallback

from topr.config import ModelConfig, PositivesRule, Recipe
from topr.engines import Engine, open_engine
from topr.grading import grade_table
from topr.models.loading import load
from topr.progress import Progress
from topr.records import Split
from topr.runs.plan.costs import Measured, Round, side_by_side
from topr.runs.preparation import check_logprobs
from topr.stages.draw import draw
from topr.stages.draw_plan import plan_draw
from topr.stages.train_arguments import adapter_of, training_arguments
from topr.store import parquet_options, read_table
from topr.tasks import Task
from topr.training import TOPRTrainer
from topr.training.diagnostics import NoEffectWarnings

FEW = 4
"""Problems of a first round, which tells how large a second one may be."""
SAMPLES = 2
"""Completions of each problem that is looked at."""
ROUND_SECONDS = 30.0
"""Of the second round, at most."""
GRADED = 128
"""Completions that are graded to tell what one takes: starting the graders takes longer."""
STEPS = 4
"""Optimizer steps that are timed; the first, which finds its memory, is not."""


def measure(recipe: Recipe, task: Task, start: ModelConfig, progress: Progress) -> Measured:
    """Return what a few completions cost, and them, graded.

    Raises:
        ToprError: what the stages raise; a run would be refused for the same.

    """
    began = time.perf_counter()
    with closing(open_engine(start, recipe.generate)) as engine:
        check_logprobs(engine, recipe)
        sample = partial(_sample, engine, recipe, task)
        sample(1, 1, max_tokens=1)  # A model is tried before its first completion.
        open_seconds = time.perf_counter() - began
        progress.say("sampling a few completions")
        rounds, count, n = list[Round](), FEW, min(SAMPLES, recipe.generate.n)
        while not rounds or (count > FEW and len(rounds) < 2):
            prompts, first = sample(count, 1, max_tokens=1)  # that is the time of their prompts
            seconds, table = sample(count, n)
            lengths = [len(ids) for ids in table["completion_ids"].to_pylist()]
            rounds.append((lengths, max(seconds - prompts, seconds / 10)))
            count = min(int(count * ROUND_SECONDS / seconds), -(-side_by_side(recipe) // n))
        progress.say("grading them, and training a throw-away copy on them for a few steps")
        grader_seconds, grade_seconds, graded = _grade(engine, recipe, task, table)
    # What a problem's completions share is stored once: a second one tells what one more takes.
    firsts = graded.take(list(range(0, len(graded), n))) if n > 1 else graded.slice(0, 0)
    return Measured(
        graded=graded,
        rounds=rounds,
        open_seconds=open_seconds,
        prompt_seconds=prompts / len(first),
        spans_shards=engine.spans_shards,
        grader_seconds=grader_seconds,
        grade_seconds=grade_seconds,
        **_train(recipe, start, graded),
        row_bytes=(_stored(graded) - _stored(firsts)) / (len(graded) - len(firsts)),
        memory=_peak_memory(),
    )


def _sample(
    engine: Engine, recipe: Recipe, task: Task, count: int, n: int, **changes: Any
) -> tuple[float, pa.Table]:
    """Generate `n` completions of `count` problems; return the seconds, and the rows."""
    problems = task.problems(Split.TRAIN)  # Files may be sorted by difficulty.
    problems = problems[:: max(1, len(problems) // count)][:count]
    plan = plan_draw(problems, task, recipe.generate, recipe.seed, n=n, shard_problems=count)
    plan = replace(plan, sampling=replace(plan.sampling, **changes))
    with TemporaryDirectory(prefix="topr-dry-run-") as folder:
        began = time.perf_counter()
        draw(plan, engine, Path(folder))
        return time.perf_counter() - began, read_table(Path(folder))


def _grade(
    engine: Engine, recipe: Recipe, task: Task, table: pa.Table
) -> tuple[float, float, pa.Table]:
    """Return the seconds of starting graders, those of grading a completion, and graded rows."""
    copies = pa.concat_tables([table] * -(-GRADED // len(table)))
    times, graded = [time.perf_counter()], table
    for rows in (table.slice(0, 1), copies):
        graded = grade_table(rows, task.grader, recipe.grade, tokenizer=engine.tokenizer)
        times.append(time.perf_counter())
    start, every = times[1] - times[0], times[2] - times[1]
    return start, max(every - start, 0.0) / len(copies), graded.slice(0, len(table))


def _train(recipe: Recipe, start: ModelConfig, graded: pa.Table) -> dict[str, Any]:
    """Take a few optimizer steps with a copy of the model.

    Rewards are made up, right and wrong in turns, for a gradient flows only where there are both;
    the learning rate is next to nothing, since they must not make a model diverge.
    """
    right_only = any(isinstance(step, PositivesRule) for step in recipe.curate.steps)
    rewards = [1.0 if right_only or i % 2 == 0 else -1.0 for i in range(len(graded))]
    rows = graded.drop_columns("reward").append_column("reward", pa.array(rewards, pa.float32()))
    few = {"max_steps": STEPS, "learning_rate": 1e-12, "logging_steps": 1}
    quiet = {"report_to": (), "watch": "off", "watch_steps": None}
    config = recipe.train.model_copy(update=few | quiet)
    trained = start.model_copy(update={"dtype": config.dtype})
    loaded = load(trained, config.lora.quantize if config.lora else None)
    with TemporaryDirectory(prefix="topr-dry-run-", ignore_cleanup_errors=True) as folder:
        args = training_arguments(config, recipe.model, Path(folder), recipe.seed)
        args.save_strategy = "no"
        trainer = TOPRTrainer(
            model=loaded.model,
            args=args,
            train_dataset=Dataset(rows),
            processing_class=loaded.tokenizer,
            peft_config=adapter_of(config.lora, loaded, start) if config.lora else None,
        )
        for callback in (PrinterCallback, NoEffectWarnings):  # nothing is to be learned here
            trainer.remove_callback(callback)
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
    speed = statistics.median(entry["tokens_per_second"] for entry in log[1:])
    model: Any = trainer.model
    return {
        "train_token_seconds": 1 / max(speed, 0.05),  # logged with one digit after the point
        "parameters": model.num_parameters(),
        "trained_parameters": trainer.get_num_trainable_parameters(),
    }


def _stored(table: pa.Table) -> int:
    """Return the bytes of a shard."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **parquet_options(table.schema))
    return int(sink.tell())


def _peak_memory() -> int:
    """Return the most bytes that were in use so far: of the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows has not

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # kilobytes, but on a Mac
