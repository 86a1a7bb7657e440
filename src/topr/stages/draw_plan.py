"""A plan of what to sample from a model, before anything is. `topr.stages.draw` carries it out.

Three problems with n=2 and shard_problems=2, then a round for two of them, which need more:

    part-00000  (p0, 0) (p0, 1) (p1, 0) (p1, 1)
    part-00001  (p2, 0) (p2, 1)
    part-00002  (p0, 2) (p0, 3) (p2, 2) (p2, 3)    first_sample=2, first_shard=2
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from topr.config import GenerateConfig, Section
from topr.grading import needs_columns
from topr.interop import as_column
from topr.records import Message, Problem, SamplingParams
from topr.store import ROLLOUT_SCHEMA
from topr.tasks.base import Task

Key = tuple[str, int]
"""What names a completion: problem and sample number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of a plan."""

    number: int
    problems: Sequence[Problem]
    asked: list[Key]
    """Its rows."""
    owners: list[int]
    """For each row, the place of its problem in the plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawPlan:
    """Which completions are sampled, how, and into which shards.

    >>> problems = [Problem(id="p0", prompt="2+2=", answer="4")]
    >>> plan = DrawPlan(problems=problems, sampling=SamplingParams(seed=1), n=4, shard_problems=64)
    >>> plan.completions, plan.end
    (4, 1)
    """

    problems: Sequence[Problem]
    """Each with an id that no other one has."""
    sampling: SamplingParams
    n: int
    """Completions of each problem, numbered from `first_sample`."""
    shard_problems: int
    """Problems of a shard, whose rows are in the order of (problem, sample)."""
    iteration: int = 0
    """Written into each row."""
    extra: Mapping[str, pa.Array] = field(default_factory=dict)
    """More columns to write, with one value for each problem: see `extra_columns`."""
    settings: tuple[Section, ...] = ()
    """Sections of the recipe that completions depend on too: of the engine and the model."""
    first_sample: int = 0
    first_shard: int = 0
    is_last: bool = True
    """No round follows: shards beyond these belong to something else."""

    @property
    def completions(self) -> int:
        """How many are sampled."""
        return len(self.problems) * self.n

    @property
    def end(self) -> int:
        """Number after that of the last shard."""
        return self.first_shard - (-len(self.problems) // self.shard_problems)

    def fixed(self) -> dict[str, Any]:
        """Return what the completions depend on, for a hash of it."""
        return {
            "problems": problems_digest(self.problems),
            "sampling": asdict(self.sampling),
            "n": self.n,
            "shard_problems": self.shard_problems,
            "iteration": self.iteration,
            "extra": {name: _digest(values.to_pylist()) for name, values in self.extra.items()},
            "settings": [section.fixed() for section in self.settings],
        }

    def shards(self) -> Iterator[Shard]:
        """Yield the files that the plan makes."""
        samples = range(self.first_sample, self.first_sample + self.n)
        for number in range(self.first_shard, self.end):
            first = (number - self.first_shard) * self.shard_problems
            problems = self.problems[first : first + self.shard_problems]
            yield Shard(
                number=number,
                problems=problems,
                asked=[(problem.id, sample) for problem in problems for sample in samples],
                owners=[first + index for index in range(len(problems)) for _ in samples],
            )

    def round(
        self, indices: Sequence[int], *, n: int, first_sample: int, first_shard: int
    ) -> "DrawPlan":
        """Return the plan of one round of several, for some of the problems."""
        return replace(
            self,
            problems=[self.problems[index] for index in indices],
            extra={name: values.take(pa.array(indices)) for name, values in self.extra.items()},
            n=n,
            first_sample=first_sample,
            first_shard=first_shard,
            is_last=False,
        )


def problems_digest(problems: Sequence[Problem]) -> str:
    """Return a hash of what is asked, and of the gold answers."""
    return _digest(
        (p.id, p.prompt, p.answer, p.question, p.escape_special_tokens) for p in problems
    )


def _digest(values: Iterable[Any]) -> str:
    """Return a hash of values, one by one: all together they may be large."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, default=_plain).encode() + b"\n")
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a chat message as its role and content, and a date or the like as text."""
    return [value.role, value.content] if isinstance(value, Message) else str(value)


def sampling_params(config: GenerateConfig, stop: tuple[str, ...], seed: int) -> SamplingParams:
    """Return how the section `generate` samples; `stop`: of the task, where the section has none"""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        stop=config.stop if config.stop is not None else stop,
        seed=seed,
    )


def plan_draw(
    problems: Sequence[Problem], task: Task, config: GenerateConfig, seed: int, **changes: Any
) -> DrawPlan:
    """Return a draw as the section `generate` has it, with changes."""
    return replace(
        DrawPlan(
            problems=problems,
            sampling=sampling_params(config, task.stop, seed),
            n=config.n,
            shard_problems=config.shard_problems,
            extra=extra_columns(problems, task.grader),
        ),
        **changes,
    )


def extra_columns(problems: Sequence[Problem], grader: str) -> dict[str, pa.Array]:
    """Return the problems' own columns where the grader is a user's function, which may want them.

    Of all problems of a stage together, so that every shard has the same columns of the same types.
    Values without a common type become text, as in `topr.interop.read_rows`. Those named like a
    column of the schema are left out: the gold answer is in `gold`.
    """
    if not needs_columns(grader):
        return {}
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    return {
        name: as_column([problem.columns.get(name) for problem in problems])
        for name in names
        if name not in ROLLOUT_SCHEMA.names
    }
