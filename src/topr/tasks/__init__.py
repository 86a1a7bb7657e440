"""Tasks: where problems come from, how they become prompts, how completions end and are graded.

Each task is a class in its own file, made from its section of a recipe. Importing this
package imports none of them.
"""

from importlib import import_module

from topr.config import PromptConfig, TaskConfig
from topr.errors import ConfigError
from topr.tasks.base import Split, Task

__all__ = ["TASKS", "Split", "Task", "load_task"]


TASKS: dict[str, str] = {
    "arithmetic": "topr.tasks.arithmetic:ArithmeticTask",
    "gsm8k": "topr.tasks.gsm8k:Gsm8kTask",
    "math": "topr.tasks.competition_math:MathTask",
    "verifier": "topr.verifier.task:VerifierTask",
    "reasoning_gym": "topr.tasks.reasoning_gym:ReasoningGymTask",
    "jsonl": "topr.tasks.jsonl:JsonlTask",
}
"""Name in recipes to `module:class`, which is made from the section `task`: some are heavy."""


def load_task(config: TaskConfig) -> Task:
    """Make the task that a recipe's section describes. Nothing is read or downloaded yet.

    Raises:
        ConfigError: settings of the section contradict each other, or its `prompt` is `auto` and
            has not been decided: see `topr.tasks.prompts.resolve_prompt`.

    """
    module, _, name = TASKS[config.name].partition(":")
    task: Task = getattr(import_module(module), name)(config)
    if isinstance(config, PromptConfig) and config.undecided:
        raise ConfigError(
            "task.prompt=auto is decided by the model's tokenizer: take what "
            "`topr.tasks.prompts.resolve_prompt(config, tokenizer)` returns, or set chat or plain"
        )
    return task
