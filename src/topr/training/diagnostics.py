"""What a training step says of itself: sums over sequences, and warnings where a setting does
nothing. Every key is explained on the metrics page of the documentation.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from topr.errors import DivergedError
from topr.objectives import NEGLIGIBLE, BaselineRole, Objective, Taper, taper_of
from topr.store import write_json_atomic
from topr.training.batches import Row
from topr.training.step import Step

logger = logging.getLogger(__name__)

BINS = 20
SAME_RATIO = 1e-3
"""A log-ratio below this is rounding: padding alone moves a completion's sum by 1e-5 to 1e-4."""
ACTIVE_BELOW = 0.99
"""A taper counts as active on a negative whose weight is below this."""


def diverged(
    step: int, what: str, rows: Sequence[Row], path: Path, *, write: bool
) -> DivergedError:
    """Return the error of a step whose loss or gradient is not a number.

    Args:
        step: of the optimizer.
        what: what was found.
        rows: the completions of the batch.
        path: where they are listed.
        write: list them, in one process of several.

    """
    if write:
        found = [{"row": row["row"], "name": row["name"], "reward": row["reward"]} for row in rows]
        write_json_atomic(path, {"step": step, "what": what, "rows": found})
    return DivergedError(
        f"step {step}: {what}. The {len(rows)} completions of the batch are listed in {path}. Try "
        "a lower learning rate, float32, or an objective with an upper limit"
    )


class StepStatistics:
    """Sums over the sequences of the steps since the last line of the log."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.since = time.perf_counter()
        """When they began; later by what time is not to count."""
        self.histograms = torch.zeros(2, BINS + 1, dtype=torch.float64)  # positive, negative

    def add_step(self, step: Step) -> None:
        """Add the sequences of one loader batch."""
        seen = (
            step.log_ratio_B, step.weight_B, step.advantage_B, step.gradient_weight_B,
            step.keep_scale_B,
        )  # fmt: skip
        log_ratio, weight, advantage, gradient_weight, keep_scale = (x.double().cpu() for x in seen)
        taper = taper_of(weight, advantage)
        skipped = keep_scale == 0
        squares = gradient_weight.square().sum()
        sums: dict[str, Any] = {
            "steps": 1,
            "tokens": sum(step.lengths),
            "effective_sample_size": gradient_weight.sum().square() / squares
            if squares > 0
            else 0.0,
            "skipped": skipped.sum(),
            "skipped_gradient": gradient_weight[skipped].sum(),
        }
        for row, (sign, chosen) in enumerate(_signs(advantage).items()):
            sums |= {
                sign: chosen.sum(),
                f"log_ratio/{sign}": log_ratio[chosen].sum(),
                f"weight/{sign}": taper[chosen].sum(),
                f"negligible/{sign}": (taper[chosen] < NEGLIGIBLE).sum(),
                f"gradient/{sign}": gradient_weight[chosen].sum(),
            }
            bins = (taper[chosen] * BINS).floor().clamp(0, BINS).long()
            bins = torch.where((bins == BINS) & (taper[chosen] <= 1.0 + 1e-4), BINS - 1, bins)
            self.histograms[row] += torch.bincount(bins, minlength=BINS + 1)
        self.sums.update({name: float(value) for name, value in sums.items()})

    def summary(self) -> dict[str, float]:
        """Return the means under the keys of the log; a key without sequences is left out."""
        s = self.sums
        gradient = s["gradient/positive"] + s["gradient/negative"]
        pairs = {
            "log_ratio/positive": (s["log_ratio/positive"], s["positive"]),
            "log_ratio/negative": (s["log_ratio/negative"], s["negative"]),
            "weight/positive": (s["weight/positive"], s["positive"]),
            "weight/negative": (s["weight/negative"], s["negative"]),
            "weight/negative_below_0.01": (s["negligible/negative"], s["negative"]),
            "effective_sample_size": (s["effective_sample_size"], s["steps"]),
            "gradient_share/positive": (s["gradient/positive"], gradient),
            "gradient_share/negative": (-s["gradient/negative"], gradient),
        }
        if s["skipped"]:
            pairs["backward/skipped"] = (s["skipped"], s["positive"] + s["negative"])
            pairs["backward/dropped_weight"] = (s["skipped_gradient"], gradient)
        return {key: value / count for key, (value, count) in pairs.items() if count > 0}

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens since the last line, by the time since."""
        return round(self.sums["tokens"] / max(time.perf_counter() - self.since, 1e-9), 1)

    def histogram(self) -> dict[str, list[int]]:
        """Return counts of taper weights in 20 bins over [0, 1] and one above 1."""
        positive, negative = self.histograms.long().tolist()
        return {"positive": positive, "negative": negative}


def _signs(advantage: Tensor) -> dict[str, Tensor]:
    return {"positive": advantage >= 0, "negative": advantage < 0}


class NoEffectWarnings(TrainerCallback):
    """Notices settings that did nothing over a whole epoch, and says so once each."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.warned: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self.smallest_negative_taper = float("inf")
        self.largest_log_ratio = 0.0
        self.steps = 0

    def add_step(self, step: Step, number: int) -> None:
        """Take note of one loader batch of optimizer step `number`."""
        if number == 0:  # On the first batch of an unchanged model the ratio must be 1.
            return
        self.steps += 1
        negative = step.advantage_B < 0
        if negative.any():
            taper = taper_of(step.weight_B[negative], step.advantage_B[negative]).min().item()
            self.smallest_negative_taper = min(self.smallest_negative_taper, taper)
        largest = step.log_ratio_B.abs().max().item()
        self.largest_log_ratio = max(self.largest_log_ratio, largest)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Warn of what did nothing, and start the next epoch."""
        if self.steps and self.largest_log_ratio < SAME_RATIO:
            self._warn(
                "ratio",
                f"the ratio pi/mu was 1 (log rho below {SAME_RATIO:g}) on every completion of the "
                "epoch although steps were taken: the model hardly changed (learning rate too "
                "small, or nothing to learn), or mu is recomputed from the model in training",
            )
        elif (
            isinstance(self.objective, Taper)
            and self.objective.negative[0] < self.objective.negative[1]
            and ACTIVE_BELOW <= self.smallest_negative_taper < float("inf")
        ):
            self._warn(
                "taper",
                f"the taper was never active in this epoch: no negative's weight fell below "
                f"{ACTIVE_BELOW}, so this was plain REINFORCE; the learning rate may be too small "
                "for the negatives to move",
            )
        self.reset()

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(message)


def warn_of_rewards(objective: Objective, rewards: np.ndarray[Any, Any], baseline: float) -> None:
    """Warn where rewards, [N], leave the objective little to do, or are not what it is for."""
    _warn_one_sided(objective, rewards - baseline)
    _warn_two_values(objective, rewards)


def _warn_one_sided(objective: Objective, advantages: np.ndarray[Any, Any]) -> None:
    """Warn where rewards and baseline leave one sign of the advantage only; `advantages` is [N]."""
    if objective.uses.baseline is BaselineRole.CANCELS:
        return  # Signs are those of rewards less their prompt's mean.
    rows, positives = len(advantages), int((advantages > 0).sum())
    negatives = int((advantages < 0).sum())
    if negatives == 0 and objective.uses.negatives:
        logger.warning(
            "none of the %d completions has a negative advantage (%d positive, %d zero), so the "
            "objective's treatment of negatives does nothing; rewards of 1 and 0 need baseline "
            "0.5, or -1 in place of 0",
            rows, positives, rows - positives,
        )  # fmt: skip
    if positives == 0:
        logger.warning(
            "none of the %d completions has a positive advantage (%d negative): the model can only "
            "unlearn; is the grader right for this data?",
            rows, negatives,
        )  # fmt: skip


def _warn_two_values(objective: Objective, rewards: np.ndarray[Any, Any]) -> None:
    """Warn where an objective ranks rewards, and there are two values; `rewards` is [N]."""
    if not objective.uses.signs and len(np.unique(rewards)) <= 2:
        logger.warning(
            "the objective ranks rewards, and there are two values of them: wrong completions are "
            "pulled up, too. It is for rewards that are numbers; take topr or oapl for right and "
            "wrong"
        )
