"""The errors that a user of topr can meet.

    ToprError
    ├── ConfigError          a recipe, an override or an argument is wrong
    ├── DataError            rows, columns or files given to topr are wrong
    ├── RunDirectoryError    an output directory holds something else, or is in use
    ├── ModelError           a model or tokenizer cannot be loaded or used
    ├── EngineError          rollouts cannot be generated
    ├── GradingError         grading cannot start or continue (a wrong answer is not an error)
    └── TrainingError        training cannot start or continue
        └── DivergedError    a loss or gradient is NaN or infinite

Every message says what was found, what was expected and what to do next. Errors from other
libraries that are not the user's to fix pass through unchanged.
"""


class ToprError(Exception):
    """Base of all errors raised on purpose by topr."""


class ConfigError(ToprError):
    """A recipe, an override or an argument is wrong."""


class DataError(ToprError):
    """Rows, columns or files given to topr are wrong."""


class RunDirectoryError(ToprError):
    """An output directory holds something else, or another process is using it."""


class ModelError(ToprError):
    """A model or tokenizer cannot be loaded or used."""


class EngineError(ToprError):
    """Rollouts cannot be generated."""


class GradingError(ToprError):
    """Grading cannot start or continue. A wrong answer is an outcome, never this error."""


class TrainingError(ToprError):
    """Training cannot start or continue."""


class DivergedError(TrainingError):
    """A loss or gradient is NaN or infinite; the rows of the batch are saved."""
