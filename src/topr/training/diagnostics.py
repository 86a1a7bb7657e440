"""What a training step says of itself: sums over sequences, and warnings where a setting does
nothing. Every key is explained on the metrics page of the documentation.
"""

import logging
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from topr.objectives import BaselineRole, Objective, Taper
from topr.training.step import Step

logger = logging.getLogger(__name__)

NEGLIGIBLE = 0.01
BINS = 20
SAME_RATIO = 1e-3
"""A log-ratio below this is rounding: padding alone moves a completion's sum by 1e-5 to 1e-4."""
ACTIVE_BELOW = 0.99
"""A taper counts as active on a negative whose weight is below this."""


class StepStatistics:
    """Sums over the sequences of the steps since the last line of the log.

    Kept as one float64 vector, so that processes can be added up in one call.
    """

    FIELDS = (
        "steps",
        "tokens",
        "positives",
        "negatives",
        "log_ratio_positive",
        "log_ratio_negative",
        "taper_positive",
        "taper_negative",
        "negligible_negatives",
        "pull_positive",
        "pull_negative",
        "effective_sample_size",
        "skipped",
        "skipped_pull",
    )

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.FIELDS), dtype=torch.float64)
        self.histograms = torch.zeros(2, BINS + 1, dtype=torch.float64)  # positive, negative

    def add_step(self, step: Step) -> None:
        """Add the sequences of one loader batch."""
        log_ratio, weight, advantage, pull, factor = (
            x.double().cpu()
            for x in (
                step.log_ratio_B, step.weight_B, step.advantage_B, step.pull_B, step.factor_B
            )
        )  # fmt: skip
        positive = advantage >= 0
        taper = torch.where(advantage == 0, 0.0, weight.abs() / advantage.abs().clamp(min=1e-30))
        skipped = factor == 0
        squares = pull.square().sum()
        values: dict[str, Any] = {
            "steps": 1,
            "tokens": sum(step.lengths),
            "positives": positive.sum(),
            "negatives": (~positive).sum(),
            "log_ratio_positive": log_ratio[positive].sum(),
            "log_ratio_negative": log_ratio[~positive].sum(),
            "taper_positive": taper[positive].sum(),
            "taper_negative": taper[~positive].sum(),
            "negligible_negatives": (taper[~positive] < NEGLIGIBLE).sum(),
            "pull_positive": pull[positive].sum(),
            "pull_negative": pull[~positive].sum(),
            "effective_sample_size": pull.sum().square() / squares if squares > 0 else 0.0,
            "skipped": skipped.sum(),
            "skipped_pull": pull[skipped].sum(),
        }
        self.sums += torch.tensor([float(values[name]) for name in self.FIELDS])
        for row, chosen in enumerate((taper[positive], taper[~positive])):
            bins = (chosen * BINS).floor().clamp(0, BINS).long()
            bins = torch.where((bins == BINS) & (chosen <= 1.0 + 1e-4), BINS - 1, bins)
            self.histograms[row] += torch.bincount(bins, minlength=BINS + 1)

    def summary(self) -> dict[str, float]:
        """Return the means under the keys of the log; a key without sequences is left out."""
        s = dict(zip(self.FIELDS, self.sums.tolist(), strict=True))
        pull = s["pull_positive"] + s["pull_negative"]
        pairs = {
            "log_ratio/positive": (s["log_ratio_positive"], s["positives"]),
            "log_ratio/negative": (s["log_ratio_negative"], s["negatives"]),
            "weight/positive": (s["taper_positive"], s["positives"]),
            "weight/negative": (s["taper_negative"], s["negatives"]),
            "weight/negative_below_0.01": (s["negligible_negatives"], s["negatives"]),
            "effective_sample_size": (s["effective_sample_size"], s["steps"]),
            "gradient_share/positive": (s["pull_positive"], pull),
            "gradient_share/negative": (-s["pull_negative"], pull),
        }
        if s["skipped"]:
            pairs["backward/skipped"] = (s["skipped"], s["positives"] + s["negatives"])
            pairs["backward/dropped_weight"] = (s["skipped_pull"], pull)
        return {key: value / count for key, (value, count) in pairs.items() if count > 0}

    @property
    def tokens(self) -> int:
        """Completion tokens so far."""
        return int(self.sums[self.FIELDS.index("tokens")])

    def histogram(self) -> dict[str, list[float]]:
        """Return counts of taper weights in 20 bins over [0, 1] and one above 1."""
        positive, negative = self.histograms.tolist()
        edges = [i / BINS for i in range(BINS + 1)]
        return {"edges": edges, "positive": positive, "negative": negative}


class Idleness(TrainerCallback):
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
            taper = (step.weight_B[negative] / step.advantage_B[negative]).min().item()
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


def warn_one_sided(objective: Objective, advantages: np.ndarray[Any, Any]) -> None:
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
