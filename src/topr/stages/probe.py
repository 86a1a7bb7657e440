"""The probe: now and then the model that is being trained answers some validation questions.

It takes nothing from training: no random numbers, no mode, and its memory is given back. What its
numbers mean for the training is for `topr.training.alarms` to say.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import torch
from transformers import TrainerCallback

from topr.config import GradeConfig, ModelConfig, Recipe, TrainConfig
from topr.engines.transformers import TransformersEngine
from topr.errors import ConfigError, EngineError, GradingError, ModelError
from topr.grading import grade_table
from topr.models.wrappers import without_autocast
from topr.progress import Progress
from topr.records import FinishReason, Outcome, Problem, SamplingParams, Split
from topr.stages.callbacks import log_lines
from topr.stages.common import task_for
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan, extra_columns, problems_digest, sampling_params
from topr.store import read_table, write_text_atomic
from topr.tasks import Task
from topr.training import TOPRTrainer
from topr.training.alarms import Probed
from topr.training.memory import ran_out

logger = logging.getLogger(__name__)

PROBES_FILE = "probes.jsonl"
"""A line for each probe, next to the log of steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSource:
    """What a probe asks, and how answers are sampled and graded."""

    problems: Sequence[Problem]
    """Of the validation split; the first `train.probe_problems` are asked."""
    grader: str
    sampling: SamplingParams
    """With one seed, so that a model that did not change answers the same."""
    grade: GradeConfig
    batch_size: int | Literal["auto"]
    """Completions side by side."""

    def fixed(self) -> list[Any]:
        """Return what a training that is probed depends on, for a hash of it."""
        grade, sampling = self.grade.fixed(), asdict(self.sampling)
        return [problems_digest(self.problems), self.grader, sampling, grade]


def probe_source(recipe: Recipe, task: Task) -> ProbeSource | None:
    """Return what a recipe's trainings can be probed with; None where it has no validation split"""
    try:
        problems = task.problems(Split.VALIDATION)
    except ConfigError:
        return None
    if not problems:
        return None
    return ProbeSource(
        problems=problems,
        grader=task.grader,
        sampling=sampling_params(recipe.generate, task.stop, recipe.seed),
        grade=recipe.grade,
        batch_size=recipe.generate.batch_size,
    )


def asked_source(
    recipe: Recipe, train: TrainConfig, model: ModelConfig, progress: Progress
) -> ProbeSource:
    """Return what a training of `model` is probed with where a user asks for a recipe's questions.

    Raises:
        ConfigError: there are none, or the training takes no probes.

    """
    if train.watch == "off" or not train.probe_problems:
        raise ConfigError(
            f"a probe is asked for with train.watch={train.watch} and train.probe_problems="
            f"{train.probe_problems}, which take none: leave one of the two out"
        )
    source = probe_source(recipe, task_for(model, recipe.task, Split.VALIDATION, progress))
    if source is None:
        raise ConfigError(
            f"recipe {recipe.name!r} has no validation problems to probe with: set "
            "task.validation_problems in it, or name another recipe"
        )
    return source


class Probe(TrainerCallback):
    """Probes before the first step, every so many steps, and after the last."""

    def __init__(
        self, trainer: TOPRTrainer, source: ProbeSource, problems: int, progress: Progress
    ) -> None:
        """Probe the model of a trainer.

        Args:
            trainer: its watch says how often, and judges.
            source: what is asked.
            problems: how many of its problems.
            progress: receives a line for each probe.

        """
        self._trainer = trainer
        self._source = source
        self._problems = source.problems[:problems]
        self._progress = progress
        self._engine: _Engine | None = None
        self._on = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe the model as it was given; a resumed training has done that."""
        if state.global_step == 0:
            self._probe(0, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Probe where it is time to; not what the watch has just given up."""
        step = state.global_step
        due = step % self._trainer.watch.every == 0 or step >= state.max_steps
        if due and not self._trainer.watch.stopped:
            self._probe(step, control)

    def _probe(self, step: int, control: Any) -> None:
        if not self._on:
            return
        try:
            found = self._trainer.distributed.run_on_rank0(lambda: self._ask(step))
        except (EngineError, GradingError, ModelError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not ran_out(error):
                raise
            logger.warning("the probe is off, training continues without it: %s", error)
            self._on = False
            return
        self._trainer.leave_out(found.seconds)
        n = found.completions
        self._progress.say(
            f"probe at step {step}: {found.correct} of {n} correct, {found.ended} of {n} ended "
            f"({found.seconds:.1f} s)"
        )
        step_is_logged = control.should_log
        self._trainer.log(
            {
                "probe/accuracy": found.correct / n,
                "probe/ended": found.ended / n,
                "probe/seconds": round(found.seconds, 2),
            }
        )
        control.should_log = step_is_logged  # The step's own line comes after the callbacks.
        if self._trainer.distributed.is_rank0:
            lines = log_lines(self._trainer.state.log_history, "probe/ended")
            write_text_atomic(self._trainer.directory / PROBES_FILE, lines)
        self._trainer.watch.probed(found, control)

    def _ask(self, step: int) -> Probed:
        """Draw and grade; called in the first process alone."""
        source, engine = self._source, self._opened()
        begun = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            _own_random_numbers(),
            self._trainer.accelerator.autocast(),
        ):
            plan = DrawPlan(
                problems=self._problems,
                sampling=source.sampling,
                n=1,
                shard_problems=len(self._problems),
                extra=extra_columns(self._problems, source.grader),
            )
            draw(plan, engine, Path(folder))
            rows = read_table(Path(folder))
        graded = grade_table(rows, source.grader, source.grade, tokenizer=engine.tokenizer)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Probed(
            step=step,
            completions=graded.num_rows,
            ended=pc.sum(pc.equal(graded["finish_reason"], FinishReason.STOP)).as_py(),
            correct=pc.sum(pc.equal(graded["grade"], Outcome.CORRECT)).as_py(),
            seconds=time.perf_counter() - begun,
        )

    def _opened(self) -> "_Engine":
        """Return the engine: one for the whole training, since it tries the model when it begins"""
        if self._engine is None:
            self._engine = _Engine(
                self._trainer.accelerator.unwrap_model(self._trainer.model),
                self._trainer.tokenizer,
                model_name="the model in training",
                batch_size=_together(self._source.batch_size, len(self._problems)),
            )
        return self._engine


class _Engine(TransformersEngine):
    """Tries the model in the type of its weights, and samples in the numerics of training.

    Under autocast single tokens differ by 0.1 nats from one way of decoding to another, which of
    float32 weights would be a fault.
    """

    def _try(self, reach: int, **given: Any) -> None:
        with without_autocast(self.model):
            super()._try(reach, **given)


def _own_random_numbers() -> AbstractContextManager[None]:
    """Give torch's random numbers back as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    return torch.random.fork_rng(devices=devices)


def _together(batch_size: int | Literal["auto"], problems: int) -> int:
    return problems if batch_size == "auto" else min(batch_size, problems)
