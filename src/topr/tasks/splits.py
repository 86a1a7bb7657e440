"""Problems into train, validation and test: shuffled by a seed, and never overlapping.

The order is that of sha256(seed, id): it depends on nothing but the seed and the ids, not on the
order of the rows, a library's version, or which other problems there are. So a limit keeps the
same problems when rows are added, up to those that come in between.
"""

import hashlib
import logging
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from topr.errors import ConfigError, DataError
from topr.records import Message, Problem
from topr.tasks.base import Split

logger = logging.getLogger(__name__)

Splits = Mapping[Split, tuple[Problem, ...]]


def question_key(prompt: str | tuple[Message, ...]) -> Hashable:
    """Return what two prompts share if they ask the same: their words, whatever the spacing."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return tuple((message.role, " ".join(message.content.split())) for message in prompt)


def shuffled(problems: Iterable[Problem], seed: int) -> tuple[Problem, ...]:
    """Return the problems in the order that the seed fixes."""

    def place(problem: Problem) -> bytes:
        return hashlib.sha256(f"{seed}\0{problem.id}".encode()).digest()

    return tuple(sorted(problems, key=place))


def distinct(
    problems: Sequence[Problem], *, what: str, known: Collection[Problem] = ()
) -> tuple[Problem, ...]:
    """Return the problems without those asked before, here or among `known`.

    One question in two splits would be trained on and then reported on. The copy in the training
    data goes, so that test sets stay those that others report on.
    """
    seen = {question_key(problem.prompt) for problem in known}
    kept = []
    for problem in problems:
        key = question_key(problem.prompt)
        if key not in seen:
            seen.add(key)
            kept.append(problem)
    if len(kept) < len(problems):
        logger.warning(
            "%s: %d of %d problems left out: the same question is there twice, or in another split",
            what,
            len(problems) - len(kept),
            len(problems),
        )
    return tuple(kept)


def divide(
    train: Sequence[Problem],
    test: Sequence[Problem] | None,
    *,
    what: str,
    seed: int,
    validation_problems: int,
    hold_out: int = 0,
    train_problems: int | None = None,
    test_problems: int | None = None,
) -> Splits:
    """Divide problems into splits.

    Args:
        train: problems to train on and to hold some out of.
        test: problems to report on; None: `hold_out` of `train`.
        what: the task, for messages.
        seed: of the shuffling.
        validation_problems: problems held out of `train`, to make choices on.
        hold_out: with `test` None, problems held out of `train` to report on.
        train_problems: most problems kept to train on; None: all.
        test_problems: most problems kept to report on; None: all.

    Raises:
        DataError: two problems share an id, or fewer are left than are held out.

    """
    # Test first: a question that is also in the training data belongs to the test.
    tested = shuffled(distinct(test or (), what=f"{what}, test"), seed)
    pool = shuffled(distinct(train, what=f"{what}, train", known=tested), seed)
    _check_ids([*tested, *pool], what)
    if hold_out + validation_problems >= len(pool):
        raise DataError(
            f"{what}: {len(pool)} training problems, of which {validation_problems} for validation "
            f"and {hold_out} for the test are to be held out: nothing is left to train on. Lower "
            "task.validation_problems or task.test_problems"
        )
    held = hold_out + validation_problems
    return {
        Split.TRAIN: _first(pool[held:], train_problems, f"{what}: task.train_problems"),
        Split.VALIDATION: pool[hold_out:held],
        Split.TEST: pool[:hold_out]
        if test is None
        else _first(tested, test_problems, f"{what}: task.test_problems"),
    }


def pick(splits: Splits, split: Split, *, what: str) -> tuple[Problem, ...]:
    """Return one split.

    Raises:
        ConfigError: the recipe gives this split no problems.

    """
    if not splits[split]:
        raise ConfigError(
            f"{what} has no {split} problems: set task.{split}_problems to how many to hold out of "
            "the training problems" + (", or task.test_file" if split is Split.TEST else "")
        )
    return splits[split]


def _first(problems: tuple[Problem, ...], limit: int | None, setting: str) -> tuple[Problem, ...]:
    if limit is not None and limit > len(problems):
        logger.warning("%s=%d, but there are %d: all are used", setting, limit, len(problems))
    return problems[:limit]


def _check_ids(problems: Sequence[Problem], what: str) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(
                f"{what}: two problems have the id {problem.id!r}, expected one each over all "
                "files. Rename one, or leave the id column out to have them named here"
            )
        seen.add(problem.id)
