"""The keys of a `task` section that say how prompts are written."""

from typing import Literal

from pydantic import model_validator

from topr.config.base import Section


class PromptConfig(Section):
    """How prompts are written, for every task whose model may be a chat model."""

    prompt: Literal["auto", "chat", "plain"] = "auto"
    """`chat`: messages for the tokenizer's chat template, examples as turns; `plain`: text; `auto`:
    `chat` where the tokenizer has a chat template, else `plain`."""
    system_prompt: str | None = None
    """Content of a chat's system message. Defaults to no such message, where some templates write
    one of their own; "" is an empty one."""

    @property
    def undecided(self) -> bool:
        """Whether the model's tokenizer has to say first what prompts are."""
        return self.prompt == "auto"

    @model_validator(mode="after")
    def _system_prompt_needs_a_chat(self) -> "PromptConfig":
        if self.prompt == "plain" and self.system_prompt is not None:
            raise ValueError(NO_SYSTEM_PROMPT)
        return self


NO_SYSTEM_PROMPT = (
    "system_prompt is set, but the prompts are plain text, which has no system message; set "
    "task.prompt=chat, or leave system_prompt out"
)


class QuestionConfig(PromptConfig):
    """The same for tasks that put a question, and say how the answer is to end."""

    instruction: str | None = None
    """How to answer. With `{question}` it is the text of each question; without, it comes before
    the question. Defaults to the task's own where there are no examples, else to none; "" is none.
    """

    @model_validator(mode="after")
    def _one_place_for_the_question(self) -> "QuestionConfig":
        if self.instruction is not None and self.instruction.count("{question}") > 1:
            raise ValueError(
                f"instruction={self.instruction!r:.60} has {{question}} more than once, expected "
                "once (or not at all, and the question comes after it)"
            )
        return self
