"""Engines: prompts and sampling parameters in, rollouts out. Grading and storing are elsewhere.

`load_engine` imports an engine's own file only when that engine is asked for.
"""

import difflib
import importlib
from typing import Any

from topr.engines.base import Engine, Request
from topr.errors import EngineError

__all__ = ["ENGINES", "Engine", "Request", "load_engine"]

ENGINES: dict[str, str] = {
    "transformers": "topr.engines.transformers:TransformersEngine",
    "scripted": "topr.engines.scripted:ScriptedEngine",
}
"""Name to `module:class`."""


def load_engine(name: str, *arguments: Any, **options: Any) -> Engine:
    """Build the engine of that name from its own arguments, such as
    `load_engine("transformers", model, tokenizer, model_name="...", batch_size=64)`.

    Raises:
        EngineError: there is no engine of that name.

    """
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EngineError(f"no engine {name!r}; {hint}there are: {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)(*arguments, **options)
    return engine
