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
from topr.errors import ConfigError, DataError
from topr.records import Message, Problem, Several
from topr.records.golds import read_gold
from topr.store import has_column, value_at
from topr.tasks.base import Split
from topr.tasks.prompts import Prompt, chat_prompt
from topr.tasks.sources import EmptyCellError, Source, SourceRow, read_file_or_hub
from topr.tasks.splits import Splits, divide, pick

_OWN_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_BUILT_IN = ("numeric", "numeric_marked", "math", "exact")
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
        return divide(
            self._read_train().each(self._problem),
            self._read_test().each(self._problem) if _has_test(config) else None,
            what=self.name,
            seed=config.seed,
            validation_problems=config.validation_problems,
            hold_out=config.test_problems,
        )

    def _read_train(self) -> Source:
        config = self._config
        return read_file_or_hub(
            config.train_file,
            config.split or "train",
            key="train_file",
            subset=config.subset,
            chosen=config.split is not None,
        )

    def _read_test(self) -> Source:
        config = self._config
        file = config.test_file or config.train_file
        same = file == config.train_file
        return read_file_or_hub(
            file,
            config.test_split or "test",
            key="test_file",
            subset=config.test_subset or (config.subset if same else None),
            chosen=config.test_split is not None,
        )

    def _problem(self, row: SourceRow) -> Problem:
        config = self._config
        given = self._given(row)
        asked = value_at(row.cells, config.prompt_column)
        return Problem(
            # Of what the row says: a problem has one name, and one split, however it is asked.
            id=_hash(given)
            if config.id_column is None
            else row.identifier(config.id_column, "Or leave task.id_column out"),
            prompt=self._prompt(row, given),
            answer=self._answer(row),
            question=asked if isinstance(asked, str) else None,
            columns={
                name: value
                for name, value in row.cells.items()
                if name not in (config.prompt_column, config.id_column)
            },
        )

    def _given(self, row: SourceRow) -> Prompt:
        """Return the prompt of a row as it is written there, with the template around text."""
        config = self._config
        advice = "Expected text, or a list of {role, content}: task.prompt_column=NAME says where"
        value = row.messages(config.prompt_column, advice)
        if isinstance(value, list):
            if config.template != _PLACE and config.prompt != "plain":
                raise row.fail(
                    "the prompt is messages, and task.template goes around text",
                    "Leave task.template out: the tokenizer's chat template does its work; or "
                    "set task.prompt=plain, which makes text of messages",
                )
            return _messages(row, value, advice)
        text = row.text(config.prompt_column, advice)
        # Not str.format: braces are common in prompts (LaTeX, code).
        return config.template.replace(_PLACE, text)

    def _prompt(self, row: SourceRow, given: Prompt) -> Prompt:
        """Return what `task.prompt` and `task.system_prompt` make of it."""
        config, system = self._config, self._config.system_prompt
        if isinstance(given, str) and config.prompt == "chat":
            return chat_prompt(given, system=system)
        if isinstance(given, str):
            if system is not None:
                raise row.fail(
                    "the prompt is text, which has no system message",
                    "Set task.prompt=chat, or leave task.system_prompt out",
                )
            return given
        if config.prompt == "plain":
            text = "\n\n".join(message.content for message in given)
            return config.template.replace(_PLACE, text)
        if system is None:
            return given
        if given[0].role == "system":
            raise row.fail(
                "the prompt begins with a system message, and task.system_prompt is set",
                "Leave task.system_prompt out, or take the message out of the data",
            )
        return (Message(role="system", content=system), *given)

    def _answer(self, row: SourceRow) -> str:
        column = self._config.answer_column
        advice = "task.answer_column names the column with the gold answer"
        # A function reads a list as it likes.
        several = Several.ANY if self._own_function else self._config.several_golds
        try:
            gold = read_gold(value_at(row.cells, column), several)
        except DataError as error:
            raise row.fail(f"column {column!r} {error}", advice) from error
        if self._own_function:
            return gold or ""  # it may need none, or take it from other columns
        if gold is None or not gold.strip():
            state = "is empty" if has_column(row.cells, column) else "is not there"
            raise row.fail(f"column {column!r} {state}", advice, EmptyCellError)
        return gold


def _has_test(config: JsonlConfig) -> bool:
    return config.test_file is not None or config.test_split is not None


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
    if _has_test(config) and config.test_problems:
        raise ConfigError(
            f"both task.test_file={config.test_file or config.test_split} and task.test_problems="
            f"{config.test_problems} are set: the latter holds problems out of task.train_file, "
            "which a test file or split makes needless. Set one"
        )
    if config.test_subset is not None and not _has_test(config):
        raise ConfigError(
            f"task.test_subset={config.test_subset} is of no use without task.test_split (or "
            "task.test_file): say which split of it holds the test problems"
        )


def _messages(row: SourceRow, value: list[Any], advice: str) -> tuple[Message, ...]:
    messages = []
    for number, turn in enumerate(value, start=1):
        # Rows read from one table have the keys of all rows, null where they were not given.
        given = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {}
        if set(given) != {"role", "content"} or not all(isinstance(v, str) for v in given.values()):
            raise row.fail(
                f"message {number} of the prompt is {turn!r:.80}, expected the keys role and "
                "content, both text",
                advice,
            )
        messages.append(Message(role=given["role"], content=given["content"]))
    if not messages:
        raise row.fail("the prompt is an empty list of messages", advice)
    return tuple(messages)


def _hash(prompt: str | tuple[Message, ...]) -> str:
    content = prompt if isinstance(prompt, str) else [[m.role, m.content] for m in prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
