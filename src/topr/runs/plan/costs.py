"""From what a few completions took to what a stage takes: seconds and bytes. Pure arithmetic,
meant to be right within a factor of 1.3 on a normal run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa

from topr.config import Recipe
from topr.runs.plan.counts import Draw, Kind, Stage

Round = tuple[Sequence[int], float]
"""Completions that were generated side by side, all begun together: the tokens of each, and the
seconds of all without those of their prompts."""


def step_and_token_seconds(rounds: Sequence[Round]) -> tuple[float, float]:
    """Return what a decoding step takes, and what each completion in it adds.

    A round has as many steps as its longest completion has tokens, so `seconds / tokens = token +
    step * (longest / tokens)`: a line through the first round and the last. Neither is below 0; one
    round alone tells no step.

    >>> few, many = [10, 10], [10] * 8
    >>> rounds = [(few, 10 * 0.1 + 20 * 0.01), (many, 10 * 0.1 + 80 * 0.01)]
    >>> [round(each, 6) for each in step_and_token_seconds(rounds)]
    [0.1, 0.01]
    """
    (few, some), (each, least) = (
        (seconds / sum(lengths), max(lengths) / sum(lengths))
        for lengths, seconds in (rounds[0], rounds[-1])
    )
    step = (few - each) / (some - least) if some > least else 0.0
    step = min(max(step, 0.0), each / least)
    return step, each - step * least


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a few completions and optimizer steps took, in seconds and bytes."""

    graded: pa.Table
    """The completions of the last round, graded."""
    rounds: Sequence[Round]
    open_seconds: float
    """Until an engine has its model ready; a training takes about as long."""
    prompt_seconds: float
    """Of a prompt."""
    spans_shards: bool
    """Shards are generated together, without waiting for the last completion of each."""
    grader_seconds: float
    """To start the graders, for each shard."""
    grade_seconds: float
    """Of a completion."""
    train_token_seconds: float
    """Of a completion's token in an optimizer step."""
    parameters: int
    trained_parameters: int
    row_bytes: float
    """Of a completion in a shard."""
    memory: int
    """Peak, of the GPU where there is one, else of the process."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of the completions of the last round."""
        return self.rounds[-1][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a stage takes, or several."""

    tokens: float = 0.0
    """Of completions, generated, graded or trained on."""
    seconds: float = 0.0
    disk: float = 0.0
    """Bytes that it leaves."""
    passing: float = 0.0
    """Bytes more that it needs until it ends."""


def total(costs: Sequence[Cost]) -> Cost:
    """Add up stages that follow each other; on the way they need what the largest does.

    >>> total([Cost(seconds=2, disk=10, passing=30), Cost(seconds=3, disk=20)])
    Cost(tokens=0.0, seconds=5, disk=30, passing=30)
    """
    return Cost(
        tokens=sum(each.tokens for each in costs),
        seconds=sum(each.seconds for each in costs),
        disk=sum(each.disk for each in costs),
        passing=max(each.passing for each in costs),
    )


FORWARD = 1 / 3
"""Of an optimizer step's time, that of a forward pass alone: what recomputing log mu takes."""
REPORT = Cost(disk=5e5)
"""`report.html`."""
REFERENCE = 40
"""Bytes of a row that refers to a completion elsewhere: its grade, or that it was chosen."""
CHECKPOINT = 3
"""A checkpoint is to its trained weights as 3 to 1: Adam keeps two numbers for each."""
BYTES = {"float32": 4, "bfloat16": 2}
"""Of a trained weight."""


def cost(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    """Return what a stage takes."""
    seconds, rows, passing = 0.0, stage.completions.value, 0.0
    refers = stage.kind not in (Kind.GENERATE, Kind.EVALUATE)
    mean, disk = fmean(measured.lengths), rows * (REFERENCE if refers else measured.row_bytes)
    tokens = rows * mean
    for draw in stage.draws:
        shards = -(-draw.problems // recipe.generate.shard_problems)
        if stage.kind is not Kind.GRADE:
            seconds += _generating(draw, shards, recipe, measured)
        if stage.kind is not Kind.GENERATE:
            seconds += (shards if stage.kind is Kind.GRADE else 1) * measured.grader_seconds
            seconds += draw.problems * draw.n * measured.grade_seconds
    if stage.kind in (Kind.EVALUATE, Kind.TRAIN):
        seconds += measured.open_seconds
    if stage.kind is Kind.TRAIN:
        tokens = stage.passes * mean
        recomputed = stage.recomputed * mean * FORWARD
        seconds += (tokens + recomputed) * measured.train_token_seconds
        lora, each = recipe.train.lora, BYTES[recipe.train.dtype]
        trained = measured.trained_parameters * each
        alone = lora is not None and not lora.merge  # an adapter is all that is written
        disk += stage.models * (trained if alone else measured.parameters * each)
        # The last good weights, and new ones while they are written in place of those.
        good = 2 * trained if recipe.train.watch == "stop" else 0
        passing = stage.checkpoints * CHECKPOINT * trained + good
    return Cost(tokens=tokens, seconds=seconds, disk=disk, passing=passing)


def _generating(draw: Draw, shards: int, recipe: Recipe, measured: Measured) -> float:
    """Return the seconds of prompts, decoding steps, and the tokens in them.

    A shard waits for its last completion, with fewer and fewer side by side. 10 completions of 5
    tokens, the longest of 9, at most 5 side by side: 2 x 5 steps, and 9 - 5 more for the last.
    """
    rows, mean = draw.problems * draw.n, fmean(measured.lengths)
    shards = 1 if measured.spans_shards else shards
    full = max(rows / shards / side_by_side(recipe), 1.0)
    steps = shards * (mean * full + max(measured.lengths) - mean)
    step_seconds, token_seconds = step_and_token_seconds(measured.rounds)
    prompts = draw.problems * measured.prompt_seconds
    return prompts + steps * step_seconds + rows * mean * token_seconds


def side_by_side(recipe: Recipe) -> int:
    """Return how many completions an engine has under way at a time, as far as a recipe says."""
    config = recipe.generate
    said = {"transformers": config.batch_size, "server": config.server.concurrency}
    found = said.get(config.engine)
    return found if isinstance(found, int) else 256


def uncertainty(completions: int) -> float:
    """Return the factor within which a time is right, usually, by how many completions were seen.

    Times differ by a fifth from run to run; the rest is chance: lengths of completions differ by
    about half their mean, so two standard errors of the mean are 1 / sqrt(completions) of it.

    >>> [round(uncertainty(n), 2) for n in (2, 16, 256)]
    [1.91, 1.45, 1.26]
    """
    return 1.2 + 1 / math.sqrt(completions)
