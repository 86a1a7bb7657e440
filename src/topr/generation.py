"""Problems to rollouts on disk: prompts rendered, completions drawn, shards written one by one.

The one place that draws rollouts, for training and evaluation alike. No grading, no metrics, and no
manifest: whether a stage is done is the caller's to say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from topr.engines.base import Engine, Request
from topr.errors import DataError, EngineError, RunDirectoryError
from topr.interop import as_column
from topr.records import Problem, Rollout, SamplingParams
from topr.store import (
    ROLLOUT_SCHEMA,
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

Progress = Callable[[int, int], None]
"""Told of every step forward: (completions, tokens) since the last call."""
Look = Callable[[pa.Table], None]
"""Given the first shard that is written, while others are still to come."""


def draw(
    problems: Sequence[Problem],
    engine: Engine,
    sampling: SamplingParams,
    n: int,
    directory: Path,
    *,
    shard_problems: int,
    iteration: int = 0,
    keep_columns: bool = False,
    progress: Progress | None = None,
    look: Look | None = None,
) -> int:
    """Draw n completions of each problem into shards of `shard_problems` problems.

    Shard `part-00000.parquet` holds the first chunk of problems in the order given, and so on; its
    rows are in the order of (problem, sample), whatever order the engine finished them in. A shard
    that is there is left alone, so that an interrupted call costs one shard at most when it is
    made again. With an engine that says so (`journal`), it costs nothing that was answered: each
    completion is noted in a hidden file beside the shards, and only the missing ones are drawn. An
    engine that says so (`spans_shards`) is asked for all missing shards at once, and those that it
    has begun are what an interruption costs.

    Args:
        problems: with ids of their own.
        engine: draws the completions.
        sampling: how completions are drawn.
        n: completions per problem, numbered from 0.
        directory: where the shards go; made where it is not there.
        shard_problems: problems per shard.
        iteration: written into each row.
        keep_columns: write the problems' further columns beside the rollouts', so that a user's own
            reward function can be given them. Those named like a column of the schema are left out:
            the gold answer is in `gold`.
        progress: called as completions finish. A shard that was there counts with 0 tokens, since
            nothing was drawn.
        look: given the first shard of this call, where there are more to come.

    Returns:
        The number of completions that this call drew.

    Raises:
        DataError: two problems share an id, or a further column holds values of unlike types.
        RunDirectoryError: a shard that is there holds other problems or was drawn otherwise.
        EngineError: the engine failed, or did not return what it was asked for.

    """
    check_ids(problems)
    check_none_further(directory, shard_count(len(problems), shard_problems))
    return draw_shards(
        problems,
        engine,
        sampling,
        n,
        directory,
        shard_problems=shard_problems,
        iteration=iteration,
        further=further_columns(problems) if keep_columns else {},
        progress=progress,
        look=look,
    )


def draw_shards(
    problems: Sequence[Problem],
    engine: Engine,
    sampling: SamplingParams,
    n: int,
    directory: Path,
    *,
    shard_problems: int,
    iteration: int,
    first_sample: int = 0,
    first_shard: int = 0,
    further: Mapping[str, pa.Array],
    progress: Progress | None = None,
    look: Look | None = None,
) -> int:
    """Draw as `draw` does: one call of several into the same directory.

    Args:
        problems: as for `draw`.
        engine: as for `draw`.
        sampling: as for `draw`.
        n: completions per problem, numbered from `first_sample`.
        directory: as for `draw`.
        shard_problems: as for `draw`.
        iteration: as for `draw`.
        first_sample: number of each problem's first completion.
        first_shard: number of the first shard.
        further: columns of the problems to write, one value a problem.
        progress: as for `draw`.
        look: as for `draw`.

    """
    there = {path.name: path for path in shard_paths(directory)}
    samples = range(first_sample, first_sample + n)
    missing: list[_Shard] = []
    for index in range(shard_count(len(problems), shard_problems)):
        first, number = index * shard_problems, first_shard + index
        chunk = problems[first : first + shard_problems]
        asked = [(problem.id, sample) for problem in chunk for sample in samples]
        shard = there.get(f"part-{number:05d}.parquet")
        if shard is None:
            missing.append(_Shard(number=number, first=first, problems=chunk, asked=asked))
            continue
        _check_shard(shard, asked, sampling, iteration)
        journal_path(directory, number).unlink(missing_ok=True)
        if progress is not None:
            progress(len(asked), 0)
    drawn = 0
    for made, rollouts, new in _drawn(missing, engine, sampling, iteration, directory, progress):
        table = rollouts_to_table(rollouts)
        for name, values in further.items():
            owners = [made.first + position // n for position in range(len(made.asked))]
            table = table.append_column(name, values.take(pa.array(owners)))
        write_shard(directory, made.number, table)
        journal_path(directory, made.number).unlink(missing_ok=True)
        drawn += new
        if look is not None and len(missing) > 1:
            look(table)
            look = None
    return drawn


def shard_count(problems: int, shard_problems: int) -> int:
    """Return how many shards that many problems make."""
    return -(-problems // shard_problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """A shard that is not there yet."""

    number: int
    first: int
    """Place of its first problem among those of the call."""
    problems: Sequence[Problem]
    asked: list[tuple[str, int]]
    """Its rows: (problem, sample)."""


def _drawn(
    shards: Sequence[_Shard],
    engine: Engine,
    sampling: SamplingParams,
    iteration: int,
    directory: Path,
    progress: Progress | None,
) -> Iterator[tuple[_Shard, list[Rollout], int]]:
    """Yield shards as they are complete, with their rows in order, and how many of them are new."""
    if getattr(engine, "spans_shards", False):
        yield from _draw_together(shards, engine, sampling, iteration, progress)
        return
    for shard in shards:
        noted = journal_path(directory, shard.number)
        journal = Journal(noted) if getattr(engine, "journal", False) else None
        rollouts = _draw_alone(shard, engine, sampling, iteration, journal, progress)
        yield shard, rollouts, len(rollouts) - (len(journal.rollouts) if journal else 0)


def _draw_alone(
    shard: _Shard,
    engine: Engine,
    sampling: SamplingParams,
    iteration: int,
    journal: Journal | None,
    progress: Progress | None,
) -> list[Rollout]:
    """Return the completions of a shard: those that the journal has, and new ones."""
    rollouts: list[Rollout] = []
    with journal or nullcontext():
        if journal is not None and journal.rollouts:
            rollouts += journal.rollouts
            _check_journal(journal, shard.asked, sampling, iteration)
            if progress is not None:
                progress(len(rollouts), 0)
        requests = _requests(shard.problems, shard.asked, rollouts, engine.tokenizer)
        for rollout in engine.generate(requests, sampling, iteration=iteration) if requests else ():
            if journal is not None:
                journal.add(rollout)
            rollouts.append(rollout)
            if progress is not None:
                progress(1, len(rollout.completion_ids))
    return _in_order(rollouts, shard.asked, engine)


def _draw_together(
    shards: Sequence[_Shard],
    engine: Engine,
    sampling: SamplingParams,
    iteration: int,
    progress: Progress | None,
) -> Iterator[tuple[_Shard, list[Rollout], int]]:
    """Ask the engine for all shards at once, and yield each when its last completion has come."""
    requests = [
        request
        for shard in shards
        for request in _requests(shard.problems, shard.asked, (), engine.tokenizer)
    ]
    owner = {problem.id: shard for shard in shards for problem in shard.problems}
    open_ = {shard.number: shard for shard in shards}
    found: dict[int | None, list[Rollout]] = {number: [] for number in open_}
    for rollout in engine.generate(requests, sampling, iteration=iteration) if requests else ():
        shard = owner.get(rollout.problem_id)
        number = shard.number if shard and shard.number in open_ else None
        found.setdefault(number, []).append(rollout)
        if progress is not None:
            progress(1, len(rollout.completion_ids))
        if shard and number is not None and len(found[number]) == len(shard.asked):
            yield (
                open_.pop(number),
                _in_order(found.pop(number), shard.asked, engine),
                len(shard.asked),
            )
    left = [rollout for rollouts in found.values() for rollout in rollouts]
    _check_complete(left, [key for shard in open_.values() for key in shard.asked], engine)


def _in_order(
    rollouts: list[Rollout], asked: list[tuple[str, int]], engine: Engine
) -> list[Rollout]:
    """Return what was asked for in the order of asking; refuse anything else."""
    _check_complete(rollouts, asked, engine)
    place = {key: position for position, key in enumerate(asked)}
    return sorted(rollouts, key=lambda rollout: place[rollout.problem_id, rollout.sample])


def _requests(
    chunk: Sequence[Problem],
    asked: Sequence[tuple[str, int]],
    known: Sequence[Rollout],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Request]:
    """Return requests for what is asked and not known: one for each run of sample numbers."""
    there = {(rollout.problem_id, rollout.sample) for rollout in known}
    runs: dict[str, list[list[int]]] = {}
    for problem_id, sample in asked:
        if (problem_id, sample) in there:
            continue
        own = runs.setdefault(problem_id, [])
        if own and own[-1][-1] == sample - 1:
            own[-1].append(sample)
        else:
            own.append([sample])
    requests = []
    for problem in chunk:
        if problem.id not in runs:
            continue
        prompt = render(problem.prompt, tokenizer, literal=problem.literal)
        requests += [
            Request(
                problem_id=problem.id,
                prompt=prompt.text,
                prompt_ids=tuple(prompt.ids),
                n=len(run),
                first_sample=run[0],
                gold=problem.answer,
                question=problem.asks,
            )
            for run in runs[problem.id]
        ]
    return requests


def further_columns(problems: Sequence[Problem]) -> dict[str, pa.Array]:
    """Return the problems' further columns, one value a problem.

    Of all problems of a draw together, so that every shard has the same columns of the same types.
    Values without a common type become text, as in `topr.store.read_rows`.
    """
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    return {
        name: as_column([problem.columns.get(name) for problem in problems])
        for name in names
        if name not in ROLLOUT_SCHEMA.names
    }


def check_ids(problems: Sequence[Problem]) -> None:
    """Refuse problems that share an id."""
    ids = [problem.id for problem in problems]
    if len(set(ids)) != len(ids):
        twice = next(id_ for position, id_ in enumerate(ids) if id_ in ids[:position])
        raise DataError(
            f"{len(ids)} problems have {len(set(ids))} ids ({twice!r} is there twice): give each "
            "problem an id of its own"
        )


def check_none_further(directory: Path, shards: int) -> None:
    """Refuse a directory that holds more than this draw makes."""
    names = {f"part-{index:05d}.parquet" for index in range(shards)}
    further = sorted({path.name for path in shard_paths(directory)} - names)
    if further:
        raise RunDirectoryError(
            f"{directory} holds {', '.join(further)} beyond the {shards} shards that these "
            "problems make: they are of another run. Write elsewhere, or remove them"
        )


def _check_complete(rollouts: list[Rollout], asked: list[tuple[str, int]], engine: Engine) -> None:
    returned = sorted((rollout.problem_id, rollout.sample) for rollout in rollouts)
    if returned != sorted(asked):
        raise EngineError(
            f"engine {engine.name!r} was asked for {len(asked)} completions and returned "
            f"{len(returned)}, of which {len(set(returned) & set(asked))} are among those asked "
            "for: nothing of this shard is kept. Run it again; if it stays so, the engine is at "
            "fault"
        )


def _check_shard(
    shard: Path, asked: list[tuple[str, int]], sampling: SamplingParams, iteration: int
) -> None:
    """Refuse to continue what was begun with other problems or other settings."""
    table = read_table(shard, ["problem_id", "sample", "sampling", "iteration"])
    found = table.to_pydict()
    settings = {
        SamplingParams(**{**each, "stop": tuple(each["stop"])}) for each in found["sampling"]
    }
    rows = list(zip(found["problem_id"], found["sample"], strict=True))
    if rows == asked and settings <= {sampling} and set(found["iteration"]) <= {iteration}:
        return
    raise RunDirectoryError(
        f"{shard} holds {len(rows)} completions that are not those asked for now "
        f"({len(asked)} with {sampling}, iteration {iteration}; there: {settings}): the problems "
        "or the settings have changed since it was drawn. Write elsewhere, or remove it"
    )


def _check_journal(
    journal: Journal, asked: Sequence[tuple[str, int]], sampling: SamplingParams, iteration: int
) -> None:
    """Refuse to continue what was begun with other problems or other settings."""
    found = [(rollout.problem_id, rollout.sample) for rollout in journal.rollouts]
    settings = {(rollout.sampling, rollout.iteration) for rollout in journal.rollouts}
    strange = set(found) - set(asked)
    if len(set(found)) == len(found) and not strange and settings <= {(sampling, iteration)}:
        return
    raise RunDirectoryError(
        f"{journal.path} notes {len(found)} completions of an interrupted draw, {len(strange)} of "
        f"them not asked for now (with {sampling}, iteration {iteration}; there: {settings}): the "
        "problems or the settings have changed since. Write elsewhere, or remove it"
    )
