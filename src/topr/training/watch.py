"""The watch over a training: it reads every step and every probe, warns, or stops and keeps what
was good.

Not here: what is wrong when (`topr.training.alarms`), how a probe is sampled and graded
(`topr.stages.probe`), and the file of good weights (`topr.training.last_good`).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from topr.training.alarms import (
    Alarm,
    AlarmKind,
    Probed,
    Reading,
    Signs,
    alarm_of_probe,
    alarm_of_reading,
    latest,
    signs_of,
)
from topr.training.arguments import TOPRConfig
from topr.training.last_good import LastGood
from topr.training.step import Step

logger = logging.getLogger(__name__)

WATCH_FILE = "watch.json"
"""In a checkpoint: what a resumed training must know."""
STILL_WELL = -0.5
"""Mean log rho of the latest positives, against that at the start, down to which weights are kept
as good ones."""
REMEMBERED = 64
"""Steps of which readings are remembered."""
_FOREIGN = (
    "before the first step the model is over 100 times less likely to write many of the rows than "
    "their log mu says: another model wrote them, or they were not sampled. So log rho cannot tell "
    "whether training ruins this model. Look at the probe, or evaluate"
)


def steps_between(max_steps: int, given: int | None) -> int:
    """Return the steps between probes, and between good weights: `watch_steps`, else a tenth of the
    training, at least 10."""
    return given or max(10, -(-max_steps // 10))


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
            every: steps between good weights, and between probes; defaults to a tenth of the
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
        self._resumed = False

    def add_step(self, step: Step) -> None:
        """Take in one loader batch of the optimizer step that is being computed."""
        positive = step.advantage_B >= 0
        self._now += Reading(
            positive=signs_of(step.log_ratio_B[positive]),
            negative=signs_of(step.log_ratio_B[~positive]),
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Fix how often weights are kept and probes are taken."""
        self.every = steps_between(state.max_steps, self._given_every)
        self._resumed = state.global_step > 0
        if self.stopped:  # resumed from a checkpoint of weights that were given up
            control.should_training_stop = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Judge the weights that this step began with, and keep good ones."""
        reading, self._now = self._now, Reading()
        if self.mode == "off":
            return
        step = state.global_step
        if self._start is None:
            # A checkpoint of an earlier version says nothing of the start: 0 is taken for it.
            self._start = Reading() if self._resumed else reading
            if self._start.foreign:
                logger.warning("%s", _FOREIGN)
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

    on_epoch_end = on_step_end

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
