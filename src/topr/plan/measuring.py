"""A few completions, drawn, graded and trained on for real, with a clock beside them.

The run's own code does it, on files and weights that are thrown away. What the times mean for a
whole run is worked out in `topr.plan.costs`.
"""

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from topr.config import GenerateConfig, ModelConfig, PositivesRule, Recipe
from topr.curation import most_per_problem
from topr.engines import Engine, open_engine
from topr.generation import draw
from topr.grading import GRADERS, grade_table
from topr.models import load
from topr.plan.costs import Drawing, Grading, Measured, Round, Storage, Training
from topr.preparation import check_logprobs
from topr.progress import Progress
from topr.records import Problem, SamplingParams
from topr.stages.generate import sampling_params
from topr.stages.train_arguments import adapter_of, training_arguments
from topr.store import read_table
from topr.tasks import Task
from topr.training import TOPRTrainer, Writers
from topr.training.checks import objective_of
from topr.training.diagnostics import Idleness

SAMPLES = 2
"""Completions of each problem that is looked at."""
GROWTH = 4
"""Each round of drawing has that many times the problems of the one before; the first has one."""
ENOUGH_SECONDS = 10.0
"""A round that took this long is the last, from the second on: those before cost less."""
SIDE_BY_SIDE = 256
"""Completions under way at a time, where an engine does not say."""
STEPS = 5
"""Optimizer steps that are timed at most; the first, which finds its memory, is not."""
UNCHANGED = 1e-12
"""Learning rate: made-up rewards must not make a model diverge."""

ResultT = TypeVar("ResultT")


def measure(
    recipe: Recipe, task: Task, start: ModelConfig, problems: Sequence[Problem], progress: Progress
) -> tuple[Measured, pa.Table]:
    """Return what a few completions of `problems` cost, and them, graded.

    Raises:
        ToprError: what the stages raise; a run would be refused for the same.

    """
    with TemporaryDirectory(prefix="topr-dry-run-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        opening, engine = _timed(lambda: open_engine(start, recipe.generate))
        with closing(engine):
            check_logprobs(engine, recipe)
            reset_memory()
            drawing, table = _measure_drawing(engine, recipe, task, problems, folder, progress)
            drawing_memory = peak_memory()
            grading, graded = _measure_grading(engine, recipe, task, table)
            tokenizer = engine.tokenizer
        del engine
        progress.say("training a throw-away copy on them for a few steps")
        reset_memory()
        training = measure_training(recipe, start, graded, folder / "training")
        measured = Measured(
            open_seconds=opening,
            drawing=drawing,
            grading=grading,
            training=training,
            storage=_storage(graded, tokenizer, folder),
            drawing_memory=drawing_memory,
            training_memory=peak_memory(),
        )
    return measured, graded


def _measure_drawing(
    engine: Engine, recipe: Recipe, task: Task, problems: Sequence[Problem], folder: Path,
    progress: Progress,
) -> tuple[Drawing, pa.Table]:  # fmt: skip
    """Draw from more and more problems, until it takes long or no more run side by side."""
    sampling = sampling_params(recipe.generate, task.stop, recipe.seed)
    at_a_time = side_by_side(recipe.generate)
    n, most = min(SAMPLES, recipe.generate.n), -(-at_a_time // SAMPLES)
    # A model is tried before its first completion.
    few = spread(problems, 1)
    trial, _ = _drawn(engine, task, few, sampling_of_one(sampling), 1, folder / "trial")
    rounds: list[Round] = []
    wanted, prompts = 1, 0.0
    while True:
        chosen = spread(problems, min(wanted, most))
        progress.say(f"drawing {len(chosen) * n} completions to measure")
        place = folder / f"round-{len(rounds)}"
        if not rounds or prompts * GROWTH < ENOUGH_SECONDS:
            first = sampling_of_one(sampling)
            prompts, table = _drawn(engine, task, chosen, first, 1, place / "prompts")
            prompt_seconds = prompts / sum(map(len, table["prompt_ids"].to_pylist()))
        seconds, table = _drawn(engine, task, chosen, sampling, n, place)
        own = sum(map(len, table["prompt_ids"].to_pylist()[::n])) * prompt_seconds
        lengths = [len(ids) for ids in table["completion_ids"].to_pylist()]
        left = max(seconds - own, seconds / 10)
        rounds.append(Round(tokens=sum(lengths), longest=max(lengths), seconds=left))
        largest = len(chosen) in (len(problems), most)
        if largest or (len(rounds) > 1 and seconds > ENOUGH_SECONDS):
            break
        wanted *= GROWTH
    drawing = Drawing(
        trial_seconds=max(0.0, trial - prompts / len(chosen)),
        prompt_tokens=0.0,  # of all problems: the caller has read them
        prompt_seconds=prompt_seconds,
        side_by_side=at_a_time,
        lengths=tuple(lengths),
        rounds=tuple(rounds),
        spans_shards=bool(getattr(engine, "spans_shards", False)),
    )
    return drawing, table


def _drawn(
    engine: Engine, task: Task, problems: Sequence[Problem], sampling: SamplingParams, n: int,
    folder: Path,
) -> tuple[float, pa.Table]:  # fmt: skip
    """Draw into a folder; return how long it took, and the rows."""
    seconds, _ = _timed(
        lambda: draw(
            problems,
            engine,
            sampling,
            n,
            folder,
            shard_problems=len(problems),
            keep_columns=task.grader not in GRADERS,
        )
    )
    return seconds, read_table(folder)


def _measure_grading(
    engine: Engine, recipe: Recipe, task: Task, table: pa.Table
) -> tuple[Grading, pa.Table]:
    """Grade a table once and many times over: starting the graders costs more than a few rows."""

    def grade(rows: pa.Table) -> pa.Table:
        return grade_table(rows, task.grader, recipe.grade, tokenizer=engine.tokenizer)

    copies = -(-128 // len(table)) + 1
    once, graded = _timed(lambda: grade(table))
    more, _ = _timed(lambda: grade(pa.concat_tables([table] * copies)))
    each = max(more - once, 0.0) / (len(table) * (copies - 1))
    return Grading(
        start_seconds=max(once - each * len(table), 0.0), completion_seconds=each
    ), graded


def measure_training(
    recipe: Recipe, start: ModelConfig, graded: pa.Table, folder: Path
) -> Training:
    """Take a few optimizer steps with a copy of the model.

    Rewards are made up, right and wrong in turns, for a gradient flows only where there are both.
    """
    group = min(recipe.generate.n, most_per_problem(recipe.curate, recipe.generate.n))
    rows = _batch(recipe, graded, group)
    further = dict(recipe.train.training_arguments)
    further.pop("gradient_accumulation_steps", None)
    update: dict[str, Any] = {
        "global_batch_size": len(rows),
        "max_steps": STEPS,
        "learning_rate": UNCHANGED,
        "snapshots": (),
        "report_to": (),
        "training_arguments": further,
    }
    config = recipe.train.model_copy(update=update)
    args = training_arguments(config, recipe.model, folder, recipe.seed)
    args.save_strategy = "no"
    began = time.perf_counter()
    trained_type = start.model_copy(update={"dtype": config.dtype})
    loaded = load(trained_type, config.lora.quantize if config.lora else None)
    clock = _Clock()
    trainer = TOPRTrainer(
        model=loaded.model,
        args=args,
        train_dataset=Dataset(rows),
        processing_class=loaded.tokenizer,
        callbacks=[clock],
        peft_config=adapter_of(config.lora, loaded, start) if config.lora else None,
        behavior_model=Writers(own=loaded.revision, find=lambda revision: None),
    )
    for callback in (PrinterCallback, Idleness):  # nothing is to be learned here
        trainer.remove_callback(callback)
    ready = time.perf_counter() - began
    scoring, _ = _timed(trainer.prepare_behavior)
    trainer.train()
    parameters = list(loaded.model.parameters())
    used = len(trainer.rows)
    return Training(
        start_seconds=ready,
        score_seconds=scoring / used if config.behavior_logprobs == "recompute" else None,
        completion_seconds=clock.seconds() / used,
        update_seconds=clock.update_seconds(),
        parameters=sum(p.numel() for p in parameters),
        trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        optimizer_bytes=_bytes_of(trainer.optimizer),
    )


def _batch(recipe: Recipe, graded: pa.Table, group: int) -> pa.Table:
    """Return the rows of one step: whole prompts where the run keeps them together, else one
    completion of each problem, as in a batch of many problems.
    """
    size = recipe.train.global_batch_size
    args = training_arguments(recipe.train, recipe.model, Path("unused"), recipe.seed)
    whole = objective_of(args).coupled or recipe.train.shuffle_by == "prompt"
    by_problem: dict[str, list[int]] = {}
    for row, name in enumerate(graded["problem_id"].to_pylist()):
        by_problem.setdefault(name, []).append(row)
    take = group if whole else 1
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


def _storage(graded: pa.Table, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Storage:
    """Return what rows take on disk, from files of all, of one for each problem, and of none.

    What all completions of a problem share is there once in a compressed shard.
    """
    names = graded["problem_id"].to_pylist()
    first = [row for row, name in enumerate(names) if row == names.index(name)]
    none, one, every = (
        _written(graded.take(pa.array(rows, pa.int64())), folder / "rows")
        for rows in ([], first, range(len(names)))
    )
    further = len(names) - len(first)
    row = max(0.0, every - one) / further if further else (one - none) / len(first)
    saved = tokenizer.save_pretrained(folder / "tokenizer")
    return Storage(
        prompt=max(0.0, (one - none) / len(first) - row),
        row=row,
        file=none,
        tokenizer=sum(Path(name).stat().st_size for name in saved if Path(name).is_file()),
    )


def _written(table: pa.Table, path: Path) -> int:
    pq.write_table(table, path, compression="zstd")
    return path.stat().st_size


def side_by_side(config: GenerateConfig) -> int:
    """Return how many completions an engine has under way at a time, as far as a recipe says."""
    said: dict[str, Any] = {
        "transformers": config.batch_size,
        "server": config.server.concurrency,
    }
    found = said.get(config.engine)
    return found if isinstance(found, int) else SIDE_BY_SIDE


def sampling_of_one(sampling: SamplingParams) -> SamplingParams:
    """Return the same for one token: what is left is the time of the prompts."""
    values = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    return SamplingParams(**values | {"max_tokens": 1})


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """Return `count` problems, evenly spread: files may be sorted by difficulty."""
    count = min(count, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def reset_memory() -> None:
    """Begin to look for the peak of a GPU's memory; that of a process cannot be set back."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Return the most bytes that were in use so far: of the GPU where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


def _timed(do: Callable[[], ResultT]) -> tuple[float, ResultT]:
    began = time.perf_counter()
    result = do()
    return time.perf_counter() - began, result
