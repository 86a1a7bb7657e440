"""A user's own objectives as further arms of a study of objectives."""

from collections.abc import Mapping, Sequence

from topr.config.mistakes import validate
from topr.config.study import Arm, Claim, Study
from topr.errors import ConfigError
from topr.objectives import BaselineRole, make_objective

MAIN = "topr"
"""The arm that an added one is compared with, where the study has it."""


def add_objectives(study: Study, paths: Sequence[str]) -> Study:
    """Return the study with an arm, and a claim against TOPR, for each objective.

    The arm's rate is chosen as the others' are. Its baseline is the study's where the objective
    subtracts one, and off where it has its own.

    Args:
        study: whose recipe trains with the objectives.
        paths: `module:MyObjective`, or names of built-in ones.

    Raises:
        ConfigError: there is no such objective, or the study has an arm of its name.

    """
    arms, claims = dict(study.arms), list(study.claims)
    for path in paths:
        uses = make_objective(path).uses
        name = path.rpartition(":")[2]
        if name in arms:
            raise ConfigError(f"study {study.name} has an arm {name!r} already: name another class")
        train: dict[str, object] = {"objective": path}
        if uses.baseline is not BaselineRole.SUBTRACTED:
            train["baseline"] = None if uses.baseline is BaselineRole.CANCELS else 0.0
        arms[name] = Arm(label=name, changes={"train": train})
        if MAIN in study.arms:
            claims.append(Claim(says=f"{name} is above TOPR", arm=name, than=MAIN))
    return with_arms(study, arms, claims)


def keep_arms(study: Study, earlier: Study) -> Study:
    """Return the study with the arms, and the claims about them, that only an earlier one has."""
    arms = {name: arm for name, arm in earlier.arms.items() if name not in study.arms}
    about = [c for c in earlier.claims if {c.arm, c.than} & arms.keys()]
    return with_arms(study, study.arms | arms, [*study.claims, *about])


def with_arms(study: Study, arms: Mapping[str, Arm], claims: Sequence[Claim]) -> Study:
    """Return the study with other arms and claims, checked as one that is read."""
    values = study.model_dump(mode="json")
    values["arms"] = {name: arm.model_dump(mode="json") for name, arm in arms.items()}
    values["claims"] = [claim.model_dump(mode="json") for claim in claims]
    return validate(Study, values, where=f"study {study.name}")
