"""The section `curate`: rules that choose the rows to train on, told apart by `rule`."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from topr.config.base import Section


class AllRule(Section):
    """Keeps every completion that has a reward."""

    rule: Literal["all"] = "all"


class PositivesRule(Section):
    """Keeps completions with reward > 0."""

    rule: Literal["positives"] = "positives"


class CapRule(Section):
    """Keeps the first completions of each problem, in order of sampling."""

    rule: Literal["cap"] = "cap"
    per_problem: Annotated[int, Field(ge=1)]
    """Completions kept of each problem at most."""


class AnnaKareninaRule(Section):
    """Fills a quota per problem with few positives and many negatives, in order of sampling."""

    rule: Literal["anna_karenina"] = "anna_karenina"
    per_problem: Annotated[int, Field(ge=1)] = 16
    """The quota: completions kept of each problem at most."""
    max_positives: Annotated[int, Field(ge=0)]
    """Positives among them at most; negatives take the rest."""
    max_candidates: Annotated[int, Field(ge=1)] = 64
    """Completions of each problem that are sampled, or looked at, at most."""
    reserve: Annotated[int, Field(ge=0)] = 0
    """Places of the quota that negatives leave free for positives while there are candidates."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> "AnnaKareninaRule":
        names = ("reserve", "max_positives", "per_problem", "max_candidates")
        for small, large in pairwise(names):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(
                    f"{small}={getattr(self, small)} with {large}={getattr(self, large)}: "
                    f"expected {' <= '.join(names)}"
                )
        return self


class PositiveShareRule(Section):
    """Drops the surplus of positives or negatives until the share of positives is as asked for."""

    rule: Literal["positive_share"] = "positive_share"
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of positives among the completions kept."""
    by: Literal["samples", "baseline"] = "samples"
    """`samples`: by dropping some. `baseline` is refused: the key for it is
    `train.effective_positive_share`."""
    seed: int = 0
    """Seed of which ones are dropped."""

    @model_validator(mode="after")
    def _samples_only(self) -> "PositiveShareRule":
        if self.by == "baseline":
            raise ValueError(
                "by=baseline: the baseline changes no row, so it is not a rule of curation. Leave "
                f"this rule out and set train.effective_positive_share={self.share:g}"
            )
        return self


class DropNoSignalRule(Section):
    """Drops problems whose completions all have the same reward."""

    rule: Literal["drop_no_signal"] = "drop_no_signal"


class DropDuplicatesRule(Section):
    """Keeps the first of equal completions of a problem, in order of sampling."""

    rule: Literal["drop_duplicates"] = "drop_duplicates"


class PassRateRule(Section):
    """Keeps problems whose share of positives lies in a band, its ends included."""

    rule: Literal["pass_rate"] = "pass_rate"
    lowest: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Problems solved less often are too hard."""
    highest: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Problems solved more often are too easy."""

    @model_validator(mode="after")
    def _is_a_band(self) -> "PassRateRule":
        if self.lowest > self.highest:
            raise ValueError(
                f"lowest={self.lowest} with highest={self.highest}: no problem is between"
            )
        if (self.lowest, self.highest) == (0.0, 1.0):
            raise ValueError(
                "a band from 0 to 1 drops nothing: set lowest or highest, or leave the rule out"
            )
        return self


Rule = Annotated[
    AllRule
    | PositivesRule
    | CapRule
    | AnnaKareninaRule
    | PositiveShareRule
    | DropNoSignalRule
    | DropDuplicatesRule
    | PassRateRule,
    Field(discriminator="rule"),
]


def _named(value: Any) -> Any:
    return {"rule": value} if isinstance(value, str) else value


BareName = Literal["all", "positives", "drop_no_signal", "drop_duplicates"]
"""Rules whose every option has a default, for editors."""


class CurateConfig(Section):
    """Which graded rollouts are trained on."""

    steps: tuple[
        Annotated[Rule, BeforeValidator(_named, json_schema_input_type=BareName | Rule)], ...
    ] = (AllRule(),)
    """Rules, applied in this order: mappings of `rule` and its options, or the bare name of a rule
    that needs none."""
