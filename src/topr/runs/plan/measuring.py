"""A few completions, drawn and graded for real, with a clock beside them.

The run's own code does it, on files and weights that are thrown away. What the times mean for a
whole run is worked out in `topr.runs.plan.costs`.
"""

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from topr.config import GenerateConfig, ModelConfig, Recipe
from topr.engines import Engine, open_engine
from topr.grading import grade_table
from topr.progress import Progress
from topr.records import Problem, SamplingParams
from topr.runs.plan.costs import Drawing, Grading, Measured, Round, Storage
from topr.runs.plan.trial_steps import measure_training
from topr.runs.preparation import check_logprobs
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan, extra_columns, sampling_params
from topr.store import read_table
from topr.tasks import Task

SAMPLES = 2
"""Completions of each problem that is looked at."""
GROWTH = 4
"""Each round of drawing has that many times the problems of the one before; the first has one."""
ENOUGH_SECONDS = 10.0
"""A round that took this long is the last, from the second on: those before cost less."""
SIDE_BY_SIDE = 256
"""Completions under way at a time, where an engine does not say."""

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
    first, n = replace(sampling, max_tokens=1), min(SAMPLES, recipe.generate.n)
    at_a_time = side_by_side(recipe.generate)
    most = min(len(problems), -(-at_a_time // n))
    # A model is tried before its first completion.
    trial, _ = _drawn(engine, task, spread(problems, 1), first, 1, folder / "trial")
    rounds: list[Round] = []
    wanted, prompts, prompt_seconds = 1, 0.0, 0.0
    while True:
        chosen, place = spread(problems, min(wanted, most)), folder / f"round-{len(rounds)}"
        progress.say(f"drawing {len(chosen) * n} completions to measure")
        if prompts * GROWTH < ENOUGH_SECONDS:  # with one token each, it is their time
            prompts, table = _drawn(engine, task, chosen, first, 1, place / "prompts")
            prompt_seconds = prompts / sum(map(len, table["prompt_ids"].to_pylist()))
        seconds, table = _drawn(engine, task, chosen, sampling, n, place)
        rounds.append(_round(table, seconds, n, prompt_seconds))
        if len(chosen) == most or (len(rounds) > 1 and seconds > ENOUGH_SECONDS):
            break
        wanted *= GROWTH
    drawing = Drawing(
        trial_seconds=max(0.0, trial - prompts / len(chosen)),
        prompt_tokens=0.0,  # of all problems: the caller has read them
        prompt_seconds=prompt_seconds,
        side_by_side=at_a_time,
        lengths=tuple(map(len, table["completion_ids"].to_pylist())),
        rounds=tuple(rounds),
        spans_shards=engine.spans_shards,
    )
    return drawing, table


def _round(table: pa.Table, seconds: float, n: int, prompt_seconds: float) -> Round:
    """Return a round without the time of its prompts."""
    lengths = [len(ids) for ids in table["completion_ids"].to_pylist()]
    prompt_tokens = sum(map(len, table["prompt_ids"].to_pylist()[::n]))
    left = max(seconds - prompt_tokens * prompt_seconds, seconds / 10)
    return Round(tokens=sum(lengths), longest=max(lengths), seconds=left)


def _drawn(
    engine: Engine, task: Task, problems: Sequence[Problem], sampling: SamplingParams, n: int,
    folder: Path,
) -> tuple[float, pa.Table]:  # fmt: skip
    """Draw into a folder; return how long it took, and the rows."""
    plan = DrawPlan(
        problems=problems,
        sampling=sampling,
        n=n,
        shard_problems=len(problems),
        extra=extra_columns(problems, task.grader),
    )
    seconds, _ = _timed(lambda: draw(plan, engine, folder))
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


def _timed(do: Callable[[], ResultT]) -> tuple[float, ResultT]:
    began = time.perf_counter()
    result = do()
    return time.perf_counter() - began, result
