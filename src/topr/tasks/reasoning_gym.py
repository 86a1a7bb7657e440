"""Problems of reasoning_gym (https://github.com/open-thought/reasoning-gym): its procedural
datasets, one or several, each with its own scorer.

How items are made is `topr.tasks.gym_problems`'s business, how an answer is read and scored that of
`topr.grading.gym`.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

from topr.config.gym import GymDatasetConfig, ReasoningGymConfig
from topr.grading.gym import LABEL
from topr.grading.gym_datasets import ENTRY
from topr.records import Problem, Split
from topr.tasks.gym_problems import Item, Wanted, make_items, seed_of
from topr.tasks.prompts import TextForm, make_prompt
from topr.tasks.splits import Splits, pick

INSTRUCTION = f'{{question}}\n\nEnd with "{LABEL}" and the answer alone.'
"""Stands in for the examples where there are none: nothing else says how an answer ends."""
FORM = TextForm(question=f"Question: {{question}}\n{LABEL}", answer=" {answer}\n\n")
_EXAMPLES = "few_shot"


class ReasoningGymTask:
    """Problems of reasoning_gym, made from a seed.

    The same section makes the same problems everywhere, as long as the version of reasoning_gym is
    the same. Splits differ in their seeds, and no question is in two of them.
    """

    name = "reasoning_gym"
    grader = "reasoning_gym"

    def __init__(self, config: ReasoningGymConfig) -> None:
        self._config = config
        # A base model writes another question after its answer.
        self.stop: tuple[str, ...] = ("\nQuestion:",) if config.prompt == "plain" else ()

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split; those of several datasets are mixed.

        Raises:
            ConfigError: the package is not installed, a dataset or a parameter is refused, or the
                recipe gives this split no problems.
            DataError: a dataset has not so many different questions.

        """
        return pick(self._splits, split, what=self.name)

    @cached_property
    def _splits(self) -> Splits:
        config, parts = self._config, self._config.parts
        # Examples and the test first: they stay the same where there are more problems to train on.
        counts = {
            _EXAMPLES: [config.few_shot] * len(parts),
            Split.TEST.value: _shares(parts, config.test_problems),
            Split.VALIDATION.value: _shares(parts, config.validation_problems),
            Split.TRAIN.value: _shares(parts, config.train_problems),
        }
        wanted = [
            Wanted(
                split=split,
                part=number,
                dataset=part.name,
                parameters=part.config,
                seed=seed_of(config.seed, split, number),
                count=count,
            )
            for split, of_parts in counts.items()
            for number, (part, count) in enumerate(zip(parts, of_parts, strict=True))
            if count
        ]
        items = make_items(
            wanted,
            reward=config.reward,
            threshold=config.threshold,
            label=config.prompt == "plain",
        )
        return {split: self._problems(items, split) for split in Split}

    def _problems(self, items: Sequence[Item], split: Split) -> tuple[Problem, ...]:
        examples: dict[int, list[tuple[str, str]]] = {}
        for item in items:
            if item.split == _EXAMPLES:
                worked = (item.question.strip(), self._worked(item.answer))
                examples.setdefault(item.part, []).append(worked)
        problems = [
            Problem(
                id=f"{item.dataset}-{_digest(item.question)}",
                prompt=make_prompt(
                    self._config,
                    item.question.strip(),
                    FORM,
                    instruction=INSTRUCTION,
                    examples=examples.get(item.part, []),
                ),
                answer=item.answer,
                question=item.question.strip(),
                columns={"dataset": item.dataset, ENTRY: item.entry},
            )
            for item in items
            if item.split == split.value
        ]
        if len(self._config.parts) > 1:
            problems.sort(key=lambda problem: _digest(problem.id))
        return tuple(problems)

    def _worked(self, answer: str) -> str:
        """An example's answer: plain text announces it in `FORM` already."""
        return answer if self._config.prompt == "plain" else f"{LABEL} {answer}"


def _shares(parts: Sequence[GymDatasetConfig], total: int) -> list[int]:
    """Return how many of a split's problems are of each dataset: their weights' shares, rounded so
    that none is left over.
    """
    weights = [part.weight for part in parts]
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
