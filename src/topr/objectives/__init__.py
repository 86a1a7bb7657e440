"""Objectives: pure functions from log-ratios, advantages, mask and groups to weights.

Every policy gradient on a batch is sum_t w_t grad log pi_t, and an objective is the choice of w.
The weight carries no gradient; the trainer turns weights into a gradient in one place.
No models, no trainers, no logging here.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from topr.errors import ConfigError
from topr.objectives.base import (
    NEGLIGIBLE,
    BaselineRole,
    Normalization,
    Objective,
    Uses,
    largest_weight,
    log_rho,
    sequence_scale,
    taper_of,
    token_mean,
)
from topr.objectives.baseline import (
    baseline_for_share,
    effective_positive_share,
    resolve_baseline,
    share_advice,
)
from topr.objectives.clipped import CISPO, GSPO, PPO
from topr.objectives.preference import APO, DPO
from topr.objectives.relative import AsymRE, MirrorDescent
from topr.objectives.taper import Taper

INF = float("inf")

OBJECTIVES: Mapping[str, Objective] = {
    # The paper's family: one taper, four limits (arXiv 2503.14286, section 3).
    "topr": Taper(positive=(1.0, 1.0), negative=(0.0, 1.0)),
    "sft": Taper(positive=(1.0, 1.0), negative=(0.0, 0.0)),
    "reinforce": Taper(positive=(1.0, 1.0), negative=(1.0, 1.0)),
    "is": Taper(positive=(0.0, INF), negative=(0.0, INF)),
    "tis": Taper(positive=(0.0, 1.0), negative=(0.0, 1.0)),
    # What other systems train under the name TOPR: the ratio of each token, or its geometric mean.
    "roll_topr": Taper(level="token"),
    "trinity_topr": Taper(level="token", normalization="none"),  # mean over all tokens
    "verl_topr": Taper(level="geometric"),
    # TOPR with a steeper taper, rho squared: what the look-ahead of FPA leaves without its
    # normaliser.
    "steep_topr": Taper(lookahead=1.0),
    # Other methods on stored completions.
    "ppo": PPO(),
    "grpo": PPO(group_normalized=True),
    "gspo": GSPO(),
    "cispo": CISPO(),
    "asymre": AsymRE(),
    "opmd": MirrorDescent(),
    "dpo": DPO(),
    "apo": APO(),
}


def make_objective(name: str, **arguments: object) -> Objective:
    """Return the objective of a name, with some of its numbers changed.

    Args:
        name: a key of `OBJECTIVES`, or `taper` for custom limits.
        **arguments: fields of the objective, such as `beta` of dpo.

    Raises:
        ConfigError: no such objective, it has no such field, or the field does nothing there.

    """
    known = {**OBJECTIVES, "taper": Taper()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no objective {name!r}; there are {', '.join(sorted(known))}.{hint}")
    objective = known[name]
    fields = {field.name for field in dataclasses.fields(objective)}  # type: ignore[arg-type]
    own = fields - {"normalization"}  # The trainer's setting: one place for each.
    unknown = sorted(set(arguments) - own)
    if unknown:
        raise ConfigError(
            f"objective {name!r} has no {', '.join(unknown)}; it has {', '.join(sorted(own))}"
        )
    for field, value in arguments.items():
        if isinstance(value, bool) and not isinstance(getattr(objective, field), bool):
            raise ConfigError(f"objective {name!r}: {field}={value} is neither a number nor a name")
    settings = {name: getattr(objective, name) for name in fields} | arguments
    try:
        made: Objective = TypeAdapter(type(objective)).validate_python(settings)
    except ValidationError as error:
        found = "; ".join(
            f"{e['loc'][0]}: {e['msg']} (found {e['input']!r})" for e in error.errors()
        )
        raise ConfigError(f"objective {name!r}: {found}") from None
    for field in sorted(made.uses.idle & arguments.keys()):
        if getattr(made, field) != getattr(objective, field):
            raise ConfigError(
                f"objective {name!r}: {field}={arguments[field]} does nothing, since its limits "
                "leave nothing of the ratio; leave it out, or change the limits"
            )
    return made


__all__ = [
    "APO",
    "CISPO",
    "DPO",
    "GSPO",
    "NEGLIGIBLE",
    "OBJECTIVES",
    "PPO",
    "AsymRE",
    "BaselineRole",
    "MirrorDescent",
    "Normalization",
    "Objective",
    "Taper",
    "Uses",
    "baseline_for_share",
    "effective_positive_share",
    "largest_weight",
    "log_rho",
    "make_objective",
    "resolve_baseline",
    "sequence_scale",
    "share_advice",
    "taper_of",
    "token_mean",
]
