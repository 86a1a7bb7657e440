"""The one function that samples completions, by a plan (`topr.stages.draw_plan`), into shards.

For training, evaluations, verifiers and probes alike. No grading, no metrics, and no manifest:
whether a stage is done is for the stage to say (`topr.stages.generate`, `topr.stages.evaluate`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from topr.engines.base import Engine, Request
from topr.errors import DataError, EngineError, RunDirectoryError
from topr.progress import Advance, ignore
from topr.records import Problem, Rollout, SamplingParams
from topr.stages.draw_plan import DrawPlan, Key, Shard
from topr.store import (
    Journal,
    journal_path,
    read_table,
    rollouts_to_table,
    shard_paths,
    write_shard,
)
from topr.tokenization.prompts import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Look = Callable[[pa.Table], None]
"""Receives the first shard that is written, while others are still to come."""


def draw(
    plan: DrawPlan,
    engine: Engine,
    directory: Path,
    *,
    advance: Advance = ignore,
    look: Look | None = None,
) -> int:
    """Sample what a plan says into shards of a directory. Return how many completions were new.

    A shard that is there is left alone, so that an interruption costs one shard at most. With an
    engine that has `journal`, it costs nothing that was answered: each completion is noted in a
    hidden file next to the shards, and only missing ones are sampled. An engine that has
    `spans_shards` gets all missing shards at once; those that it has begun are what an interruption
    costs.

    Args:
        plan: what is sampled.
        engine: samples it, in any order.
        directory: made where it is not there.
        advance: receives completions and tokens. A shard that was there counts with 0 tokens.
        look: receives the first shard of this call, where there are more to come.

    Raises:
        DataError: two problems share an id.
        RunDirectoryError: a shard that is there holds other problems or was sampled otherwise.
        EngineError: the engine failed, or did not return what it was asked for.

    """
    _check_ids(plan.problems)
    if plan.is_last:
        refuse_other_shards(directory, plan.end)
    there = {path.name: path for path in shard_paths(directory)}
    missing: list[Shard] = []
    for shard in plan.shards():
        found = there.get(f"part-{shard.number:05d}.parquet")
        if found is None:
            missing.append(shard)
            continue
        _check_shard(found, shard, plan)
        journal_path(directory, shard.number).unlink(missing_ok=True)
        advance(len(shard.asked))
    drawn = 0
    carry_out = _all_together if engine.spans_shards else _one_by_one
    for shard, rollouts, new in carry_out(plan, missing, engine, directory, advance):
        table = rollouts_to_table(rollouts)
        for name, values in plan.extra.items():
            table = table.append_column(name, values.take(pa.array(shard.owners)))
        write_shard(directory, shard.number, table)
        journal_path(directory, shard.number).unlink(missing_ok=True)
        drawn += new
        if look is not None and len(missing) > 1:
            look(table)
            look = None
    return drawn


_Made = Iterator[tuple[Shard, list[Rollout], int]]
"""Shards as they are complete: their rows in order, and how many of them are new."""


def _one_by_one(
    plan: DrawPlan, shards: Sequence[Shard], engine: Engine, directory: Path, advance: Advance
) -> _Made:
    """Ask for the completions of a shard that its journal does not have."""
    for shard in shards:
        journal = Journal(journal_path(directory, shard.number)) if engine.journal else None
        with journal or nullcontext():
            noted = list(journal.rollouts) if journal else []
            if journal and noted:
                _check_journal(journal, shard, plan)
                advance(len(noted))
            rollouts = list(noted)
            for rollout in _generate(plan, [shard], engine, {_key(each) for each in noted}):
                if journal:
                    journal.add(rollout)
                rollouts.append(rollout)
                advance(1, tokens=len(rollout.completion_ids))
        yield shard, _in_order(rollouts, shard.asked, engine), len(rollouts) - len(noted)


def _all_together(
    plan: DrawPlan, shards: Sequence[Shard], engine: Engine, directory: Path, advance: Advance
) -> _Made:
    """Ask for all shards at once, and yield each when its last completion has come."""
    owner = {problem.id: shard for shard in shards for problem in shard.problems}
    waiting = {shard.number: shard for shard in shards}
    found: dict[int | None, list[Rollout]] = {number: [] for number in waiting}
    for rollout in _generate(plan, shards, engine, set()):
        shard = owner.get(rollout.problem_id)
        number = shard.number if shard and shard.number in waiting else None
        found.setdefault(number, []).append(rollout)
        advance(1, tokens=len(rollout.completion_ids))
        if shard and number is not None and len(found[number]) == len(shard.asked):
            del waiting[number]
            yield shard, _in_order(found.pop(number), shard.asked, engine), len(shard.asked)
    left = [rollout for rollouts in found.values() for rollout in rollouts]
    _in_order(left, [key for shard in waiting.values() for key in shard.asked], engine)


def _generate(
    plan: DrawPlan, shards: Sequence[Shard], engine: Engine, known: set[Key]
) -> Iterator[Rollout]:
    requests = [each for shard in shards for each in _requests(shard, known, engine.tokenizer)]
    if requests:
        yield from engine.generate(requests, plan.sampling, iteration=plan.iteration)


def _requests(
    shard: Shard, known: set[Key], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Request]:
    """Yield requests for what is not known: one for each run of sample numbers.

    Of samples 0 to 5 of which 0, 2 and 3 are known, these are 1, and 4 and 5.
    """
    runs: dict[str, list[list[int]]] = {}
    for problem_id, sample in shard.asked:
        if (problem_id, sample) in known:
            continue
        own = runs.setdefault(problem_id, [])
        if own and own[-1][-1] == sample - 1:
            own[-1].append(sample)
        else:
            own.append([sample])
    for problem in shard.problems:
        if problem.id not in runs:
            continue
        prompt = render(problem.prompt, tokenizer, escape=problem.escape_special_tokens)
        for samples in runs[problem.id]:
            yield Request(
                problem_id=problem.id,
                prompt=prompt.text,
                prompt_ids=tuple(prompt.ids),
                n=len(samples),
                first_sample=samples[0],
                gold=problem.answer,
                question=problem.asks,
            )


def _key(rollout: Rollout) -> Key:
    return rollout.problem_id, rollout.sample


def _in_order(rollouts: list[Rollout], asked: list[Key], engine: Engine) -> list[Rollout]:
    """Return what was asked for in the order of asking; refuse anything else."""
    returned = sorted(map(_key, rollouts))
    if returned != sorted(asked):
        raise EngineError(
            f"engine {engine.name!r} was asked for {len(asked)} completions and returned "
            f"{len(returned)}, of which {len(set(returned) & set(asked))} are among those asked "
            "for: nothing of this shard is kept. Run it again; if it stays so, the engine is at "
            "fault"
        )
    place = {key: position for position, key in enumerate(asked)}
    return sorted(rollouts, key=lambda rollout: place[_key(rollout)])


def _check_ids(problems: Sequence[Problem]) -> None:
    """Refuse problems that share an id."""
    ids = [problem.id for problem in problems]
    if len(set(ids)) != len(ids):
        twice = next(id_ for position, id_ in enumerate(ids) if id_ in ids[:position])
        raise DataError(
            f"{len(ids)} problems have {len(set(ids))} ids ({twice!r} is there twice): give each "
            "problem its own id"
        )


def refuse_other_shards(directory: Path, end: int) -> None:
    """Refuse a directory that holds shards from the number `end` on."""
    names = {f"part-{number:05d}.parquet" for number in range(end)}
    others = sorted({path.name for path in shard_paths(directory)} - names)
    if others:
        raise RunDirectoryError(
            f"{directory} holds {', '.join(others)} beyond the {end} shards that these "
            "problems make: they are of another run. Write elsewhere, or remove them"
        )


def _check_shard(path: Path, shard: Shard, plan: DrawPlan) -> None:
    """Refuse to continue what was begun with other problems or other settings."""
    found = read_table(path, ["problem_id", "sample", "sampling", "iteration"]).to_pydict()
    settings = {
        SamplingParams(**{**each, "stop": tuple(each["stop"])}) for each in found["sampling"]
    }
    rows = list(zip(found["problem_id"], found["sample"], strict=True))
    same = settings <= {plan.sampling} and set(found["iteration"]) <= {plan.iteration}
    if rows == shard.asked and same:
        return
    raise RunDirectoryError(
        f"{path} holds {len(rows)} completions that are not those asked for now "
        f"({len(shard.asked)} with {plan.sampling}, iteration {plan.iteration}; there: {settings})"
        ": the problems or the settings have changed since it was drawn. Write elsewhere, or "
        "remove it"
    )


def _check_journal(journal: Journal, shard: Shard, plan: DrawPlan) -> None:
    """Refuse to continue what was begun with other problems or other settings."""
    found = list(map(_key, journal.rollouts))
    settings = {(rollout.sampling, rollout.iteration) for rollout in journal.rollouts}
    unknown, same = set(found) - set(shard.asked), settings <= {(plan.sampling, plan.iteration)}
    if len(set(found)) == len(found) and not unknown and same:
        return
    raise RunDirectoryError(
        f"{journal.path} notes {len(found)} completions of an interrupted draw, {len(unknown)} of "
        f"them not asked for now (with {plan.sampling}, iteration {plan.iteration}; there: "
        f"{settings}): the problems or the settings have changed since. Write elsewhere, or "
        "remove it"
    )
