"""Items of reasoning_gym's datasets, different from each other: made in a process of their own.

`make_items` starts that process, whose `main` it calls: a fixed hash seed, so that datasets that go
through sets make the same items in every process, and what they print or seed stays there. No
splits and no prompts.
"""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topr.errors import ConfigError, DataError
from topr.grading.gym_datasets import Entry, open_dataset, reference, score, version

_PATIENCE = 500
"""Items in a row that are of no use (asked before, mostly) before a dataset counts as exhausted."""
_SHOWN = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """So many items of one dataset for one split."""

    split: str
    part: int
    """Number of the dataset among those of the task."""
    dataset: str
    parameters: Mapping[str, Any]
    seed: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One item."""

    split: str
    part: int
    dataset: str
    question: str
    answer: str
    """The reference answer."""
    entry: str
    """See `topr.grading.gym_datasets.Entry.to_json`."""


def seed_of(seed: int, *names: str | int) -> int:
    """Return a seed for one part of a dataset. Datasets add an item's number to theirs, so that
    neighbouring seeds would give two parts the same items.
    """
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest()[:4]) >> 2


def make_items(
    wanted: Sequence[Wanted], *, reward: str, threshold: float, label: bool
) -> list[Item]:
    """Return items for all splits, in the order of `wanted`; no question is there twice.

    Args:
        wanted: what to make. An earlier one keeps a question that a later one would make too.
        reward: for each entry, as the further ones: see `Entry`.
        threshold: as `reward`.
        label: as `reward`.

    Raises:
        ConfigError: the package is not installed, or a dataset or its parameters are refused.
        DataError: a dataset has not so many different questions, or fails.

    """
    version()
    scoring = {"reward": reward, "threshold": threshold, "label": label}
    paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from topr.tasks.gym_problems import main; main()"],
        input=pickle.dumps((wanted, scoring)),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
    )
    if done.returncode:
        raise DataError(
            f"making problems of reasoning_gym ended with exit code {done.returncode}: "
            f"{done.stderr.decode(errors='replace').strip()[-_SHOWN:]}"
        )
    found: list[Item] | ConfigError | DataError = pickle.loads(done.stdout)  # noqa: S301 our own
    if isinstance(found, Exception):
        raise found
    return found


def _made(wanted: Sequence[Wanted], scoring: Mapping[str, Any]) -> Iterator[Item]:
    seen: set[str] = set()
    for one in wanted:
        left, wasted, chunk = one.count, 0, 0
        while left:
            if wasted > _PATIENCE:
                raise _exhausted(one, one.count - left)
            made = 0
            for item in _items(one, chunk):
                made, wasted = made + 1, wasted + 1
                key = " ".join(str(item["question"]).split())
                if key not in seen and (entry := _entry(one, item, scoring)) is not None:
                    seen.add(key)
                    left, wasted = left - 1, 0
                    yield Item(
                        split=one.split,
                        part=one.part,
                        dataset=one.dataset,
                        question=entry.question,
                        answer=entry.answer,
                        entry=entry.to_json(),
                    )
                if not left or wasted > _PATIENCE:
                    break
            if not made:  # an index that is not there: the dataset, or one of its parameters
                raise _exhausted(one, one.count - left)
            chunk += 1


def _items(one: Wanted, chunk: int) -> Iterator[Mapping[str, Any]]:
    """Yield as many items as are wanted, others for each chunk; fewer where there are no more."""
    seed = seed_of(one.seed, chunk)
    dataset = open_dataset(one.dataset, one.parameters, seed=seed, size=one.count)
    for number in range(one.count):
        random.seed(seed + number)  # list_functions draws from the module's own generator
        try:
            yield dataset[number]
        except IndexError:
            break
        except Exception as error:
            raise DataError(
                f"dataset {one.dataset!r} of reasoning_gym with {dict(one.parameters)} failed to "
                f"make an item: {type(error).__name__}: {error}. Try other parameters"
            ) from error


def _entry(one: Wanted, item: Mapping[str, Any], scoring: Mapping[str, Any]) -> Entry | None:
    """Return the entry of an item; None where its reference answer is empty or not right."""
    answer = reference(one.dataset, item)
    entry = Entry(
        dataset=one.dataset,
        parameters=one.parameters,
        version=version(),
        question=str(item["question"]),
        answer=answer,
        metadata=item["metadata"],
        **scoring,
    )
    return entry if answer.strip() and score(entry, answer) >= 1.0 else None


def _exhausted(one: Wanted, found: int) -> DataError:
    return DataError(
        f"dataset {one.dataset!r} with {dict(one.parameters)} gave {found} questions for "
        f"{one.split} that are in no other split, then none in {_PATIENCE} items: {one.count} were "
        f"asked for. Lower task.{one.split}_problems, or set task.parameters that allow more"
    )


def main() -> None:
    """Read an order, and write its items or why there are none."""
    wanted, scoring = pickle.load(sys.stdin.buffer)  # noqa: S301 from `make_items`
    out, sys.stdout = sys.stdout, sys.stderr  # datasets print
    found: list[Item] | ConfigError | DataError
    try:
        found = list(_made(wanted, scoring))
    except (ConfigError, DataError) as error:
        found = error
    out.buffer.write(pickle.dumps(found))
    out.flush()
