"""Engines: prompts and sampling parameters in, rollouts out. Grading and storing are elsewhere.

An engine's own file is imported only when that engine is asked for.
"""

import importlib
from typing import Any

from topr.config.sections import GenerateConfig, ModelConfig
from topr.engines.base import Engine, Request

__all__ = ["ENGINES", "Engine", "Request", "check_engine", "engine_class", "open_engine"]

ENGINES: dict[str, str] = {
    "ray": "topr.engines.ray:RayEngine",
    "server": "topr.engines.server:ServerEngine",
    "transformers": "topr.engines.transformers:TransformersEngine",
    "vllm": "topr.engines.vllm:VllmEngine",
}
"""Name in recipes to `module:class`. A class has `check(model, config)` and `open(model, config)`.
"""


def check_engine(model: ModelConfig, config: GenerateConfig) -> None:
    """Refuse now what would fail when completions are to be sampled. Loads no model.

    Args:
        model: the section `model`.
        config: the section `generate`.

    Raises:
        ConfigError: a package is missing, or keys do not agree with each other.

    """
    engine_class(config).check(model, config)


def open_engine(model: ModelConfig, config: GenerateConfig) -> Engine:
    """Return the engine that the section names, ready to draw from the model.

    Args:
        model: the section `model`; `path` is a directory or a hub name.
        config: the section `generate`.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        EngineError: the engine cannot start.

    """
    engine: Engine = engine_class(config).open(model, config)
    return engine


def engine_class(config: GenerateConfig) -> Any:
    """Return the class of the engine that the section names: see `ENGINES`."""
    module, _, attribute = ENGINES[config.engine].partition(":")
    return getattr(importlib.import_module(module), attribute)
