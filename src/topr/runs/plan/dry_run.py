"""Everything that is known before a run: all its checks, one prompt, a few completions, its costs.

The checks are those of `topr.runs.loop.run`, made by the same functions.
"""

import heapq
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from rich.filesize import decimal
from transformers import PreTrainedTokenizerBase

from topr.config import ModelConfig, Recipe
from topr.engines import Request
from topr.engines.base import validate_requests
from topr.grading.survey import survey
from topr.models.facts import model_facts
from topr.models.files import is_adapter
from topr.models.loading import load_tokenizer
from topr.progress import Progress, duration
from topr.records import Outcome, Problem, Split
from topr.report.text import plural, visible
from topr.runs.directory import holds_run
from topr.runs.plan.costs import REPORT, Cost, Measured, cost, total, uncertainty
from topr.runs.plan.counts import Count, Kind, Stage, planned
from topr.runs.plan.measuring import measure
from topr.runs.preparation import decide_prompt, prepare
from topr.runs.recipe_checks import check_recipe
from topr.stages.draw_plan import sampling_params
from topr.store import read_manifest
from topr.tasks import Task
from topr.tokenization.prompts import render

LONGEST = 20
"""Prompts with the most characters, among which the one with the most tokens is looked for."""


def brief(recipe: Recipe, task: Task) -> str:
    """Return what a run says when it begins: what is known without generating anything."""
    stages = planned(recipe, task)
    drawn = sum((s.completions for s in stages if s.kind is Kind.GENERATE), Count())
    evaluated = sum((s.completions for s in stages if s.kind is Kind.EVALUATE), Count())
    steps = sum((s.steps for s in stages), Count())
    return (
        f"the whole run: {drawn.of('completion')} to generate and grade, "
        f"{steps.of('optimizer step')}, {evaluated.of('completion')} to evaluate, "
        f"{plural(sum(s.models for s in stages), 'model')} to write "
        "(--dry-run says how long that takes)"
    )


def dry_run(
    recipe: Recipe, directory: Path | None, progress: Progress, *, measured: bool = True
) -> list[str]:
    """Make all checks of a run, and say what it takes, in lines of text.

    Downloads stay in their caches, and so does the built-in base model. Nothing else is written.

    Args:
        recipe: of the run.
        directory: where it would be written; what is done there is not counted. None: nowhere.
        progress: receives what is being done.
        measured: generate, grade and train on a few completions, if anything is left to do; else
            counts alone.

    Raises:
        ToprError: what a run would be refused for.

    """
    check_recipe(recipe)
    recipe = decide_prompt(recipe, directory, progress)
    there = directory if directory is not None and holds_run(recipe, directory) else None
    task, start = prepare(recipe, progress)
    tokenizer = load_tokenizer(start)
    longest = _check_longest(recipe, task, start, tokenizer)
    stages = planned(recipe, task)
    done = {s.folder for s in stages if there and read_manifest(there / s.folder) is not None}
    shown = _setting(recipe, task, done)
    if all(stage.folder in done for stage in stages):
        return ["all stages are done: the run would read their results", "", *shown]
    first = _request(task.problems(Split.TRAIN)[0], tokenizer)
    asked = ["", *_prompt(first, tokenizer, len(longest.prompt_ids)), ""]
    if not measured:
        left = [stage for stage in stages if stage.folder not in done]
        unknown = "time, disk, memory: not measured (--no-measure)"
        return [unknown, "", *shown, "", *_table(left), *asked]
    found = measure(recipe, task, start, progress)
    left = [stage for stage in planned(recipe, task, found.graded) if stage.folder not in done]
    costs = [cost(stage, recipe, found) for stage in left]
    said = [*_answers(recipe, found, costs, directory or Path.cwd()), "", *shown, ""]
    return [*said, *_table(left, costs), *asked, *_completions(found.graded, tokenizer)]


def _check_longest(
    recipe: Recipe, task: Task, start: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> Request:
    """Return the longest prompt.

    Raises:
        EngineError: it leaves no room for a completion.

    """
    splits = {Split.TRAIN, Split(recipe.evaluate.split)}
    problems = (problem for split in splits for problem in task.problems(split))
    # A prompt of a few characters less may have a few tokens more.
    some = heapq.nlargest(LONGEST, problems, key=lambda problem: len(str(problem.prompt)))
    requests = (_request(problem, tokenizer) for problem in some)
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if not is_adapter(Path(start.path).expanduser()):
        facts = model_facts(start, tokenizer)
        sampling = sampling_params(recipe.generate, task.stop, recipe.seed)
        most = max(sampling.max_tokens, recipe.evaluate.max_tokens or 0)
        sampling = replace(sampling, max_tokens=most)
        validate_requests([longest], sampling, facts)
    return longest


def _request(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Request:
    rendered = render(problem.prompt, tokenizer, escape=problem.escape_special_tokens)
    return Request(problem_id=problem.id, prompt=rendered.text, prompt_ids=tuple(rendered.ids), n=1)


def _answers(
    recipe: Recipe, measured: Measured, costs: Sequence[Cost], directory: Path
) -> Iterator[str]:
    """Yield how long, how much disk, how much memory, and whether there is as much."""
    whole = total([*costs, REPORT])
    factor = uncertainty(len(measured.lengths))
    low, high = duration(whole.seconds / factor), duration(whole.seconds * factor)
    yield f"time    about {duration(whole.seconds)} ({low} to {high})"
    place = directory.absolute()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    most, stays = whole.disk + whole.passing, decimal(int(whole.disk))
    yield f"disk    {_room(most, free)}; {stays} stay when it is done"
    device, there = "this machine", psutil.virtual_memory().total
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        device, there = gpu.name, gpu.total_memory
    seen = f"with {len(measured.lengths)} completions side by side"
    yield f"memory  {_room(measured.memory, there)} ({device}, {seen})"
    if psutil.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        yield "note    other programs keep this machine busy: without them it is faster"
    if recipe.verifier is not None:
        yield "note    the verifier's own run is not counted: it trains on what this run generates"


def _room(needed: float, there: int) -> str:
    fits = "enough" if needed < 0.9 * there else "NOT ENOUGH"
    return f"about {decimal(int(needed))} of {decimal(there)}: {fits}"


def _setting(recipe: Recipe, task: Task, done: Collection[Path]) -> list[str]:
    """Return what is to be run, and what of it is done."""
    split = Split(recipe.evaluate.split)
    train, test = len(task.problems(Split.TRAIN)), len(task.problems(split))
    line = f"{recipe.name}: {train:,} problems to train on, {test:,} in the {split} split"
    named = ", ".join(sorted(map(str, done)))
    return [line, f"done already, and not counted: {named}"] if done else [line]


def _table(stages: Sequence[Stage], costs: Sequence[Cost] = ()) -> Iterator[str]:
    """Yield a line for each label; stages of several iterations are added up."""
    head = ("stage", "completions", "steps", "tokens", "time", "disk")
    rows: list[tuple[str, ...]] = [head if costs else head[:3]]
    for label in dict.fromkeys(stage.label for stage in stages):
        places = [i for i, stage in enumerate(stages) if stage.label == label]
        name = f"{label} (x {len(places)})" if len(places) > 1 else label
        completions = sum((stages[i].completions for i in places), Count())
        steps = sum((stages[i].steps for i in places), Count())
        row: tuple[str, ...] = (name, str(completions), str(steps) if steps.value else "")
        if costs:
            whole = total([costs[i] for i in places])
            tokens = f"{round(whole.tokens, -2):,.0f}"
            row = (*row, tokens, duration(whole.seconds), decimal(int(whole.disk)))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([f"{name:<{widths[0]}}", *padded]).rstrip()


def _prompt(request: Request, tokenizer: PreTrainedTokenizerBase, longest: int) -> Iterator[str]:
    """Yield a prompt with its special tokens."""
    ids = list(request.prompt_ids)
    yield f"---- a prompt, as the model receives it: {len(ids)} tokens; the longest: {longest} ----"
    yield visible(str(tokenizer.decode(ids)))
    yield "---- end of the prompt ----"


def _completions(graded: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield what was seen of grades, then a right completion and another one."""
    rows = graded.to_pylist()
    grades = Counter(row["grade"] for row in rows).most_common()
    shares = [f"{n / len(rows):.0%} {grade}" for grade, n in grades]
    yield f"{len(rows)} completions were sampled: {', '.join(shares)}"
    seen = survey(lambda names: [graded.select(names)])
    if seen.concerns:
        yield visible(str(seen))
    firsts = {row["grade"] == Outcome.CORRECT: row for row in reversed(rows)}
    for row in (firsts[is_right] for is_right in (True, False) if is_right in firsts):
        yield (
            f"---- {row['grade']}: answer read {row['answer']!r}, gold {row['gold']!r}; "
            f"{len(row['completion_ids'])} tokens, ended by {row['finish_reason']} ----"
        )
        yield visible(str(tokenizer.decode(row["completion_ids"])))
    yield "---- end of the completion ----"
