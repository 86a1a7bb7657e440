"""From what a few completions took to what a stage takes: seconds and bytes. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topr.config import Recipe
from topr.runs.plan.counts import Draw, Kind, Span, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Completions that were drawn side by side, all begun together."""

    tokens: int
    longest: int
    """Tokens of the longest completion: the steps of the round."""
    seconds: float
    """Without those of the prompts."""


FITTED = 3
"""Rounds that tell the speed of drawing: small ones are slower than the arithmetic says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """How fast completions are drawn.

    A step of decoding takes `step_seconds`, and `token_seconds` more for each completion that takes
    part in it.
    """

    trial_seconds: float
    """Of what happens once, before the first completion of a model."""
    prompt_tokens: float
    """Of a prompt, on average."""
    prompt_seconds: float
    """Of a token of a prompt."""
    side_by_side: int
    """Completions under way at a time in the run, at most."""
    lengths: tuple[int, ...]
    """Tokens of the completions that were drawn."""
    rounds: tuple[Round, ...]
    """Of growing size."""
    spans_shards: bool = False
    """Shards are drawn together, without waiting for the last completion of each."""

    @property
    def mean(self) -> float:
        """Tokens of a completion."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def error(self) -> float:
        """Two standard errors of the mean length, as a share of it."""
        count, mean = len(self.lengths), self.mean
        if count < 2:
            return 1.0
        variance = sum((length - mean) ** 2 for length in self.lengths) / (count - 1)
        return 2 * math.sqrt(variance / count) / mean

    def step_and_token(self) -> tuple[float, float]:
        """Return `step_seconds` and `token_seconds`: those, none below 0, that come nearest to the
        largest rounds, by least squares of their relative errors.

        >>> few = Round(tokens=20, longest=10, seconds=10 * 0.1 + 20 * 0.01)
        >>> many = Round(tokens=80, longest=10, seconds=10 * 0.1 + 80 * 0.01)
        >>> drawing = Drawing(trial_seconds=0, prompt_tokens=1, prompt_seconds=0, side_by_side=8,
        ...                   lengths=(10,) * 8, rounds=(few, many))
        >>> [round(each, 6) for each in drawing.step_and_token()]
        [0.1, 0.01]
        """
        rounds = [(r.longest / r.seconds, r.tokens / r.seconds) for r in self.rounds[-FITTED:]]
        steps = [step for step, _ in rounds]
        tokens = [token for _, token in rounds]
        determinant = _dot(steps, steps) * _dot(tokens, tokens) - _dot(steps, tokens) ** 2
        if determinant > 1e-9 * _dot(steps, steps) * _dot(tokens, tokens):
            step = _dot(tokens, tokens) * sum(steps) - _dot(steps, tokens) * sum(tokens)
            token = _dot(steps, steps) * sum(tokens) - _dot(steps, tokens) * sum(steps)
            if min(step, token) >= 0:
                return step / determinant, token / determinant
            if token < 0:  # more completions side by side cost nothing
                return sum(steps) / _dot(steps, steps), 0.0
        return 0.0, sum(tokens) / _dot(tokens, tokens)

    def seconds(self, drawn: Draw, shard_problems: int) -> float:
        """Return those of drawing: prompts, steps, and the tokens in them.

        A shard waits for its last completion, with fewer and fewer side by side.
        """
        step, token = self.step_and_token()
        rows = drawn.problems * drawn.n
        shards = 1 if self.spans_shards else math.ceil(drawn.problems / shard_problems)
        full = max(rows / shards / self.side_by_side, 1.0)
        steps = shards * (self.mean * full + max(self.lengths) - self.mean)
        prompts = drawn.problems * self.prompt_tokens * self.prompt_seconds
        return prompts + steps * step + rows * self.mean * token


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grading:
    """How fast completions are graded."""

    start_seconds: float
    """Of the graders, for each shard."""
    completion_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How fast a model is trained, and how large it is."""

    start_seconds: float
    """Until the first step: loading, and trying how the model is run."""
    score_seconds: float | None
    """Of recomputing log mu of a completion; None: it is not recomputed."""
    completion_seconds: float
    """Of a completion, forward and backward."""
    update_seconds: float
    """Of the optimizer, in each step."""
    parameters: int
    trained_parameters: int
    optimizer_bytes: int
    """Of the optimizer's state."""
    processor_share: float | None = None
    """Of the cores that it may use, how much it had; None: a GPU does the work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What things take on disk, in bytes."""

    prompt: float
    """A problem's prompt, in a shard with its completions."""
    row: float
    """A completion."""
    file: float
    """A shard without rows."""
    tokenizer: float
    """Files beside the weights of a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured."""

    open_seconds: float
    """Until an engine has loaded its model."""
    drawing: Drawing
    grading: Grading
    training: Training
    storage: Storage
    drawing_memory: int
    """Peak in bytes, of the GPU where there is one, else of the process."""
    training_memory: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a stage takes."""

    seconds: float
    stays: float
    """Bytes that it leaves on disk."""
    passing: float = 0.0
    """Bytes more that it needs until it ends."""


LOG_BYTES = 1000
"""Of a step in a training's log, and again in the run's metrics."""
EXAMPLE_BYTES = 22
"""Of a completion in a training's `examples.parquet`."""
RESULT_BYTES = 150
"""Of a problem in `evaluation.json`."""
REPORT_BYTES = 5_000_000
"""Of `report.html`, which has the script of its figures in it."""
SCORE_BYTES = 4
"""Of a token's log-probability, recomputed."""
BYTES = {"float32": 4, "bfloat16": 2}
"""Of a trained weight."""


def cost(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    """Return what a stage takes. Counts must be known: see `topr.runs.plan.curating.Tried`."""
    return _COSTS[stage.kind](stage, recipe, measured)


def _generate(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    shard = recipe.generate.shard_problems
    return Cost(
        seconds=sum(measured.drawing.seconds(each, shard) for each in stage.draws),
        stays=_stored(stage, recipe, measured),
    )


def _grade(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    shards = sum(_shards(each, recipe) for each in stage.draws)
    grading = measured.grading
    seconds = shards * grading.start_seconds + stage.completions.high * grading.completion_seconds
    return Cost(seconds=seconds, stays=_stored(stage, recipe, measured))


def _evaluate(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    drawn = _generate(stage, recipe, measured)
    grading = measured.grading
    graded = len(stage.draws) * grading.start_seconds
    graded += stage.completions.high * grading.completion_seconds
    loading = stage.loads * (measured.open_seconds + measured.drawing.trial_seconds)
    return Cost(
        seconds=drawn.seconds + graded + loading,
        stays=drawn.stays + stage.draws[0].problems * RESULT_BYTES,
        passing=drawn.stays,  # until it is graded, it is there twice
    )


def _probe(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    drawn, graded = _generate(stage, recipe, measured), _grade(stage, recipe, measured)
    return Cost(seconds=drawn.seconds + graded.seconds, stays=len(stage.draws) * LOG_BYTES)


def _recompute(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    rows = stage.completions.high
    tokens = rows * measured.drawing.mean
    seconds = rows * (measured.training.score_seconds or measured.training.completion_seconds / 3)
    return Cost(seconds=seconds, stays=tokens * SCORE_BYTES)


def _train(stage: Stage, recipe: Recipe, measured: Measured) -> Cost:
    training = measured.training
    steps = stage.steps.high
    seconds = stage.loads * training.start_seconds + steps * training.update_seconds
    seconds += stage.passes.high * training.completion_seconds
    weights = model_bytes(recipe, training)
    trained = training.trained_parameters * BYTES[recipe.train.dtype]
    checkpoint = trained + training.optimizer_bytes
    # The last good weights, and new ones while they are written in place of those.
    good = 2 * trained if recipe.train.watch == "stop" else 0
    rows = stage.completions.high
    dataset = stage.problems * measured.storage.prompt + rows * measured.storage.row
    logs = 2 * steps * LOG_BYTES + rows * EXAMPLE_BYTES
    return Cost(
        seconds=seconds,
        stays=stage.models * (weights + measured.storage.tokenizer) + dataset + logs,
        passing=stage.checkpoints.high * checkpoint + good,
    )


def model_bytes(recipe: Recipe, training: Training) -> float:
    """Return the size of a model as it is written, and of its adapter where there is one."""
    each, lora = BYTES[recipe.train.dtype], recipe.train.lora
    if lora is None:
        return training.parameters * each
    adapter = training.trained_parameters * each
    whole = (training.parameters - training.trained_parameters) * each
    return adapter + (whole if lora.merge else 0)


_COSTS = {
    Kind.GENERATE: _generate,
    Kind.GRADE: _grade,
    Kind.RECOMPUTE: _recompute,
    Kind.TRAIN: _train,
    Kind.PROBE: _probe,
    Kind.EVALUATE: _evaluate,
}


def _stored(stage: Stage, recipe: Recipe, measured: Measured) -> float:
    storage = measured.storage
    return sum(
        each.problems * (storage.prompt + each.n * storage.row)
        + _shards(each, recipe) * storage.file
        for each in stage.draws
    )


def _shards(drawn: Draw, recipe: Recipe) -> int:
    return math.ceil(drawn.problems / recipe.generate.shard_problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """What a run, or the rest of it, takes."""

    seconds: Span
    disk: float
    """Bytes at the end."""
    peak_disk: float
    """Bytes at most on the way."""


MACHINE = 0.15
"""Seconds of the same work differ by about this share, from run to run and as models change."""


def total(costs: Sequence[Cost], error: float, report: float = REPORT_BYTES) -> Total:
    """Add up stages that follow each other.

    Args:
        costs: of the stages, in order.
        error: of the mean length of a completion, as a share of it.
        report: bytes that are written at the end.

    >>> found = total([Cost(seconds=85, stays=10, passing=30), Cost(seconds=15, stays=20)],
    ...               error=0.05, report=5)
    >>> (round(found.seconds.low), round(found.seconds.high), found.disk, found.peak_disk)
    (80, 120, 35, 40)
    """
    seconds, share = sum(each.seconds for each in costs), min(MACHINE + error, 0.6)
    stays, peak = 0.0, 0.0
    for each in costs:
        stays += each.stays
        peak = max(peak, stays + each.passing)
    return Total(
        seconds=Span(low=seconds * (1 - share), high=seconds * (1 + share)),
        disk=stays + report,
        peak_disk=max(peak, stays + report),
    )
