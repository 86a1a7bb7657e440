"""An objective of the user's: a dataclass that `module:MyObjective` names.

It is tried out on a small batch before it trains.
"""

import dataclasses
from typing import cast, get_args

import torch
from torch import Tensor

from topr.errors import ConfigError
from topr.objectives.base import Normalization, Objective, ScoredBatch, Uses
from topr.user_code import load_attribute

NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
TRIED = (0.0, -0.5, 0.5, -100.0, 100.0)
"""Log-ratios of each token that weights are tried at."""


def own_objective(name: str) -> Objective:
    """Return the objective that `module:MyObjective` names, with its defaults."""
    found = load_attribute(name, what="objective", error=ConfigError)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"objective {name!r} is {found!r}: expected a dataclass, a class")
    wanted = ("needs_group", "uses", "normalization", "weights")
    missing = [attribute for attribute in wanted if not hasattr(found, attribute)]
    fields = {field.name for field in dataclasses.fields(found)}
    if missing := [attribute for attribute in missing if attribute not in fields]:
        raise ConfigError(
            f"objective {name!r} has no {', '.join(missing)}: an objective has "
            f"{', '.join(wanted)}, see topr.objectives.Objective"
        )
    try:
        return cast("Objective", found())
    except TypeError as error:
        raise ConfigError(f"objective {name!r}: each field needs a default ({error})") from None


def try_out(name: str, objective: Objective) -> None:
    """Refuse what a step cannot use, before one is taken."""
    if objective.needs_group not in (None, "rewards", "ratios"):
        raise ConfigError(
            f"objective {name!r}: needs_group={objective.needs_group!r}; expected None, or what a "
            "weight depends on of the prompt's other completions: 'rewards' or 'ratios'"
        )
    if not isinstance(objective.uses, Uses) or objective.normalization not in NORMALIZATIONS:
        raise ConfigError(
            f"objective {name!r}: uses={objective.uses!r}, normalization="
            f"{objective.normalization!r}; expected topr.objectives.Uses(...) and one of "
            f"{', '.join(NORMALIZATIONS)}"
        )
    mask = torch.tensor([[True, True, True], [True, False, False]])
    for nats in TRIED:
        batch = ScoredBatch(
            log_ratio=torch.where(mask, nats, torch.nan),
            advantage=torch.tensor([1.0, -1.0]),
            mask=mask,
            group=torch.zeros(2, dtype=torch.long),
            behavior_logprobs=torch.where(mask, -1.0, torch.nan),
        )
        try:
            found: object = objective.weights(batch)
        except Exception as error:  # whatever a user's code raises is reported as theirs
            raise ConfigError(
                f"objective {name!r}: weights raised {type(error).__name__}: {error}"
            ) from error
        _check_weights(name, found, mask, nats)


def _check_weights(name: str, found: object, mask: Tensor, nats: float) -> None:
    if (
        not isinstance(found, Tensor)
        or found.shape != mask.shape
        or found.dtype != torch.float32
        or found.requires_grad
    ):
        was = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else repr(found)
        raise ConfigError(
            f"objective {name!r}: weights returned {was} for a batch of {tuple(mask.shape)}; "
            "expected a float32 tensor of one weight for each token, without gradient"
        )
    if not torch.isfinite(found.square()).all() or found[~mask].any():
        raise ConfigError(
            f"objective {name!r}: at log-ratios of {nats:g} weights are {found.tolist()}: not "
            "finite, or not 0 where the mask is false. End with torch.where(batch.mask, weight, "
            "0.0), take ratios from batch.log_rho, which is 0 there, and limit them before exp"
        )
