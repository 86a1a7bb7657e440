"""Recipes: YAML in, validated sections out, resolved YAML back. No torch here."""

from topr.config.base import Section
from topr.config.curation import (
    AllRule,
    AnnaKareninaRule,
    CapRule,
    CurateConfig,
    DropDuplicatesRule,
    DropNoSignalRule,
    PassRateRule,
    PositiveShareRule,
    PositivesRule,
)
from topr.config.gym import ReasoningGymConfig
from topr.config.prompts import PromptConfig
from topr.config.recipe import (
    Comparison,
    Recipe,
    dump_recipe,
    load_recipe,
    load_section,
    recipe_schema,
    shipped_recipes,
    verifier_recipe,
)
from topr.config.sections import EvaluateConfig, GenerateConfig, GradeConfig, ModelConfig
from topr.config.tasks import (
    ArithmeticConfig,
    Gsm8kConfig,
    JsonlConfig,
    MathConfig,
    TaskConfig,
    VerifierConfig,
)
from topr.config.training import LoraConfig, TrainConfig, TrainSettings

__all__ = [
    "AllRule",
    "AnnaKareninaRule",
    "ArithmeticConfig",
    "CapRule",
    "Comparison",
    "CurateConfig",
    "DropDuplicatesRule",
    "DropNoSignalRule",
    "EvaluateConfig",
    "GenerateConfig",
    "GradeConfig",
    "Gsm8kConfig",
    "JsonlConfig",
    "LoraConfig",
    "MathConfig",
    "ModelConfig",
    "PassRateRule",
    "PositiveShareRule",
    "PositivesRule",
    "PromptConfig",
    "ReasoningGymConfig",
    "Recipe",
    "Section",
    "TaskConfig",
    "TrainConfig",
    "TrainSettings",
    "VerifierConfig",
    "dump_recipe",
    "load_recipe",
    "load_section",
    "recipe_schema",
    "shipped_recipes",
    "verifier_recipe",
]
