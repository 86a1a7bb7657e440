"""All objectives by name, and how one is made from a name and arguments."""

import dataclasses
import difflib
from collections.abc import Mapping

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from topr.errors import ConfigError
from topr.objectives.base import Objective
from topr.objectives.clipped import GMPO, GSPO, PPO
from topr.objectives.own import own_objective, try_out
from topr.objectives.preference import APO, DPO, NFT
from topr.objectives.regression import DRO, OAPL, QRPO, MirrorDescent
from topr.objectives.relative import AsymRE
from topr.objectives.soft import SAPO, VESPO
from topr.objectives.taper import Taper
from topr.objectives.truncated import CISPO, DISPO, DPPO, M2PO

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
    # Constants instead of ratios: negatives at 1, positives at 0.1 (Zhu et al., arXiv 2506.01347).
    "w_reinforce": Taper(positive=(0.1, 0.1), negative=(1.0, 1.0)),
    "asymre": AsymRE(),
    # Clipped surrogates.
    "ppo": PPO(),
    "grpo": PPO(group_normalized=True),
    "gspo": GSPO(),
    "gmpo": GMPO(),
    # Token ratios, truncated or masked.
    "cispo": CISPO(),
    "dispo": DISPO(),
    "dppo": DPPO(),
    "m2po": M2PO(),
    # Smooth gates.
    "sapo": SAPO(),
    "vespo": VESPO(),
    # Regressions on the log-ratio.
    "opmd": MirrorDescent(),
    "dro": DRO(),
    "oapl": OAPL(),
    "qrpo": QRPO(),
    # Right and wrong completions taken apart.
    "dpo": DPO(),
    "apo": APO(),
    "nft": NFT(),
}


def make_objective(name: str, **arguments: object) -> Objective:
    """Return the objective of a name, with some of its numbers changed.

    Args:
        name: a key of `OBJECTIVES`, `taper` for custom limits, or `module:MyObjective`, a
            dataclass in your code with the attributes of `Objective`.
        **arguments: fields of the objective, such as `beta` of dpo.

    Raises:
        ConfigError: no such objective, it has no such field, or the field does nothing there.

    """
    objective = own_objective(name) if ":" in name else _built_in(name)
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
    except PydanticUserError as error:  # a type that no text or number can be read as
        raise ConfigError(f"objective {name!r}: fields are numbers and names: {error}") from error
    if ":" in name:
        try_out(name, made)
    for field in sorted(made.uses.idle & arguments.keys()):
        if getattr(made, field) != getattr(objective, field):
            raise ConfigError(
                f"objective {name!r}: {field}={arguments[field]} does nothing, since its limits "
                "leave nothing of the ratio; leave it out, or change the limits"
            )
    return made


def _built_in(name: str) -> Objective:
    known = {**OBJECTIVES, "taper": Taper()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no objective {name!r}; there are {', '.join(sorted(known))}, and module:MyObjective "
            f"names one in your code.{hint}"
        )
    return known[name]
