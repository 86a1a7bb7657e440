"""A public data set of questions, such as GSM8K or MATH: read, divided, and put into prompts.

What of a row is the gold answer, and which rows are left out, each task says itself.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Generic, TypeVar

from topr.config import Gsm8kConfig, MathConfig
from topr.records import Problem
from topr.tasks.base import Split
from topr.tasks.prompts import TextForm, make_prompt
from topr.tasks.sources import Source, SourceRow, read_file_or_hub
from topr.tasks.splits import Splits, divide, pick

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", Gsm8kConfig, MathConfig)


class QuestionSet(ABC, Generic[ConfigT]):
    """Problems from the hub, or from local files of the same fields."""

    name: str
    grader: str
    column: str
    """Of the questions."""
    form: TextForm
    instruction: str
    """Stands in for the examples where there are none: nothing else says how an answer ends."""
    examples: Sequence[tuple[str, str]]
    stops: tuple[str, ...]
    """Of completions of plain text. A chat model ends its turn itself, and must be trained to."""
    advice: str
    """Which columns are expected."""

    def __init__(self, config: ConfigT) -> None:
        self._config: ConfigT = config
        self._examples = self.examples[: config.few_shot]
        self.stop = self.stops if config.prompt == "plain" else ()

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, shuffled: data sets may be stored in the order of subjects.

        Raises:
            DataError: the source cannot be read, or a row lacks its question or answer.
            ConfigError: the recipe gives this split no problems.

        """
        return pick(self._splits, split, what=self.name)

    @abstractmethod
    def gold(self, row: SourceRow, kind: str) -> tuple[str, str | None]:
        """Return a row's gold answer, and why the row is left out; None: it is not.

        `kind` is train or test.
        """

    @abstractmethod
    def read_hub(self, kind: str, split: str) -> Source:
        """Return the rows for training or the test, from the hub."""

    @cached_property
    def _splits(self) -> Splits:
        config = self._config
        return divide(
            self._read("train", config.train_file, config.split),
            self._read("test", config.test_file, config.test_split),
            what=self.name,
            seed=config.seed,
            validation_problems=config.validation_problems,
            train_problems=config.train_problems,
            test_problems=config.test_problems,
        )

    def _read(self, kind: str, file: str | None, split: str) -> list[Problem]:
        source = (
            read_file_or_hub(file, split, key=f"{kind}_file", chosen=split != kind)
            if file is not None
            else self.read_hub(kind, split)
        )
        left_out: Counter[str] = Counter()

        def problem(row: SourceRow) -> Problem | None:
            gold, why = self.gold(row, kind)
            if why is None:
                return self._problem(row, kind, gold)
            left_out[why] += 1
            return None

        problems = source.each(problem)
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.items() if why)
        if reasons:
            logger.warning(
                "%s: of %d problems left out: %s", source.name, len(source.rows), reasons
            )
        return problems

    def _problem(self, row: SourceRow, kind: str, gold: str) -> Problem:
        named = row.identifier("id", self.advice) if "id" in row.cells else None
        question = row.text(self.column, self.advice).strip()
        prompt = make_prompt(
            self._config, question, self.form,
            instruction=self.instruction, examples=self._examples,
        )  # fmt: skip
        return Problem(
            id=named or f"{self.name}-{kind}-{row.index:05d}",
            prompt=prompt,
            answer=gold,
            question=question,
            columns=row.cells,
        )
