"""Whether a training still learns: rules on what its steps and its probes say, and alarms.

A training ruins its model when it unlearns right answers together with wrong ones. Each completion
carries the sign: it is *lost* once the model is more than 100 times less likely to write it than
the model that wrote it was (log rho below log 0.01). Where the numbers below come from is in
`docs/training.md`, "When a run goes wrong".

Not here: how a probe is drawn and graded (`topr.stages.probe`), and how weights are kept
(`topr.training.last_good`).
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from topr.training.arguments import TOPRConfig
from topr.training.last_good import LastGood
from topr.training.step import Step

logger = logging.getLogger(__name__)

WATCH_FILE = "watch.json"
"""In a checkpoint: what a resumed training must know."""
LOST = math.log(0.01)
"""log rho below which a completion is lost: a negative's taper is then under 0.01."""
MANY_POSITIVES = 0.6
"""Share of lost positives from which a model is being ruined, where as many negatives are lost. Up
to 0.47 was seen of models that answered better than their base, and models at 0.6 all did worse."""
MANY_NEGATIVES = 0.75
"""Share of lost negatives that is an alarm in the first steps; later they may have been unlearned
one by one. Up to 0.47 was seen of models that answered better than their base."""
FIRST_STEPS = 20
ENOUGH = 8
"""Completions of a sign from which a share is read; latest steps are pooled until there are."""
STILL_WELL = -0.5
"""Mean log rho of the latest positives, against that at the start, down to which weights are kept
as good ones."""
FOREIGN = 0.1
"""Share of lost completions before the first step above which log rho says nothing of training."""
REMEMBERED = 64
"""Steps of which readings are remembered."""
CHANCE = 1e-3
"""A drop of the probe is an alarm where chance alone makes one as large less often than this."""
_OF_ANOTHER = (
    "before the first step the model is over 100 times less likely to write many of the rows than "
    "what wrote them: another model did, and log rho cannot say whether training ruins this one. "
    "Look at the probe, or evaluate"
)


class AlarmKind(StrEnum):
    """What is wrong."""

    POSITIVES_LOST = "positives_lost"
    """Right answers are unlearned along with wrong ones."""
    NEGATIVES_LOST = "negatives_lost"
    """Nearly all negatives were lost in the first steps: a taper is shut on them."""
    ENDED_DROPS = "ended_drops"
    """Fewer completions of the probe end by themselves than before training."""
    ACCURACY_DROPS = "accuracy_drops"
    """Fewer completions of the probe are correct than before training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One thing that is wrong, said once a training."""

    kind: AlarmKind
    step: int
    """Optimizer steps that the weights had taken."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What is known of the completions of one sign, of one step or of several."""

    count: int = 0
    lost: int = 0
    total: float = 0.0
    """Sum of log rho."""

    def __add__(self, other: "Signs") -> "Signs":
        return Signs(
            count=self.count + other.count,
            lost=self.lost + other.lost,
            total=self.total + other.total,
        )

    @property
    def share(self) -> float:
        """Share of lost ones."""
        return self.lost / self.count if self.count else 0.0

    @property
    def mean(self) -> float:
        """Mean log rho."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the forward pass of one optimizer step says of the weights that it begins with."""

    positive: Signs = Signs()
    negative: Signs = Signs()

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(
            positive=self.positive + other.positive, negative=self.negative + other.negative
        )

    @property
    def foreign(self) -> bool:
        """Whether another model wrote the rows than the one whose steps these are: an unchanged
        model has lost none of its own."""
        both = self.positive + self.negative
        return both.share > FOREIGN


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """What a probe found: completions of the model on its way, on validation questions."""

    step: int
    completions: int
    ended: int
    """Those that ended by themselves, before the token limit."""
    correct: int
    seconds: float


def latest(readings: Sequence[Reading]) -> Reading:
    """Return the latest readings together, of each sign as many as have `ENOUGH` completions.

    A step of 32 completions may have one positive, of which no share can be read.
    """
    return Reading(
        positive=_latest([reading.positive for reading in readings]),
        negative=_latest([reading.negative for reading in readings]),
    )


def _latest(signs: Sequence[Signs]) -> Signs:
    found = Signs()
    for each in reversed(signs):
        if found.count >= ENOUGH:
            break
        found += each
    return found


def alarm_of_reading(step: int, found: Reading) -> tuple[AlarmKind, str] | None:
    """Return what is wrong with weights of `step` optimizer steps, by the latest readings."""
    positive, negative = found.positive, found.negative
    means = f"mean log rho {positive.mean:+.1f} of positives, {negative.mean:+.1f} of negatives"
    none_or_lost = negative.count == 0 or negative.share >= MANY_POSITIVES
    if positive.count >= ENOUGH and positive.share >= MANY_POSITIVES and none_or_lost:
        return AlarmKind.POSITIVES_LOST, (
            f"right answers are unlearned along with wrong ones: {positive.share:.0%} of the "
            f"latest {positive.count} positives and {negative.share:.0%} of {negative.count} "
            f"negatives are over 100 times less likely than when they were written ({means}; "
            "positives should stay near 0 or rise)"
        )
    if step <= FIRST_STEPS and negative.count >= ENOUGH and negative.share >= MANY_NEGATIVES:
        return AlarmKind.NEGATIVES_LOST, (
            f"{negative.share:.0%} of the latest {negative.count} negatives are over 100 times "
            f"less likely than when they were written, after {step} steps ({means}; negatives "
            f"should fall by a few nats, over many steps). A taper is shut on them, and what they "
            "took with them is gone"
        )
    return None


def alarm_of_probe(first: Probed, now: Probed) -> tuple[AlarmKind, str] | None:
    """Return what is wrong by a probe, measured by the one from before the first step."""
    for kind, what in ((AlarmKind.ENDED_DROPS, "ended"), (AlarmKind.ACCURACY_DROPS, "correct")):
        before, after = getattr(first, what), getattr(now, what)
        if chance_of_drop(before, first.completions, after, now.completions) < CHANCE:
            verb = "end by themselves" if what == "ended" else "are correct"
            return kind, (
                f"{after} of {now.completions} completions of the probe {verb}; it was {before} of "
                f"{first.completions} at step {first.step}"
            )
    return None


def chance_of_drop(before: int, of_before: int, after: int, of_after: int) -> float:
    """Return how often chance puts at most `after` of all hits into the second sample.

    Fisher's exact test, one-sided: the hypergeometric tail.

    >>> round(chance_of_drop(4, 4, 0, 4), 4)  # 1 of the 70 ways to choose 4 of 8
    0.0143
    """
    hits = before + after
    ways = sum(
        math.comb(of_after, k) * math.comb(of_before, hits - k)
        for k in range(max(0, hits - of_before), after + 1)
    )
    return ways / math.comb(of_before + of_after, hits)


def advice(args: TOPRConfig, effective_positive_share: float | None) -> str:
    """Return what to change when training ruins the model."""
    warm = "a longer warm-up" if args.warmup_steps else "a warm-up"
    share = ""
    if effective_positive_share is not None:
        share = f" (the effective share p~ is {effective_positive_share:.1%})"
    return (
        f"Lower learning_rate (now {args.learning_rate:g}), add {warm} (warmup_steps, "
        "lr_scheduler_type=constant_with_warmup), or raise the share of positives"
        f"{share} by curation or effective_positive_share"
    )


class Watch(TrainerCallback):
    """Reads every step and every probe; warns once of each thing that is wrong, or stops.

    A step's readings are those of the weights that it begins with, so they are judged, and good
    weights are kept, before the optimizer changes them.
    """

    def __init__(self, mode: str, *, keep: LastGood | None, every: int | None, advice: str) -> None:
        """Watch a training.

        Args:
            mode: `warn`, `stop` or `off`.
            keep: keeps good weights; of `stop`.
            every: steps between good weights, and between probes; none given: a tenth of the
                training, and 10 at least.
            advice: what to change, ending the messages.

        """
        self.mode = mode
        self.alarms: list[Alarm] = []
        self.first_probe: Probed | None = None
        self._logged = 0
        self._keep = keep
        self._given_every = every
        self._advice = advice
        self._start: Reading | None = None
        self._readings: list[Reading] = []
        self._now = Reading()
        self.every = every or 10

    def add_step(self, step: Step) -> None:
        """Take in one loader batch of the optimizer step that is being computed."""
        positive = step.advantage_B >= 0
        self._now += Reading(
            positive=_signs(step.log_ratio_B[positive]),
            negative=_signs(step.log_ratio_B[~positive]),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Fix how often weights are kept and probes are taken."""
        self.every = self._given_every or max(10, -(-state.max_steps // 10))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Judge the weights that this step began with, and keep good ones."""
        reading, self._now = self._now, Reading()
        if self.mode == "off":
            return
        step = state.global_step
        if self._start is None:
            self._start = reading
            if reading.foreign:
                logger.warning("%s", _OF_ANOTHER)
        self._readings = [*self._readings, reading][-REMEMBERED:]
        found = latest(self._readings)
        if not self._start.foreign:
            self._raise(alarm_of_reading(step, found), step, control)
        keep = self._keep
        if keep is None or self.alarms or not self._is_well(found):
            return
        if step % self.every == 0 or keep.step is None:
            keep.keep(given["model"], step)

    def _is_well(self, found: Reading) -> bool:
        assert self._start is not None  # noqa: S101 - the first reading is
        lowest = min(0.0, self._start.positive.mean) + STILL_WELL
        return self._start.foreign or found.positive.mean >= lowest

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave no checkpoint of weights that were given up: a resumed training would have them."""
        if self.stopped:
            control.should_save = False

    def probed(self, found: Probed, control: Any) -> None:
        """Judge a probe."""
        if self.first_probe is None:
            self.first_probe = found
        else:
            self._raise(alarm_of_probe(self.first_probe, found), found.step, control)

    @property
    def stopped(self) -> bool:
        """Whether an alarm ended the training."""
        return self.mode == "stop" and bool(self.alarms)

    def restore(self, model: Any) -> None:
        """Put the last good weights into a model whose training was stopped."""
        if self.stopped and self._keep is not None:
            self._keep.restore(model)

    def new_alarms(self) -> list[str]:
        """Return the kinds of alarms since the last call, for a line of the log."""
        new, self._logged = self.alarms[self._logged :], len(self.alarms)
        return [alarm.kind for alarm in new]

    def result(self) -> dict[str, Any]:
        """Return what a manifest says: `mode`, `alarms`, and with a stop `kept_step`."""
        kept = {"kept_step": self._keep.step} if self._keep and self.stopped else {}
        return {"mode": self.mode, "alarms": [asdict(alarm) for alarm in self.alarms], **kept}

    def state(self) -> dict[str, Any]:
        """Return what a resumed training must know, as JSON holds it."""
        return {
            "start": asdict(self._start) if self._start else None,
            "readings": [asdict(reading) for reading in self._readings],
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "first_probe": asdict(self.first_probe) if self.first_probe else None,
        }

    def load(self, path: Path) -> None:
        """Go back to what `state` returned, where a file has it: older checkpoints have none."""
        if not path.is_file():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        self._start = _reading(state["start"]) if state["start"] else None
        self._readings = [_reading(values) for values in state["readings"]]
        self.alarms = [Alarm(**a | {"kind": AlarmKind(a["kind"])}) for a in state["alarms"]]
        first = state["first_probe"]
        self.first_probe = Probed(**first) if first else None
        self._logged = len(self.alarms)

    def _raise(self, found: tuple[AlarmKind, str] | None, step: int, control: Any) -> None:
        if found is None or self.stopped or found[0] in {alarm.kind for alarm in self.alarms}:
            return
        kind, what = found
        message = f"step {step}: {what}. {self._advice}"
        self.alarms.append(Alarm(kind=kind, step=step, message=message))
        if self.mode == "stop":
            control.should_training_stop, control.should_save = True, False
            kept = self._keep.step if self._keep else None
            message += f". Training stops here, and the weights of step {kept} are the model"
        logger.warning("%s", message)


def _reading(values: Mapping[str, Any]) -> Reading:
    return Reading(positive=Signs(**values["positive"]), negative=Signs(**values["negative"]))


def _signs(log_rho_B: torch.Tensor) -> Signs:
    return Signs(
        count=len(log_rho_B), lost=int((log_rho_B < LOST).sum()), total=float(log_rho_B.sum())
    )
