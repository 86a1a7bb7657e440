"""Recipes: YAML in, validated sections out, resolved YAML back. No torch here."""

from topr.config.recipe import (
    Comparison,
    Recipe,
    dump_recipe,
    load_recipe,
    load_section,
    recipe_schema,
    shipped_recipes,
)
from topr.config.sections import (
    CurateConfig,
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    ModelConfig,
    Section,
    TaperConfig,
    TrainConfig,
)
from topr.config.tasks import (
    ArithmeticConfig,
    Gsm8kConfig,
    JsonlConfig,
    MathConfig,
    TaskConfig,
    WarmupConfig,
)

__all__ = [
    "ArithmeticConfig",
    "Comparison",
    "CurateConfig",
    "EvaluateConfig",
    "GenerateConfig",
    "GradeConfig",
    "Gsm8kConfig",
    "JsonlConfig",
    "MathConfig",
    "ModelConfig",
    "Recipe",
    "Section",
    "TaperConfig",
    "TaskConfig",
    "TrainConfig",
    "WarmupConfig",
    "dump_recipe",
    "load_recipe",
    "load_section",
    "recipe_schema",
    "shipped_recipes",
]
