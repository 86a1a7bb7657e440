"""The `task` section: one shape per task, told apart by `name`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from topr.config.base import Section
from topr.config.gym import ReasoningGymConfig
from topr.config.prompts import PromptConfig, QuestionConfig
from topr.records import Several


class WarmupConfig(Section):
    """The base model of the arithmetic task: its shape and its warm-up on flawed demonstrations.

    The base is cached by the hash of this section and of what demonstrations are made from.
    """

    hidden_size: Annotated[int, Field(ge=8)] = 128
    """Width."""
    num_layers: Annotated[int, Field(ge=1)] = 2
    """Transformer layers."""
    num_heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads."""
    intermediate_size: Annotated[int, Field(ge=8)] = 336
    """Width of the feed-forward layers."""
    steps: Annotated[int, Field(ge=1)] = 1500
    """Optimizer steps of the warm-up."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Fresh demonstrations per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak rate of the warm-up."""
    seed: int = 0
    """Seed of the weights and of the demonstrations."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "WarmupConfig":
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} with num_heads={self.num_heads}: each head "
                "needs an equal and even share of the width"
            )
        return self


class ArithmeticConfig(Section):
    """Synthetic word problems, made from a seed: nothing to download."""

    name: Literal["arithmetic"]
    train_problems: Annotated[int, Field(ge=1)] = 300
    """Problems to draw rollouts for."""
    validation_problems: Annotated[int, Field(ge=0)] = 100
    """Problems to make choices on."""
    test_problems: Annotated[int, Field(ge=1)] = 200
    """Problems to report on."""
    min_steps: Annotated[int, Field(ge=1)] = 2
    """Fewest clauses of a problem."""
    max_steps: Annotated[int, Field(ge=1, le=12)] = 4
    """Most clauses of a problem; arithmetic steps are at most one more, since multiplying is
    a separate step."""
    seed: int = 0
    """Seed of the problems."""
    warmup: WarmupConfig = WarmupConfig()
    """The base model."""

    @model_validator(mode="after")
    def _steps_in_order(self) -> "ArithmeticConfig":
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps={self.min_steps} is more than max_steps={self.max_steps}: "
                "no problem has that many clauses"
            )
        return self


class _DatasetConfig(QuestionConfig):
    """What tasks read from the hub or from files share."""

    train_file: str | None = None
    """JSONL, JSON or parquet (also .gz), or a hub name, with the training problems, instead of
    `dataset`."""
    test_file: str | None = None
    """The same for the test problems."""
    split: str = "train"
    """Split of the hub dataset with the training problems."""
    test_split: str = "test"
    """Split of the hub dataset with the test problems."""
    validation_problems: Annotated[int, Field(ge=0)] = 500
    """Problems held out of the training split, to make choices on."""
    train_problems: Annotated[int, Field(ge=1)] | None = None
    """Training problems after shuffling; defaults to all."""
    test_problems: Annotated[int, Field(ge=1)] | None = None
    """Test problems after shuffling; defaults to all."""
    seed: int = 0
    """Seed of the shuffling: datasets are stored in topic order."""


class Gsm8kConfig(_DatasetConfig):
    """GSM8K: grade-school word problems (fields `question`, `answer` with `#### N`)."""

    name: Literal["gsm8k"]
    dataset: str = "openai/gsm8k"
    """Hub name."""
    subset: str | None = "main"
    """Configuration of the hub dataset."""
    few_shot: Annotated[int, Field(ge=0, le=8)] = 8
    """Worked examples in the prompt, each ending in "The answer is N"."""


class MathConfig(_DatasetConfig):
    """MATH: competition problems (fields `problem`, `solution` with a boxed answer)."""

    name: Literal["math"]
    dataset: str = "EleutherAI/hendrycks_math"
    """Hub name of the training problems; all its subject configurations are read."""
    test_dataset: str = "HuggingFaceH4/MATH-500"
    """Hub name of the test problems."""
    few_shot: Annotated[int, Field(ge=0, le=4)] = 4
    """Worked examples of the Minerva prompt."""
    levels: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] | None = (
        None
    )
    """Levels of difficulty whose problems are taken, 1 to 5, in training and test (column `level`).
    Defaults to all."""


class JsonlConfig(PromptConfig):
    """A user's own problems: `prompt` (text or messages) and `answer`."""

    name: Literal["jsonl"]
    prompt: Literal["auto", "chat", "plain"] = "auto"
    """`auto`: text stays as it is, and messages go through the tokenizer's chat template; `chat`:
    text becomes a user's turn; `plain`: messages become text, a blank line between them."""
    train_file: str
    """JSONL, JSON or parquet (also .gz), or a hub dataset name."""
    subset: str | None = None
    """Configuration of a hub dataset; not needed where it has one alone."""
    split: str | None = None
    """Split of a hub dataset with the training problems. Defaults to `train`."""
    test_file: str | None = None
    """Problems to report on; by default `test_problems` are held out of `train_file`, or with
    `test_split` they are that split of it."""
    test_subset: str | None = None
    """Configuration of the test problems. Defaults to `subset`, where both are of one dataset."""
    test_split: str | None = None
    """Split of a hub dataset with the test problems. Defaults to `test`."""
    validation_problems: Annotated[int, Field(ge=0)] = 0
    """Problems held out of the training file, to make choices on."""
    test_problems: Annotated[int, Field(ge=0)] = 0
    """Problems held out of the training file where there is no `test_file`."""
    prompt_column: str = "prompt"
    """Text, or a list of {role, content} for the chat template. A field of a nested column is named
    with dots."""
    answer_column: str = "answer"
    """The gold answer: text, a number, or a list of one, such as `reward_model.ground_truth`."""
    several_golds: Several = Several.REFUSE
    """What a list of several gold answers means: `refuse`, or `any` of them is right."""
    id_column: str | None = None
    """Names of the problems; defaults to a hash of the prompt."""
    template: str = "{prompt}"
    """Text around a text prompt; `{prompt}` stands for it."""
    grader: str = "numeric"
    """numeric, math, exact, or a Python function `module:function` with the signature
    f(completions, **columns) -> list[float | None]."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, in addition to the end-of-sequence token."""
    seed: int = 0
    """Seed of the shuffling."""

    @property
    def undecided(self) -> bool:
        """Whether the tokenizer has to say what prompts are: no, each row does."""
        return False


class CheckWarmupConfig(Section):
    """The built-in verifier's starting model: a generator of the arithmetic task, warmed up on
    flawed checks of right and of wrong solutions.
    """

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"generator"})

    generator: str | None = None
    """Directory of the generator that it starts from; defaults to the base of `arithmetic`."""
    arithmetic: ArithmeticConfig = ArithmeticConfig(name="arithmetic")
    """The task whose solutions are checked."""
    steps: Annotated[int, Field(ge=1)] = 1200
    """Optimizer steps of the warm-up."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Fresh demonstrations per step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak rate of the warm-up."""
    seed: int = 0
    """Seed of the new words' embeddings and of the demonstrations."""


class VerifierConfig(PromptConfig):
    """Is a solution right? Problems are made from a generator's graded rollouts."""

    # Where candidates lie plays no part in results: what they hold does.
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"rollouts", "test_rollouts"})

    name: Literal["verifier"]
    rollouts: str | None = None
    """Graded rollouts to learn from, required: a directory of shards, a file with question,
    solution and whether it is right, or a hub name."""
    test_rollouts: str | None = None
    """Graded rollouts to report on; by default `test_problems` are held out of `rollouts`. A
    question that is in both is not trained on."""
    validation_problems: Annotated[int, Field(ge=0)] = 0
    """Questions held out of `rollouts`, with all their solutions, to make choices on."""
    test_problems: Annotated[int, Field(ge=0)] = 0
    """Questions held out of `rollouts` to report on, where there are no `test_rollouts`."""
    question_column: str | None = None
    """Of a file: what was asked; defaults to its usual names."""
    solution_column: str | None = None
    """Of a file: the solution to be checked; defaults to its usual names."""
    label_column: str | None = None
    """Of a file: whether the solution is right; defaults to its usual names."""
    per_problem: Annotated[int, Field(ge=1)] | None = None
    """Different solutions of a training question, at most, right and wrong in turns; defaults to
    all."""
    mix: Literal["balanced", "natural"] = "balanced"
    """Training problems: as many right solutions as wrong ones, or as they come. Validation and
    test problems are as they come."""
    template: str | None = None
    """Text of the prompt, with `{question}` and `{solution}`; defaults to the task's own."""
    seed: int = 0
    """Seed of the shuffling and of what is left out."""
    warmup: CheckWarmupConfig = CheckWarmupConfig()
    """With `model.path: builtin`, for solutions of the arithmetic task."""

    @model_validator(mode="after")
    def _template_has_both_places(self) -> "VerifierConfig":
        for place in ("{question}", "{solution}"):
            if self.template is not None and self.template.count(place) != 1:
                raise ValueError(
                    f"template={self.template!r:.60} has {place} {self.template.count(place)} "
                    "times, expected once: a check needs the question and the solution"
                )
        return self


TaskConfig = Annotated[
    ArithmeticConfig | Gsm8kConfig | MathConfig | JsonlConfig | ReasoningGymConfig | VerifierConfig,
    Field(discriminator="name"),
]
