"""What tasks make prompts of. Text and ids are made of a prompt in `topr.prompts`."""

from collections.abc import Sequence

from topr.records import Message


def chat_prompt(
    question: str, examples: Sequence[tuple[str, str]], instruction: str
) -> tuple[Message, ...]:
    """Return the examples as turns of user and assistant, then the question.

    Without examples, `instruction` comes before the question.
    """
    turns = [
        message
        for asked, answer in examples
        for message in (
            Message(role="user", content=asked),
            Message(role="assistant", content=answer),
        )
    ]
    content = question if examples else f"{instruction}\n\n{question}"
    return (*turns, Message(role="user", content=content))
