"""Answers to problems of reasoning_gym: read, guarded, scored by the dataset, made into rewards."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from topr.config import GradeConfig
from topr.errors import ConfigError, GradingError
from topr.grading import grade_all, grade_table, gym_datasets, needs_columns
from topr.grading.gym import grade_gym
from topr.grading.gym_datasets import REFUSED, Entry, open_dataset, version
from topr.records import Grade, Outcome
from topr.tasks.gym_problems import Wanted, make_items

SCORING = {"reward": "threshold", "threshold": 1.0, "label": False}
EVALUATING = (
    "countdown", "polynomial_multiplication", "simple_integration",
    "intermediate_integration", "binary_matrix", "n_queens", "spiral_matrix", "string_insertion",
)  # fmt: skip
"""Datasets whose scorers run an answer as Python."""


@pytest.fixture(scope="module")
def items():
    """Return items of every dataset that is not refused; fewer of those that take long."""
    slow = {"sokoban", "knight_swap", "zebra_puzzles", "intermediate_integration"}
    wanted = [
        Wanted(split="train", part=part, dataset=name, parameters={}, seed=5, count=count)
        for part, name in enumerate(sorted(DATASETS.keys() - REFUSED.keys()))
        for count in [2 if name in slow else 4]
    ]
    return make_items(wanted, **SCORING)


def entry_of(dataset: str, question: str, answer: str, **changes) -> str:
    fields = {"parameters": {}, "version": version(), "metadata": {}, **SCORING, **changes}
    return Entry(dataset=dataset, question=question, answer=answer, **fields).to_json()


def backwards(answer: str = "dcba", **changes) -> str:
    return entry_of("spell_backward", "Spell abcd backward", answer, **changes)


def outcome(completion: str, entry: str) -> Outcome:
    return grade_gym(completion, entry).outcome


def graded(work: list[tuple[str, str]]) -> list[Grade]:
    """Return grades as a run gives them: from a worker process."""
    return grade_all(work, "reasoning_gym", config=GradeConfig(workers=1, timeout=60))


def test_of_every_dataset_the_reference_is_right_however_it_is_announced(items):
    assert {item.dataset for item in items} == DATASETS.keys() - REFUSED.keys()
    forms = (
        "I think.\n<answer>{}</answer>", "I think.\n\nAnswer: {}", "**Answer:**\n{}\n", "{}",
        "<think>Answer: 3 or 4</think>Answer: {}",
    )  # fmt: skip
    asked = [(item, form.format(item.answer)) for item in items for form in forms]
    grades = graded([(text, item.entry) for item, text in asked])
    for (item, text), grade in zip(asked, grades, strict=True):
        assert grade.outcome is Outcome.CORRECT, (item.dataset, text, grade)
        assert grade.reward == 1.0


def test_of_every_dataset_other_text_is_not_right(items):
    asked = []
    for item in items:
        number = r"\d+(?:\.\d+)?"
        others = {re.sub(number, word, item.answer) for word in ("nan", "Infinity", "7777777")}
        others |= {"garbage", "0", "[]", "[[1]]", "{}", "nan", "inf", "True", "No", "x", "null"}
        asked += [(item, text) for text in sorted(others) if text != item.answer]
    grades = graded([(f"<answer>{text}</answer>", item.entry) for item, text in asked])
    for (item, text), grade in zip(asked, grades, strict=True):
        expected = (Outcome.WRONG, Outcome.UNPARSEABLE)
        assert grade.outcome in expected, (item.dataset, text, item.answer)


def test_the_answer_to_one_problem_is_not_right_for_others(items):
    """A scorer that takes one answer for every problem teaches a model that answer."""
    asked = [
        (item, other)
        for item in items
        for other in items
        if item.dataset == other.dataset and item.answer != other.answer
    ]
    grades = graded([(f"<answer>{other.answer}</answer>", item.entry) for item, other in asked])
    right = Counter(
        item.dataset
        for (item, _), grade in zip(asked, grades, strict=True)
        if grade.outcome is Outcome.CORRECT
    )
    # A colouring of one graph, or queens on one board, can fit another.
    assert right.keys() <= {"graph_color", "n_queens"}
    assert all(count <= 2 for count in right.values())  # of 12


def test_no_answer_is_no_wrong_answer(items):
    texts = ("", "  \n", "<answer></answer>", "Answer:\n", "I think.\n" * 60)
    grades = graded([(text, item.entry) for item in items for text in texts])
    assert {grade.outcome for grade in grades} == {Outcome.UNPARSEABLE}


def test_refused_datasets_are_as_the_reasons_say():
    unknown = REFUSED.keys() - DATASETS.keys()
    assert not unknown
    made = {
        name: reasoning_gym.create_dataset(name, seed=1, size=8)
        for name in REFUSED
        if name != "composite"
    }
    twenty_four, logic = made["puzzle24"], made["propositional_logic"]
    assert all(twenty_four.score_answer("6*4*1*1", twenty_four[i]) == 1.0 for i in range(8))
    assert any(logic.score_answer("(P ∧ ¬P)", logic[i]) == 1.0 for i in range(8))
    any_text, zero = made["game_of_life_halting"], made["coin_flip"]
    assert all(any_text.score_answer("no idea", any_text[i]) == 1.0 for i in range(8))
    assert any(zero.score_answer("0", zero[i]) == 1.0 and zero[i]["answer"] > "0" for i in range(8))
    assert made["boxnet"][0]["answer"] is made["rush_hour"][0]["answer"] is None
    for name, reason in REFUSED.items():
        with pytest.raises(ConfigError, match=re.escape(reason)):
            open_dataset(name, {}, seed=1, size=1)


def test_nothing_else_in_the_package_evaluates_text():
    """A new version that evaluates text somewhere else has to be looked at."""
    package = Path(reasoning_gym.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in {
                    "eval",
                    "exec",
                    "parse_expr",
                    "sympify",
                    "__import__",
                    "loads",
                    "system",
                }:
                    module = getattr(getattr(node.func, "value", None), "id", "")
                    if module != "json":
                        found.add((path.stem, name))
    scorers = {
        ("binary_matrix", "eval"), ("n_queens", "eval"), ("spiral_matrix", "eval"),
        ("string_insertion", "eval"), ("countdown", "parse_expr"), ("puzzle24", "parse_expr"),
        ("polynomial_multiplication", "parse_expr"), ("simple_integration", "parse_expr"),
        ("intermediate_integration", "parse_expr"),
    }  # fmt: skip
    of_their_own_text = {
        ("basic_arithmetic", "eval"), ("bitwise_arithmetic", "eval"), ("number_sorting", "eval"),
        ("generators_00_49", "eval"), ("generators_50_99", "eval"), ("codeio", "exec"),
        ("propositional_logic", "parse_expr"),  # its own parser, of the same name
    }  # fmt: skip
    assert found == scorers | of_their_own_text
    assert {name for name, _ in scorers} == {*EVALUATING, "puzzle24"}


HOSTILE = (
    "__import__('pathlib').Path({path!r}).touch()",
    "[__import__('pathlib').Path({path!r}).touch()]",
    "eval('__import__(\"pathlib\").Path({path!r}).touch()')",
    "(1).__class__.__base__.__subclasses__()",
    "lambdify((), '__import__(\"pathlib\").Path({path!r}).touch()')()",
)


def test_an_answer_is_never_run(items, tmp_path):
    place = tmp_path / "run"
    entries = {item.dataset: item.entry for item in items if item.dataset in EVALUATING}
    assert entries.keys() == set(EVALUATING)
    texts = [text.format(path=str(place)) for text in HOSTILE]
    work = [(f"<answer>{text}</answer>", entry) for entry in entries.values() for text in texts]
    grades = graded(work)
    assert {grade.reward for grade in grades} == {-1.0}
    assert not place.exists()
    # The package's own scorer does run it.
    code = (
        "import reasoning_gym, sys\n"
        "dataset = reasoning_gym.create_dataset('spiral_matrix', seed=1, size=1)\n"
        "dataset.score_answer(sys.argv[1], dataset[0])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, texts[0]], check=True)
    assert place.exists()


def test_an_answer_that_takes_for_ever_costs_itself_alone():
    entry = entry_of(
        "countdown", "Make 24 of 4 and 6", "4*6", metadata={"numbers": [4, 6], "target": 24}
    )
    work = [("Answer: 9**9**9**9", entry), ("Answer: 6*4", entry)]
    grades = grade_all(work, "reasoning_gym", config=GradeConfig(workers=1, timeout=5))
    assert [grade.outcome for grade in grades] == [Outcome.TIMEOUT, Outcome.CORRECT]


@pytest.mark.parametrize(
    ("reward", "threshold", "found", "expected"),
    [
        # "dcxx" for "dcba" has two of four letters: its score is 0.5.
        ("threshold", 1.0, Outcome.WRONG, -1.0),
        ("threshold", 0.5, Outcome.CORRECT, 1.0),
        ("linear", 1.0, Outcome.WRONG, -0.5),
        ("linear", 0.8, Outcome.WRONG, 0.5 / 0.8 - 1),
        ("linear", 0.5, Outcome.CORRECT, 0.0),
        ("linear", 0.2, Outcome.CORRECT, 0.3 / 0.8),
    ],
)
def test_scores_become_rewards(reward, threshold, found, expected):
    grade = grade_gym("Answer: dcxx", backwards(reward=reward, threshold=threshold))
    assert grade.outcome is found
    assert grade.reward == pytest.approx(expected)
    for answer, extreme in (("dcba", 1.0), ("xxxx", -1.0), ("", -1.0)):
        same = grade_gym(answer, backwards(reward=reward, threshold=threshold))
        assert same.reward == extreme


def test_parts_that_add_up_to_more_than_the_whole_are_not_right():
    dataset = reasoning_gym.create_dataset("spell_backward", seed=1, size=1)
    item = {"question": "", "answer": "ihgfedcba", "metadata": {}}
    assert dataset.score_answer("ihgfedcba and more", item) > 1.0  # nine times 1/9
    assert outcome("Answer: ihgfedcba and more", backwards("ihgfedcba")) is Outcome.WRONG
    assert outcome("Answer: ihgfedcba", backwards("ihgfedcba")) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("dcba", "dcba"),
        ("Answer: dcba.", "dcba"),
        ("**Answer:** `dcba`", "dcba"),
        ('The answer is "dcba".', "dcba"),
        (r"So it is \boxed{dcba}.", "dcba"),
        ("Answer: abcd\n\nNo, that is forward.\n\nAnswer: dcba", "dcba"),
        ("<answer>abcd</answer>, and in fact <answer>\ndcba\n</answer>", "dcba"),
        ("Answer: dcba\n\nQuestion: Spell xy backward\nAnswer: yx", "dcba"),
        ("<think>The answer is abcd.</think>\nAnswer: dcba", "dcba"),
        ("<think>Answer: dcba", None),
        ("I spell it.\nIt is dcba", None),
        ("Answer: abcd or dcba", "abcd or dcba"),
    ],
)
def test_which_answer_is_read(completion, answer):
    grade = grade_gym(completion, backwards())
    assert grade.answer == answer
    found = {"dcba": Outcome.CORRECT, None: Outcome.UNPARSEABLE}.get(answer, Outcome.WRONG)
    assert grade.outcome is found


def test_behind_a_prompt_that_ends_in_answer_the_first_line_is_the_answer():
    completion = " dcba\nThat is abcd, read from its end."
    assert outcome(completion, backwards(label=True)) is Outcome.CORRECT
    assert outcome(completion, backwards(label=False)) is Outcome.UNPARSEABLE
    reasoned = " Let us see.\nFour letters. The answer is dcba."
    assert outcome(reasoned, backwards(label=True)) is Outcome.CORRECT


@pytest.mark.parametrize(
    "completion",
    [
        "The rows go\n\nAnswer: 1 2\n3 4",
        "Answer:\n```\n1 2\n3 4\n```\nThat is all.",
        "<answer>\n1 2\n3 4\n</answer>\nThat is all.",
        "1 2\n3 4",
        "Answer: 1 2\n3 4\n\nQuestion: What comes next?\nAnswer: 5 6",
    ],
)
def test_an_answer_of_several_lines_is_read_to_its_end(completion):
    entry = entry_of("rotate_matrix", "Rotate", "1 2\n3 4")
    assert outcome(completion, entry) is Outcome.CORRECT
    assert outcome(completion.replace("4", "5"), entry) is Outcome.WRONG


def test_other_versions_are_not_scored_by_this_one():
    entry = backwards(version="0.0.1")
    with pytest.raises(GradingError, match=rf"0\.0\.1.*{re.escape(version())}.*pip install"):
        grade_gym("Answer: dcba", entry)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(gym_datasets, "PACKAGE", "no-such-gym")
    version.cache_clear()
    with pytest.raises(ConfigError, match=r"no-such-gym.*pip install '\.\[no-such-gym\]'"):
        make_items([], **SCORING)
    with pytest.raises(GradingError, match="no-such-gym"):
        grade_gym("Answer: dcba", "{}")
    monkeypatch.undo()
    version.cache_clear()


def test_entries_survive_json():
    metadata = {"pair": (1, (2, 3)), "board": {1: "a", 2: (4,)}, "names": ["x"], "none": None}
    fields = {"dataset": "gcd", "question": "?", "answer": "1", "version": "1", **SCORING}
    entry = Entry(parameters={"max_value": 9}, metadata=metadata, **fields)
    again = Entry.from_json(entry.to_json())
    assert again == entry
    assert again.metadata["board"][2] == (4,)
    assert replace(again, answer="2") != entry
    assert Entry.from_json("1/2") is Entry.from_json(json.dumps({"answer": 1})) is None


def test_a_table_of_rollouts_is_graded_by_its_entries():
    table = pa.table(
        {
            "completion": ["Answer: dcba", "Answer: abcd", "Answer: dcba"],
            "gold": ["dcba", "dcba", "dcba"],
            "entry": [backwards(), backwards(), None],
        }
    )
    assert needs_columns("reasoning_gym")
    graded = grade_table(table, "reasoning_gym", GradeConfig(workers=1, timeout=30))
    assert graded["grade"].to_pylist() == ["correct", "wrong", "gold_unparseable"]
    assert graded["reward"].to_pylist() == [1.0, -1.0, None]
