"""Everything that is known before a run: all its checks, one prompt, a few completions, its costs.

The checks are those of `topr.runs.loop.run`, made by the same functions.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from topr.config import CurateConfig, ModelConfig, Recipe
from topr.config.recipe import derived_sections
from topr.engines import Request
from topr.engines.base import validate_request
from topr.grading.survey import Survey, survey
from topr.models.files import is_adapter
from topr.models.loading import load_tokenizer, model_facts
from topr.progress import Progress
from topr.records import Problem, Split
from topr.runs.directory import holds_run
from topr.runs.plan.costs import Cost, Measured, cost
from topr.runs.plan.counts import Drawn, Sizes, Stage, planned
from topr.runs.plan.curating import Bounds, Seen, Tried
from topr.runs.plan.measuring import measure, spread
from topr.runs.preparation import decide_prompt, prepare
from topr.runs.recipe_checks import check_recipe
from topr.stages.draw_plan import sampling_params
from topr.stages.probe import probe_source
from topr.store import read_manifest
from topr.store.manifest import is_begun
from topr.tasks import Task
from topr.tokenization.prompts import render

PROMPTS = 200
"""Prompts that are tokenised for their mean length."""
LONGEST = 20
"""Prompts with the most characters, among which the one with the most tokens is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """The prompts of the problems that a run draws for."""

    shown: str
    """The first one as the model is given it, special tokens included."""
    name: str
    """Of its problem."""
    mean_tokens: float
    longest: int
    longest_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What was found."""

    recipe: Recipe
    sizes: Sizes
    prompts: Prompts
    stages: tuple[Stage, ...]
    done: frozenset[str]
    """Folders of stages that are done already."""
    begun: frozenset[str]
    """Folders of stages that are not, and that a run has begun."""
    measured: Measured | None
    """None: nothing was drawn."""
    costs: tuple[Cost, ...]
    """Of each stage; empty where nothing was measured."""
    graded: pa.Table | None
    """The completions that were drawn to measure."""
    survey: Survey | None
    """What they look like."""
    completions: tuple[str, ...]
    """Their texts, special tokens included."""
    free_disk: int
    """Bytes, where the run would be written."""
    memory: int
    """Bytes of the GPU where there is one, else of the machine."""
    device: str


def dry_run(
    recipe: Recipe, directory: Path | None, progress: Progress, *, measured: bool = True
) -> DryRun:
    """Make all checks of a run, and find out what it takes.

    Downloads stay in their caches, and so does the built-in base model. Nothing else is written.

    Args:
        recipe: of the run.
        directory: where it would be written; what is there already counts as done. None: nowhere.
        progress: receives what is being done.
        measured: draw, grade and train on a few completions, if anything is left to do; else counts
            alone.

    Raises:
        ToprError: what a run would be refused for.

    """
    check_recipe(recipe)
    recipe = decide_prompt(recipe, directory, progress)
    continued = directory is not None and holds_run(recipe, directory)
    prepared = prepare(recipe, progress)
    task, start = prepared.task, prepared.start
    sizes, tokenizer = sizes_of(recipe, task), load_tokenizer(start)
    prompts = _prompts(recipe, task, start, tokenizer)
    there = directory if continued else None
    known = tuple(planned(recipe, sizes, _Expect(recipe, sizes, None)))
    done = _folders(known, there, _is_done)
    found, graded = None, None
    if measured and any(stage.folder not in done for stage in known):
        problems = task.problems(Split.TRAIN)
        found, graded = measure(recipe, task, start, problems, progress)
        drawing = replace(found.drawing, prompt_tokens=prompts.mean_tokens)
        found = replace(found, drawing=drawing)
    stages = tuple(planned(recipe, sizes, _Expect(recipe, sizes, graded)))
    return DryRun(
        recipe=recipe,
        sizes=sizes,
        prompts=prompts,
        stages=stages,
        done=done,
        begun=_folders(stages, there, is_begun),
        measured=found,
        costs=tuple(cost(stage, recipe, found) for stage in stages) if found else (),
        graded=graded,
        survey=None if graded is None else survey(lambda names: [graded.select(names)]),
        completions=_texts(graded, tokenizer),
        free_disk=shutil.disk_usage(_existing(directory or Path.cwd())).free,
        memory=_memory(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine",
    )


def sizes_of(recipe: Recipe, task: Task) -> Sizes:
    """Return how many problems a run draws for."""
    most = recipe.evaluate.problems
    best = recipe.loop.keep == "best"
    return Sizes(
        train=len(task.problems(Split.TRAIN)),
        evaluation=len(task.problems(Split(recipe.evaluate.split))[:most]),
        validation=len(task.problems(Split.VALIDATION)[:most]) if best else 0,
        probe=_probe_problems(recipe, task),
    )


def _probe_problems(recipe: Recipe, task: Task) -> int:
    """Return how many validation problems there are, where a training asks for a probe."""
    comparisons = (
        derived_sections(recipe, each, where="compare")[1] for each in recipe.compare.values()
    )
    if not any(t.watch != "off" and t.probe_problems for t in (recipe.train, *comparisons)):
        return 0
    source = probe_source(recipe, task)
    return 0 if source is None else len(source.problems)


class _Expect:
    """What is drawn: known, or tried on what was seen."""

    def __init__(self, recipe: Recipe, sizes: Sizes, graded: pa.Table | None) -> None:
        self._common = {"problems": sizes.train, "n": recipe.generate.n}
        self._seen = None if graded is None else seen(graded)

    def __call__(self, curations: Sequence[CurateConfig]) -> Drawn:
        if self._seen is None:
            return Bounds(**self._common, curations=curations)
        return Tried(**self._common, curations=curations, seen=self._seen)


def seen(graded: pa.Table) -> Seen:
    """Return the grades of a table, by problem."""
    counts: dict[str, list[int]] = {}
    rows = zip(graded["problem_id"].to_pylist(), graded["reward"].to_pylist(), strict=True)
    for name, reward in rows:
        of = counts.setdefault(name, [0, 0, 0])
        of[2 if reward is None else 0 if reward > 0 else 1] += 1
    right, wrong, unscored = zip(*counts.values(), strict=True)
    return Seen(right=right, wrong=wrong, unscored=unscored)


def _prompts(
    recipe: Recipe, task: Task, start: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> Prompts:  # fmt: skip
    """Render some prompts, and refuse the longest where it leaves no room for a completion."""
    splits = {Split.TRAIN, Split(recipe.evaluate.split)}
    problems = [problem for split in sorted(splits) for problem in task.problems(split)]
    by_text = sorted(problems, key=_characters)
    requests = [_request(each, tokenizer) for each in spread(by_text, PROMPTS)]
    mean = sum(len(each.prompt_ids) for each in requests) / len(requests)
    # A prompt of a few characters less may have a few tokens more.
    requests += [_request(each, tokenizer) for each in by_text[-LONGEST:]]
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if not is_adapter(Path(start.path).expanduser()):
        facts = model_facts(start, tokenizer)
        sampling = sampling_params(recipe.generate, task.stop, recipe.seed)
        more = recipe.evaluate.max_tokens or sampling.max_tokens
        sampling = replace(sampling, max_tokens=max(sampling.max_tokens, more))
        validate_request(longest, sampling, vocabulary=facts.vocabulary, positions=facts.positions)
    first = _request(task.problems(Split.TRAIN)[0], tokenizer)
    return Prompts(
        shown=str(tokenizer.decode(list(first.prompt_ids))),
        name=first.problem_id,
        mean_tokens=mean,
        longest=len(longest.prompt_ids),
        longest_name=longest.problem_id,
    )


def _characters(problem: Problem) -> int:
    prompt = problem.prompt
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(turn.content) for turn in prompt)


def _request(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Request:
    rendered = render(problem.prompt, tokenizer, escape=problem.escape_special_tokens)
    return Request(problem_id=problem.id, prompt=rendered.text, prompt_ids=tuple(rendered.ids), n=1)


def _texts(graded: pa.Table | None, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    if graded is None:
        return ()
    return tuple(str(tokenizer.decode(ids)) for ids in graded["completion_ids"].to_pylist())


def _folders(
    stages: Sequence[Stage], directory: Path | None, holds: Callable[[Path], bool]
) -> frozenset[str]:
    """Return the folders of stages of which something holds in a run that is there."""
    if directory is None:
        return frozenset()
    return frozenset(stage.folder for stage in stages if holds(directory / stage.folder))


def _is_done(folder: Path) -> bool:
    return read_manifest(folder) is not None


def _existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _memory() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
