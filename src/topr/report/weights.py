"""What an objective makes of a stored training example, and why: for the report's browser.

The weight is the one with the trained model, whose log-probabilities are stored with the example;
in training it began at that of an unmoved model. Which weights a batch had is in the log.
"""

import math
from collections.abc import Mapping
from typing import Any

from topr.errors import ConfigError
from topr.report.rollouts import Weigh


def weigher(train: Mapping[str, Any], baseline: float | None) -> Weigh | None:
    """Return what weighs an example under a recipe's section `train`: one ratio per completion.

    None where the section is not known, or where a weight needs the whole group or differs
    between the tokens of a completion.
    """
    import torch  # here, since a report without training examples needs none

    from topr.objectives import ScoredBatch, Taper, make_objective

    name = str(train.get("objective", ""))
    try:
        given = {**(train.get("objective_args") or {}), **(train.get("taper") or {})}
        objective = make_objective(name, **given)
    except (ConfigError, TypeError, ValueError):
        return None  # of another version of topr
    if not isinstance(objective, Taper) or objective.level == "token" or baseline is None:
        return None

    def weigh(row: Mapping[str, Any]) -> tuple[float, str] | None:
        if row.get("reward") is None:
            return None
        pairs = zip(row["policy_logprobs"], row["behavior_logprobs"], strict=True)
        ratios = torch.tensor([[pi - mu for pi, mu in pairs]])
        advantage = torch.tensor([row["reward"] - baseline])
        mask = torch.ones_like(ratios, dtype=torch.bool)
        weight = objective.weights(
            ScoredBatch(
                log_ratio=ratios,
                advantage=advantage,
                mask=mask,
                group=torch.zeros(1, dtype=torch.long),
                behavior_logprobs=torch.tensor([row["behavior_logprobs"]]),
            )
        )
        if not advantage.item() or not math.isfinite(weight[0, 0].item()):
            return None
        positive = advantage.item() >= 0
        low, high = objective.positive if positive else objective.negative
        sign, tapered = "positive" if positive else "negative", f"tapered to [{low:g}, {high:g}]"
        if low == high:
            why = f"{sign}: always {low:g}"
        else:
            mean = ratios.mean() if objective.level == "geometric" else ratios.sum()
            power = 1.0 if positive else 1.0 + objective.lookahead
            raised = "" if power == 1 else f" to the power {power:g}"
            why = f"{sign}: ρ = e^{mean.item():.2f}{raised}, {tapered}".replace("-", "−")
        return abs(weight[0, 0].item() / advantage.item()), why

    return weigh
