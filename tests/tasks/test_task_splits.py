"""Dividing problems: nothing overlaps, the seed alone fixes the order."""

import logging
import random

import pytest

from topr.errors import ConfigError, DataError
from topr.records import Message, Problem
from topr.tasks.base import Split
from topr.tasks.splits import distinct, divide, pick, question_key, shuffled


def make(count: int, prefix: str = "p") -> list[Problem]:
    return [
        Problem(id=f"{prefix}{i}", prompt=f"Question {prefix}{i}?", answer=str(i))
        for i in range(count)
    ]


def ids(problems) -> list[str]:
    return [problem.id for problem in problems]


def test_order_depends_on_seed_and_ids_alone():
    problems = make(50)
    mixed = random.Random(1).sample(problems, k=50)
    assert ids(shuffled(mixed, 0)) == ids(shuffled(problems, 0))
    assert ids(shuffled(problems, 1)) != ids(shuffled(problems, 0))
    assert sorted(ids(shuffled(problems, 1))) == sorted(ids(problems))


def test_order_is_that_of_earlier_releases():
    # By hand: sorted(hashlib.sha256(f"0\0p{i}".encode()).hexdigest() for i in range(5)).
    # An order that moves between releases would move problems between splits.
    assert ids(shuffled(make(5), 0)) == ["p2", "p1", "p3", "p0", "p4"]


def test_removing_a_problem_keeps_the_order_of_the_rest():
    problems = make(30)
    rest = [problem for problem in shuffled(problems, 3) if problem.id != "p7"]
    assert list(shuffled([p for p in problems if p.id != "p7"], 3)) == rest


def test_question_key_ignores_spacing_but_not_words_or_roles():
    assert question_key("What is\n 2 + 2?\n") == question_key("What is 2 + 2?")
    assert question_key("What is 2 + 2?") != question_key("What is 2 + 3?")
    user, system = Message(role="user", content="x"), Message(role="system", content="x")
    assert question_key((user,)) != question_key((system,))


def test_held_out_problems_leave_the_training_split():
    splits = divide(
        make(100), None, what="t", seed=0, validation_problems=20, hold_out=30, train_problems=10
    )
    assert {split: len(problems) for split, problems in splits.items()} == {
        Split.TRAIN: 10,
        Split.VALIDATION: 20,
        Split.TEST: 30,
    }
    together = [problem.id for problems in splits.values() for problem in problems]
    assert len(set(together)) == len(together) == 60


def test_a_test_question_leaves_the_training_data_even_if_spaced_differently(caplog):
    test = [Problem(id="test", prompt=" Question\np3? ", answer="3")]
    with caplog.at_level(logging.WARNING):
        splits = divide(make(10), test, what="t", seed=0, validation_problems=4)
    assert "p3" not in ids(splits[Split.TRAIN]) + ids(splits[Split.VALIDATION])
    assert ids(splits[Split.TEST]) == ["test"]
    assert len(splits[Split.TRAIN]) == 5
    assert "1 of 10 problems left out" in caplog.text


def test_a_test_question_beyond_the_limit_is_not_trained_on_either():
    # Raising the limit later must not find its new problems trained on.
    test = [Problem(id=f"t{i}", prompt=f"Question p{i}?", answer="") for i in range(5)]
    splits = divide(make(10), test, what="t", seed=0, validation_problems=0, test_problems=1)
    assert sorted(ids(splits[Split.TRAIN])) == ["p5", "p6", "p7", "p8", "p9"]
    assert len(splits[Split.TEST]) == 1


def test_twins_cannot_end_in_two_splits():
    twins = [Problem(id=f"twin{i}", prompt="Same?", answer="1") for i in range(8)]
    assert ids(distinct(twins, what="t")) == ["twin0"]
    splits = divide(twins + make(3), None, what="t", seed=0, validation_problems=1, hold_out=1)
    assert sum(p.prompt == "Same?" for problems in splits.values() for p in problems) == 1


def test_one_id_twice_over_both_files_is_refused_unless_it_is_one_question():
    other = [Problem(id="p0", prompt="Another question?", answer="0")]
    with pytest.raises(DataError, match=r"id 'p0'.*Rename one"):
        divide(make(3), other, what="t", seed=0, validation_problems=0)
    splits = divide(make(3), make(1), what="t", seed=0, validation_problems=0)
    assert sorted(ids(splits[Split.TRAIN])) == ["p1", "p2"]


def test_holding_out_everything_is_refused():
    with pytest.raises(DataError, match=r"8 training problems.*5 for validation.*3 for the test"):
        divide(make(8), None, what="t", seed=0, validation_problems=5, hold_out=3)


def test_a_limit_that_does_nothing_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        divide(make(8), None, what="t", seed=0, validation_problems=0, train_problems=9)
    assert "task.train_problems=9, but there are 8" in caplog.text


def test_asking_for_a_split_without_problems_says_which_setting_makes_one():
    splits = divide(make(8), None, what="t", seed=0, validation_problems=0)
    with pytest.raises(ConfigError, match=r"t has no test problems: set task.test_problems"):
        pick(splits, Split.TEST, what="t")
    with pytest.raises(ConfigError, match=r"set task\.validation_problems"):
        pick(splits, Split.VALIDATION, what="t")
