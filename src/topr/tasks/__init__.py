"""Tasks: where problems come from, how they become prompts, how completions end and are graded.

Each task is a class in its own file, made from its section of a recipe. Importing this
package imports none of them.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from topr.config import PromptConfig, TaskConfig
from topr.errors import ConfigError
from topr.tasks.base import Split, Task

__all__ = ["TASKS", "Split", "Task", "load_task"]


def _lazy(module: str, name: str) -> Callable[[Any], Task]:
    """Return a constructor that imports its module when it is called: some are heavy."""

    def construct(config: Any) -> Task:
        task: Task = getattr(import_module(module), name)(config)
        return task

    return construct


TASKS: dict[str, Callable[[Any], Task]] = {
    "arithmetic": _lazy("topr.tasks.arithmetic", "ArithmeticTask"),
    "gsm8k": _lazy("topr.tasks.gsm8k", "Gsm8kTask"),
    "math": _lazy("topr.tasks.competition_math", "MathTask"),
    "verifier": _lazy("topr.verifier.task", "VerifierTask"),
    "reasoning_gym": _lazy("topr.tasks.reasoning_gym", "ReasoningGymTask"),
    "jsonl": _lazy("topr.tasks.jsonl", "JsonlTask"),
}
"""From the `name` in a recipe's `task` section to what makes the task."""


def load_task(config: TaskConfig) -> Task:
    """Make the task that a recipe's section describes. Nothing is read or downloaded yet.

    Raises:
        ConfigError: settings of the section contradict each other, or its `prompt` is `auto` and
            has not been decided: see `topr.tasks.prompts.resolve_prompt`.

    """
    task = TASKS[config.name](config)
    if isinstance(config, PromptConfig) and config.undecided:
        raise ConfigError(
            "task.prompt=auto is decided by the model's tokenizer: take what "
            "`topr.tasks.prompts.resolve_prompt(config, tokenizer)` returns, or set chat or plain"
        )
    return task
