"""A user's own problems: any file or hub dataset with a prompt and an answer in each row.

Nothing here knows the subject: the recipe names the columns, the grader and the stop strings.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from topr.config import JsonlConfig
from topr.errors import ConfigError
from topr.records import Message, Problem
from topr.tasks.base import Split
from topr.tasks.sources import Source, read_file_or_hub
from topr.tasks.splits import Splits, divide, pick

_OWN_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_BUILT_IN = ("numeric", "numeric_marked", "math", "exact")
_MESSAGES_AS_TEXT = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')
_PLACE = "{prompt}"


class JsonlTask:
    """Problems from a user's own file or hub dataset."""

    name = "jsonl"

    def __init__(self, config: JsonlConfig) -> None:
        """Check what can be checked before anything is read.

        Raises:
            ConfigError: settings that cannot be, or that would do nothing.

        """
        _check(config)
        self._config = config
        self._own_function = config.grader not in _BUILT_IN
        self.grader = config.grader
        self.stop: tuple[str, ...] = config.stop

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, shuffled.

        Raises:
            DataError: the source cannot be read, or a row lacks its prompt or answer.
            ConfigError: the recipe gives this split no problems.

        """
        return pick(self._splits, split, what=self.name)

    @cached_property
    def _splits(self) -> Splits:
        config = self._config
        test = config.test_file
        return divide(
            self._read(config.train_file, "train"),
            None if test is None else self._read(test, "test"),
            what=self.name,
            seed=config.seed,
            validation_problems=config.validation_problems,
            hold_out=config.test_problems,
        )

    def _read(self, file: str, split: str) -> Sequence[Problem]:
        source = read_file_or_hub(file, split, key=f"{split}_file")
        return [self._problem(source, index) for index in range(len(source.rows))]

    def _problem(self, source: Source, index: int) -> Problem:
        config = self._config
        row = source.rows[index]
        prompt = self._prompt(source, index)
        asked = row.get(config.prompt_column)
        return Problem(
            id=_hash(prompt)
            if config.id_column is None
            else source.identifier(index, config.id_column, "Or leave task.id_column out"),
            prompt=prompt,
            answer=self._answer(source, index),
            question=asked if isinstance(asked, str) else None,
            columns={
                name: value
                for name, value in row.items()
                if name not in (config.prompt_column, config.id_column)
            },
        )

    def _prompt(self, source: Source, index: int) -> str | tuple[Message, ...]:
        config = self._config
        advice = (
            "Expected text, or a list of {role, content}, as task.prompt_column names it; one kind "
            "in the whole file"
        )
        value = source.value(index, config.prompt_column, advice)
        if isinstance(value, list):
            if config.template != _PLACE:
                raise source.fail(
                    index,
                    "the prompt is messages, and task.template goes around text",
                    "Leave task.template out: the tokenizer's chat template does its work",
                )
            return _messages(source, index, value, advice)
        text = source.text(index, config.prompt_column, advice)
        if _MESSAGES_AS_TEXT.match(text):
            raise source.fail(index, f"the prompt is JSON written as text: {text!r:.60}", advice)
        # Not str.format: braces are common in prompts (LaTeX, code).
        return config.template.replace(_PLACE, text)

    def _answer(self, source: Source, index: int) -> str:
        column = self._config.answer_column
        if self._own_function and source.rows[index].get(column) is None:
            return ""  # a reward function may need no gold answer, or take it from other columns
        advice = "task.answer_column names the column with the gold answer"
        value = source.value(index, column, advice)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise source.fail(
                index,
                f"column {column!r} holds {value!r:.80} ({type(value).__name__}), expected text or "
                "a number",
                advice,
            )
        if not self._own_function and not str(value).strip():
            raise source.fail(index, f"column {column!r} is empty", advice)
        return str(value)


def _check(config: JsonlConfig) -> None:
    if config.grader not in _BUILT_IN and not _OWN_FUNCTION.fullmatch(config.grader):
        raise ConfigError(
            f"task.grader={config.grader!r} is neither one of {', '.join(_BUILT_IN)} nor a Python "
            "function written as module:function, for example my_rewards:brevity"
        )
    if _PLACE not in config.template:
        raise ConfigError(
            f"task.template={config.template!r} has no {_PLACE}: all problems would have the same "
            f"prompt. Write {_PLACE} where the problem's own text goes"
        )
    if config.test_file is not None and config.test_problems:
        raise ConfigError(
            f"both task.test_file={config.test_file} and task.test_problems={config.test_problems} "
            "are set: the latter holds problems out of task.train_file, which a test file makes "
            "needless. Set one"
        )


def _messages(source: Source, index: int, value: list[Any], advice: str) -> tuple[Message, ...]:
    messages = []
    for number, turn in enumerate(value, start=1):
        # Rows read from one table have the keys of all rows, null where they were not given.
        given = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {}
        if set(given) != {"role", "content"} or not all(isinstance(v, str) for v in given.values()):
            raise source.fail(
                index,
                f"message {number} of the prompt is {turn!r:.80}, expected the keys role and "
                "content, both text",
                advice,
            )
        messages.append(Message(role=given["role"], content=given["content"]))
    if not messages:
        raise source.fail(index, "the prompt is an empty list of messages", advice)
    return tuple(messages)


def _hash(prompt: str | tuple[Message, ...]) -> str:
    content = prompt if isinstance(prompt, str) else [[m.role, m.content] for m in prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
