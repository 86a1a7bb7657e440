"""The word problems: their family, their arithmetic, and splits that never meet."""

import re
from itertools import islice

import pytest
from pydantic import ValidationError

from topr.config import ArithmeticConfig
from topr.config.tasks import WarmupConfig
from topr.errors import ConfigError
from topr.tasks.arithmetic import ArithmeticTask
from topr.tasks.arithmetic.demonstrations import solution
from topr.tasks.arithmetic.problems import Kind, Operation, WordProblem, region, stream
from topr.tasks.base import Split


def make(start: int, *operations: Operation) -> WordProblem:
    clauses = tuple(f"clause {index}" for index in range(len(operations)))
    return WordProblem(
        start=start, operations=operations, name="Ann", things="pens", clauses=clauses
    )


def draw(split: Split, count: int, *, seed: int | str = 0) -> list[WordProblem]:
    return list(islice(stream(split, seed=seed, min_steps=2, max_steps=4), count))


def config(**values: int) -> ArithmeticConfig:
    return ArithmeticConfig(name="arithmetic", **values)


def test_totals_by_hand() -> None:
    problem = make(
        12,
        Operation(kind=Kind.PACKS, portions=3, size=4),
        Operation(kind=Kind.LOSE, size=5),
        Operation(kind=Kind.SHARE, portions=2, size=3),
        Operation(kind=Kind.DOUBLE),
        Operation(kind=Kind.GAIN, size=9),
    )
    assert problem.totals == (12, 24, 19, 13, 26, 35)
    assert problem.answer == 35
    assert problem.skeleton == "12 P3x4 -5 M2x3 D +9"


def test_every_problem_is_of_the_family() -> None:
    for problem in draw(Split.TRAIN, 2000):
        assert 3 <= problem.start <= 20
        assert all(0 <= total <= 50 for total in problem.totals)
        assert 2 <= len(problem.operations) <= 4
        assert sum(operation.steps for operation in problem.operations) <= 5
        for operation in problem.operations:
            if operation.kind in (Kind.PACKS, Kind.SHARE):
                assert operation.portions in range(2, 5)
                assert operation.size in range(2, 6)
            elif operation.kind is not Kind.DOUBLE:
                assert operation.size in range(2, 10)


def solve(question: str) -> int:
    """Solve a question from its words alone, by another path than the code under test."""
    first, *clauses, last = question.split(" . ")
    total = int(first.split()[2])
    assert last == f"How many {first.split()[3]} now ?"
    for clause in clauses:
        verb, numbers = clause.split()[0], [int(word) for word in clause.split() if word.isdigit()]
        amount = numbers[0] * numbers[1] if len(numbers) == 2 else sum(numbers)
        change = {"buys": 1, "finds": 1, "gets": 1, "loses": -1, "gives": -1, "sells": -1}
        total = 2 * total if verb == "doubles" else total + change[verb] * amount
    return total


def test_the_words_say_what_the_numbers_say() -> None:
    for problem in draw(Split.TRAIN, 2000):
        assert solve(problem.text) == problem.answer


def test_solution_is_right_in_every_step() -> None:
    equation = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
    calculate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for problem in draw(Split.TRAIN, 500):
        *lines, last = solution(problem).split(" . ")
        assert last == f"The answer is {problem.answer}"
        assert len(lines) == sum(operation.steps for operation in problem.operations)
        for line in lines:
            match = equation.fullmatch(line)
            assert match is not None
            left, sign, right, result = match.groups()
            assert calculate[sign](int(left), int(right)) == int(result)
        assert lines[-1].endswith(f" = {problem.answer}")


def test_splits_never_share_a_skeleton_whatever_the_seeds() -> None:
    """And so no text, since a question's words fix its skeleton (`solve` reads it off)."""
    seen: dict[Split, set[str]] = {split: set() for split in Split}
    texts: dict[Split, set[str]] = {split: set() for split in Split}
    for split in Split:
        for seed in (0, 1, "warm-up 0"):
            for problem in draw(split, 1500, seed=seed):
                seen[split].add(problem.skeleton)
                texts[split].add(problem.text)
    assert min(len(skeletons) for skeletons in seen.values()) > 2000
    for sets in (seen, texts):
        train, validation, test = (sets[split] for split in Split)
        assert train.isdisjoint(test)
        assert train.isdisjoint(validation)
        assert validation.isdisjoint(test)


def test_a_skeleton_has_one_region_and_names_play_no_part() -> None:
    """Fixed values: a change of the rule would let old rollouts leak into new test sets."""
    regions = [region(f"{start} +2 -3") for start in (10, 11, 12)]
    assert regions == [Split.TRAIN, Split.TEST, Split.VALIDATION]
    one = make(3, Operation(kind=Kind.GAIN, size=2))
    other = WordProblem(
        start=3, operations=one.operations, name="Bob", things="nuts", clauses=("finds 2",)
    )
    assert region(one.skeleton) is region(other.skeleton)


def test_task_gives_what_the_config_asks_for() -> None:
    task = ArithmeticTask(config(train_problems=300, validation_problems=0, test_problems=200))
    train, test = task.problems(Split.TRAIN), task.problems(Split.TEST)
    assert [len(train), len(test), len(task.problems(Split.VALIDATION))] == [300, 200, 0]
    assert len({problem.id for problem in [*train, *test]}) == 500
    assert len({problem.prompt for problem in [*train, *test]}) == 500
    for problem in train:
        assert isinstance(problem.prompt, str)
        assert str(solve(problem.prompt)) == problem.answer
        assert problem.columns["solution"].endswith(f"The answer is {problem.answer}")
    assert (task.name, task.grader, task.stop) == ("arithmetic", "numeric", ())


def test_problems_depend_on_the_seed_alone() -> None:
    first = ArithmeticTask(config()).problems(Split.TEST)
    assert first == ArithmeticTask(config()).problems(Split.TEST)
    # Asking for fewer gives the first of them: other counts change no problem.
    assert first[:50] == ArithmeticTask(config(test_problems=50)).problems(Split.TEST)
    other = ArithmeticTask(config(seed=1)).problems(Split.TEST)
    assert len({p.prompt for p in first} & {p.prompt for p in other}) < 5


def test_too_many_problems_is_an_error_with_the_number_that_there_are() -> None:
    task = ArithmeticTask(config(min_steps=1, max_steps=1, test_problems=10_000))
    # 18 starts times at most 8 + 8 + 12 + 12 + 1 operations, of which an eighth is for tests.
    with pytest.raises(ConfigError, match=r"only \d+ different") as caught:
        task.problems(Split.TEST)
    found = re.search(r"only (\d+) different", str(caught.value))
    assert found is not None
    assert 40 < int(found[1]) < 18 * 41 / 4


def test_longer_problems_stay_in_range() -> None:
    for problem in islice(stream(Split.TRAIN, seed=0, min_steps=8, max_steps=12), 200):
        assert 8 <= len(problem.operations) <= 12
        assert sum(operation.steps for operation in problem.operations) <= 13
        assert all(0 <= total <= 50 for total in problem.totals)


@pytest.mark.parametrize("values", [{"min_steps": 5}, {"max_steps": 13}, {"max_steps": 1}])
def test_impossible_steps_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        config(**values)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_heads=3"):
        WarmupConfig(num_heads=3)
