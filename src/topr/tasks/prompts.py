"""What tasks make prompts of: messages for a chat template, or text. Which of the two is decided
here, once a tokenizer is known. Text and ids are made of a prompt in `topr.tokenization.prompts`.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from topr.config.prompts import NO_SYSTEM_PROMPT, PromptConfig, QuestionConfig
from topr.errors import ConfigError
from topr.records import Message, Problem
from topr.tokenization.prompts import chat_marks, render

if TYPE_CHECKING:  # it takes seconds to import, and nothing here runs it
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Prompt = str | tuple[Message, ...]
ConfigT = TypeVar("ConfigT")

QUESTION = "{question}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextForm:
    """How a task writes questions and worked answers as plain text.

    >>> form = TextForm(question="Question: {question}\\nAnswer:", answer=" {answer}\\n\\n")
    >>> plain_prompt("2 + 2?", form, [("1 + 1?", "2")])
    'Question: 1 + 1?\\nAnswer: 2\\n\\nQuestion: 2 + 2?\\nAnswer:'
    """

    question: str
    """With `{question}`; it ends where the answer begins."""
    answer: str
    """With `{answer}`: an example's, up to the next question."""


def resolve_prompt(
    config: ConfigT,
    tokenizer: "PreTrainedTokenizerBase | None",
    say: Callable[[str], None] = logger.info,
) -> ConfigT:
    """Return a task's section with `prompt: auto` decided; any other section as it is.

    Args:
        config: the section.
        tokenizer: of the model that is asked; None: of a built-in one, which has no template.
        say: is given one line where something was decided.

    Raises:
        ConfigError: prompts become plain text, and there is a system prompt.

    """
    if not isinstance(config, PromptConfig) or not config.undecided:
        return config
    kind = "chat" if tokenizer is not None and tokenizer.chat_template else "plain"
    name = "the built-in model" if tokenizer is None else _name(tokenizer)
    has = "a" if kind == "chat" else "no"
    found = f"task.prompt=auto: {kind}, since the tokenizer of {name} has {has} chat template"
    if kind == "plain" and config.system_prompt is not None:
        raise ConfigError(f"{found}; {NO_SYSTEM_PROMPT}")
    say(found)
    return config.model_copy(update={"prompt": kind})


def check_prompts(problems: Iterable[Problem], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse prompts that the tokenizer has no way to render; warn where its template goes unused.

    Looks at the first prompt of each kind (text, and each sequence of roles).

    Raises:
        ModelError: messages, but there is no chat template, or it refuses their roles.

    """
    firsts: dict[tuple[str, ...], Problem] = {}
    for problem in problems:
        firsts.setdefault(_roles(problem.prompt), problem)
    for roles, problem in firsts.items():
        text = render(problem.prompt, tokenizer, escape=problem.escape_special_tokens).text
        # Text that is a rendered chat already is not a plain prompt.
        if not roles and tokenizer.chat_template and not chat_marks(tokenizer).opened(text):
            logger.warning(
                "the prompts are plain text, and the tokenizer of %s has a chat template: a model "
                "that was tuned on chats usually answers better in one (task.prompt=chat)",
                _name(tokenizer),
            )


def prompt_kinds(problems: Iterable[Problem]) -> str:
    """Return `chat`, `plain`, or `chat and plain`: what the prompts of problems are."""
    kinds = {"plain" if isinstance(problem.prompt, str) else "chat" for problem in problems}
    return " and ".join(sorted(kinds))


def make_prompt(
    config: QuestionConfig,
    question: str,
    form: TextForm,
    *,
    instruction: str,
    examples: Sequence[tuple[str, str]] = (),
) -> Prompt:
    """Return the prompt that puts a question as a task's section says.

    Args:
        config: the section, its `prompt` decided.
        question: what is asked.
        form: of plain text.
        instruction: the task's own, where the section has none and there are no examples.
        examples: questions and worked answers.

    """
    own = "" if examples else instruction
    said = own if config.instruction is None else config.instruction
    if config.prompt == "chat":
        return chat_prompt(question, examples, said, config.system_prompt)
    return plain_prompt(question, form, examples, said)


def chat_prompt(
    question: str,
    examples: Sequence[tuple[str, str]] = (),
    instruction: str = "",
    system: str | None = None,
) -> tuple[Message, ...]:
    """Return examples as turns of user and assistant, then the question.

    >>> chat_prompt("2 + 2?", instruction="{question} End with a number.")
    (Message(role='user', content='2 + 2? End with a number.'),)
    """
    asked = instruction or QUESTION
    if QUESTION not in asked:
        asked = f"{instruction}\n\n{QUESTION}"
    turns = [] if system is None else [Message(role="system", content=system)]
    for example, answer in examples:
        turns += [
            Message(role="user", content=asked.replace(QUESTION, example)),
            Message(role="assistant", content=answer),
        ]
    return (*turns, Message(role="user", content=asked.replace(QUESTION, question)))


def plain_prompt(
    question: str,
    form: TextForm,
    examples: Sequence[tuple[str, str]] = (),
    instruction: str = "",
) -> str:
    """Return text that ends where the answer begins.

    An instruction with `{question}` is around each question; another one opens the text.
    """
    around = QUESTION in instruction
    ask = form.question.replace(QUESTION, instruction) if around else form.question
    shots = "".join(
        ask.replace(QUESTION, example) + form.answer.replace("{answer}", answer)
        for example, answer in examples
    )
    opening = "" if around or not instruction else f"{instruction}\n\n"
    return opening + shots + ask.replace(QUESTION, question)


def _roles(prompt: Prompt) -> tuple[str, ...]:
    return () if isinstance(prompt, str) else tuple(message.role for message in prompt)


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.name_or_path or "this model")
