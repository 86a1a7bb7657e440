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
    Rule,
)
from topr.config.engines import RayConfig, ServerConfig, VllmConfig
from topr.config.gym import GymDatasetConfig, ReasoningGymConfig
from topr.config.prompts import PromptConfig, QuestionConfig
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
from topr.config.sections import (
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    ModelConfig,
)
from topr.config.tasks import (
    ArithmeticConfig,
    CheckWarmupConfig,
    Gsm8kConfig,
    JsonlConfig,
    MathConfig,
    TaskConfig,
    VerifierConfig,
    WarmupConfig,
)
from topr.config.training import LoraConfig, TaperConfig, TrainConfig, TrainSettings

__all__ = [
    "AllRule",
    "AnnaKareninaRule",
    "ArithmeticConfig",
    "CapRule",
    "CheckWarmupConfig",
    "Comparison",
    "CurateConfig",
    "DropDuplicatesRule",
    "DropNoSignalRule",
    "EvaluateConfig",
    "GenerateConfig",
    "GradeConfig",
    "Gsm8kConfig",
    "GymDatasetConfig",
    "JsonlConfig",
    "LoraConfig",
    "MathConfig",
    "ModelConfig",
    "PassRateRule",
    "PositiveShareRule",
    "PositivesRule",
    "PromptConfig",
    "QuestionConfig",
    "RayConfig",
    "ReasoningGymConfig",
    "Recipe",
    "Rule",
    "Section",
    "ServerConfig",
    "TaperConfig",
    "TaskConfig",
    "TrainConfig",
    "TrainSettings",
    "VerifierConfig",
    "VllmConfig",
    "WarmupConfig",
    "dump_recipe",
    "load_recipe",
    "load_section",
    "recipe_schema",
    "shipped_recipes",
    "verifier_recipe",
]
