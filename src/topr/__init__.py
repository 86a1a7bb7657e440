"""topr: offline reinforcement learning for language models on tasks with checkable answers.

    import topr

    rollouts = topr.read_rollouts("completions.jsonl")         # prompt, completion, gold
    graded = topr.grade(rollouts, "numeric")                   # + grade, reward, answer
    dataset = topr.curate(graded, ["drop_no_signal"])
    args = topr.TOPRConfig("trained", behavior_logprobs="recompute")
    topr.TOPRTrainer("my-model", args, dataset).train()
    topr.write_report("trained")

These names, and what docs/api.md lists, are what other programs may rely on. Each is loaded when it
is first used: `import topr` takes no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from topr._version import __version__

if TYPE_CHECKING:
    from topr.config import Recipe, load_recipe
    from topr.errors import (
        ConfigError,
        DataError,
        DivergedError,
        EngineError,
        GradingError,
        ModelError,
        RunDirectoryError,
        ToprError,
        TrainingError,
    )
    from topr.notebook import curate, grade, read_rollouts
    from topr.objectives import OBJECTIVES, Objective, make_objective
    from topr.records import (
        EvalResult,
        FinishReason,
        Grade,
        Message,
        Outcome,
        Problem,
        Rollout,
        SamplingParams,
    )
    from topr.report import write_report
    from topr.runs.loop import run
    from topr.training import TOPRConfig, TOPRTrainer

_WHERE = {
    "topr.config": ("Recipe", "load_recipe"),
    "topr.errors": (
        "ConfigError", "DataError", "DivergedError", "EngineError", "GradingError", "ModelError",
        "RunDirectoryError", "ToprError", "TrainingError",
    ),
    "topr.notebook": ("curate", "grade", "read_rollouts"),
    "topr.objectives": ("OBJECTIVES", "Objective", "make_objective"),
    "topr.records": (
        "EvalResult", "FinishReason", "Grade", "Message", "Outcome", "Problem", "Rollout",
        "SamplingParams",
    ),
    "topr.report": ("write_report",),
    "topr.runs.loop": ("run",),
    "topr.training": ("TOPRConfig", "TOPRTrainer"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "OBJECTIVES",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EngineError",
    "EvalResult",
    "FinishReason",
    "Grade",
    "GradingError",
    "Message",
    "ModelError",
    "Objective",
    "Outcome",
    "Problem",
    "Recipe",
    "Rollout",
    "RunDirectoryError",
    "SamplingParams",
    "TOPRConfig",
    "TOPRTrainer",
    "ToprError",
    "TrainingError",
    "__version__",
    "curate",
    "grade",
    "load_recipe",
    "make_objective",
    "read_rollouts",
    "run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module, the first time that it is asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'topr' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
