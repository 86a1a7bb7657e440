"""Problems of reasoning_gym: the same everywhere, apart between splits, refused where they must."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from topr.config import ReasoningGymConfig, load_recipe
from topr.config.mistakes import validate
from topr.errors import ConfigError, DataError
from topr.grading import gym_datasets
from topr.grading.gym_datasets import open_dataset
from topr.records import Problem, Split
from topr.runs.recipe_checks import check_recipe
from topr.studies.sharing import draws_fingerprint
from topr.tasks import load_task
from topr.tasks.gym_problems import Item, Wanted, make_items, seed_of

SMALL = {"train_problems": 12, "validation_problems": 5, "test_problems": 6}
SUMS = {"dataset": "chain_sum", "parameters": {"max_terms": 2, "max_digits": 2}}


def problems_of(**section) -> dict[Split, list[Problem]]:
    values = {"name": "reasoning_gym", "prompt": "chat", **SMALL, **section}
    task = load_task(validate(ReasoningGymConfig, values, where="task"))
    return {split: list(task.problems(split)) for split in Split}


@pytest.fixture(scope="module")
def sums():
    """Return problems with examples in a chat."""
    return problems_of(**SUMS, few_shot=2)


def test_splits_are_apart_and_ids_are_of_the_questions(sums):
    assert [len(sums[split]) for split in Split] == [12, 5, 6]
    problems = [problem for split in Split for problem in sums[split]]
    examples = [turn.content for turn in problems[0].prompt if turn.role == "user"][:2]
    questions = [problem.question for problem in problems]
    assert len({*questions, *examples}) == 12 + 5 + 6 + 2
    assert len({problem.id for problem in problems}) == 12 + 5 + 6
    entry = json.loads(problems[0].columns["entry"])
    digest = hashlib.sha256(entry["question"].encode()).hexdigest()[:12]
    assert problems[0].id == f"chain_sum-{digest}"
    assert entry["answer"] == problems[0].answer


def test_a_split_stays_as_it_is_where_another_one_grows(sums):
    more = problems_of(**SUMS, few_shot=2, train_problems=30, validation_problems=9)
    assert more[Split.TEST] == sums[Split.TEST]
    assert more[Split.VALIDATION][0] == sums[Split.VALIDATION][0]
    other = problems_of(**SUMS, few_shot=2, seed=1)
    assert not {p.id for p in other[Split.TEST]} & {p.id for p in sums[Split.TEST]}


def test_neighbouring_seeds_of_the_package_share_items_and_our_splits_do_not():
    """Datasets add an item's number to their seed: seed 0, item 1 is seed 1, item 0."""
    from reasoning_gym import create_dataset

    first, second = (create_dataset("chain_sum", seed=seed, size=9) for seed in (0, 1))
    assert [first[i]["question"] for i in (1, 2)] == [second[i]["question"] for i in (0, 1)]
    seeds = [seed_of(seed, split) for seed in range(50) for split in Split]
    assert min(abs(a - b) for a, b in itertools.combinations(seeds, 2)) > 1000


def test_problems_do_not_depend_on_the_process():
    """These datasets go through sets of text, whose order differs from process to process."""
    section = {
        "datasets": [
            {"name": name} for name in ("isomorphic_strings", "ransom_note", "word_ladder")
        ],
        "prompt": "chat",
        **dict.fromkeys(SMALL, 3),
    }
    code = (
        "import sys, json\n"
        "from topr.config import ReasoningGymConfig\n"
        "from topr.tasks import Split, load_task\n"
        "config = ReasoningGymConfig(name='reasoning_gym', **json.loads(sys.argv[1]))\n"
        "task = load_task(config)\n"
        "print([[p.id, p.answer, p.columns] for s in Split for p in task.problems(s)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, json.dumps(section)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert b"ransom_note-" in outputs[0]


@pytest.fixture
def two_items(monkeypatch):
    """Make items of which questions and answers are known: an example, and a test problem."""

    def make(wanted, **scoring):
        return [
            Item(
                split=one.split, part=one.part, dataset=one.dataset, answer=str(n),
                question=f"{n}?\n", entry=json.dumps(scoring),
            )
            for one in wanted
            for n in range(one.count * (100 if one.split == "few_shot" else 1))[-one.count :]
        ]  # fmt: skip

    monkeypatch.setattr("topr.tasks.reasoning_gym.make_items", make)


def test_prompts(two_items):
    def first(**section):
        return problems_of(dataset="gcd", **section)[Split.TEST][0]

    shown = first(few_shot=1)
    assert shown.question == "0?"
    assert [(turn.role, turn.content) for turn in shown.prompt] == [
        ("user", "99?"), ("assistant", "Answer: 99"), ("user", "0?"),
    ]  # fmt: skip
    assert json.loads(shown.columns["entry"])["label"] is False
    system, user = first(system_prompt="Be brief.").prompt
    assert (system.role, system.content) == ("system", "Be brief.")
    assert user.content == '0?\n\nEnd with "Answer:" and the answer alone.'
    told = first(few_shot=1, instruction="Think.")
    assert [turn.content for turn in told.prompt[::2]] == ["Think.\n\n99?", "Think.\n\n0?"]

    plain = first(few_shot=1, prompt="plain")
    assert plain.prompt == "Question: 99?\nAnswer: 99\n\nQuestion: 0?\nAnswer:"
    assert json.loads(plain.columns["entry"])["label"] is True
    around = first(prompt="plain", instruction="Say {question}!")
    assert around.prompt == "Question: Say 0?!\nAnswer:"


def test_several_datasets_have_the_shares_of_their_weights():
    drawn = problems_of(
        datasets=[
            {"name": "chain_sum", "weight": 2, "config": {"max_terms": 2}},
            {"name": "letter_counting"},
        ],
        few_shot=1,
    )
    for split, expected in (
        (Split.TRAIN, (8, 4)),
        (Split.TEST, (4, 2)),
        (Split.VALIDATION, (3, 2)),
    ):
        found = Counter(problem.columns["dataset"] for problem in drawn[split])
        assert (found["chain_sum"], found["letter_counting"]) == expected
    names = [problem.columns["dataset"] for problem in drawn[Split.TRAIN]]
    assert names != sorted(names)  # mixed
    for problem in drawn[Split.TRAIN]:  # an example of its own dataset
        words = "letter" in problem.prompt[-1].content
        assert ("letter" in problem.prompt[0].content) is words
        entry = json.loads(problem.columns["entry"])
        assert entry["parameters"] == ({} if words else {"max_terms": 2})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "neither"),
        ({"dataset": "gcd", "datasets": [{"name": "lcm"}]}, "both"),
        ({"datasets": [{"name": "lcm"}], "parameters": {"a": 1}}, "config"),
        ({"datasets": [{"name": "lcm"}] * 7}, "7 datasets and a split of 6"),
        ({"dataset": "gcd", "threshold": 0}, "threshold"),
        ({"dataset": "gcd", "prompt": "plain", "system_prompt": "x"}, "system_prompt"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(section, words):
    with pytest.raises(ConfigError, match=words):
        problems_of(**section)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("leg_countin", {}, "leg_counting"),
        ("gcd", {"max": 3}, "max_value"),
        ("gcd", {"max_value": 0}, "max_value"),
        ("gcd", {"max_value": "x"}, "max_value"),
        ("gcd", {"seed": 3}, "settings of the task"),
        ("time_intervals", {"min_date": "soon"}, "soon.*date"),
    ],
)
def test_datasets_and_parameters_that_are_not_there_are_refused(name, parameters, words):
    with pytest.raises(ConfigError, match=rf"(?s){words}"):
        open_dataset(name, parameters, seed=1, size=1)


def test_a_run_is_refused_with_what_the_other_process_found():
    with pytest.raises(ConfigError, match=r"rush_hour.*no reference answers"):
        problems_of(dataset="rush_hour")
    few = {"dataset": "products", "parameters": {"max_terms": 2, "max_digits": 1}}
    with pytest.raises(DataError, match=r"products.*train.*99.*task\.train_problems"):
        problems_of(**few, train_problems=99)


def test_parameters_that_allow_no_item_end_with_an_error():
    wanted = Wanted(
        split="train", part=0, dataset="knights_knaves",
        parameters={"depth_constraint": 1}, seed=1, count=2,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"knights_knaves.*depth_constraint"):
        make_items([wanted], reward="threshold", threshold=1.0, label=False)


def test_dates_are_read_from_text():
    parameters = {"task_types": ["date"], "min_date": "2020-01-01", "max_date": "2021-01-01",
                  "max_date_difference_days": 30}  # fmt: skip
    dataset = open_dataset("time_intervals", parameters, seed=1, size=9)
    assert all("202" in dataset[i]["question"] for i in range(9))


def gym_recipe(*overrides: str):
    return load_recipe("reasoning-gym-small", overrides)


def test_the_version_of_the_package_is_part_of_a_run(monkeypatch):
    before = draws_fingerprint(gym_recipe())
    assert draws_fingerprint(gym_recipe()) == before
    monkeypatch.setattr(gym_datasets, "version", lambda: "0.0.1")
    assert draws_fingerprint(gym_recipe()) != before
    assert draws_fingerprint(gym_recipe("task.threshold=0.5")) != before


def test_settings_that_need_rewards_of_two_kinds_are_refused_before_anything_is_drawn():
    linear = ("task.reward=linear", "train.baseline=null", "train.effective_positive_share=0.2")
    with pytest.raises(ConfigError, match=r"effective_positive_share=0\.2.*task\.reward=linear"):
        check_recipe(gym_recipe(*linear))
    check_recipe(gym_recipe("task.reward=linear"))
    check_recipe(gym_recipe(*linear[1:]))
