"""The `task` section of the datasets of reasoning_gym. The package itself is not imported here."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from topr.config.base import Section
from topr.config.prompts import QuestionConfig


class GymDatasetConfig(Section):
    """One dataset of several."""

    name: str
    """Its name in reasoning_gym."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the problems of each split, relative to the weights of the others."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Parameters that differ from the dataset's own defaults."""


class ReasoningGymConfig(QuestionConfig):
    """Problems of one or several procedural datasets of reasoning_gym, made from a seed."""

    name: Literal["reasoning_gym"]
    dataset: str | None = None
    """Name of one dataset, such as `leg_counting`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Its parameters that differ from its own defaults; `min_` and `max_` make it easy or hard."""
    datasets: tuple[GymDatasetConfig, ...] = ()
    """Several datasets, in place of `dataset` and `parameters`."""
    train_problems: Annotated[int, Field(ge=1)] = 300
    """Problems to draw rollouts for."""
    validation_problems: Annotated[int, Field(ge=0)] = 100
    """Problems to make choices on."""
    test_problems: Annotated[int, Field(ge=1)] = 200
    """Problems to report on."""
    few_shot: Annotated[int, Field(ge=0, le=32)] = 0
    """Problems with their answers in the prompt, which are in no split; of several datasets, each
    prompt has its own."""
    reward: Literal["threshold", "linear"] = "threshold"
    """From a dataset's score between 0 and 1 to a reward. `threshold`: +1 from `threshold` on, -1
    below. `linear`: -1 for a score of 0, 0 at `threshold`, +1 for a score of 1."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The lowest score of an answer that counts as correct, with either `reward`."""
    seed: int = 0
    """Seed of the problems."""

    @model_validator(mode="after")
    def _one_dataset_or_several(self) -> "ReasoningGymConfig":
        if (self.dataset is None) == (not self.datasets):
            found = "neither" if self.dataset is None else "both"
            raise ValueError(
                f"{found} of dataset and datasets given, expected one of the two: a name, or a "
                "list of {name, weight, config}"
            )
        if self.parameters and self.dataset is None:
            raise ValueError(
                "parameters belong to dataset; of several datasets each has its own in "
                "datasets[].config"
            )
        smallest = min(self.train_problems, self.test_problems)
        if len(self.datasets) > smallest:
            raise ValueError(
                f"{len(self.datasets)} datasets and a split of {smallest} problems: expected one "
                "of each at least; raise train_problems or test_problems, or leave datasets out"
            )
        return self

    @property
    def parts(self) -> tuple[GymDatasetConfig, ...]:
        """The datasets, one or several."""
        if self.dataset is None:
            return self.datasets
        return (GymDatasetConfig(name=self.dataset, config=self.parameters),)
