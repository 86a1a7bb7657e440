"""Verification problems: by question, once each, balanced, with nothing that gives them away."""

from pathlib import Path

import pytest

from command_line import write_jsonl
from tiny import tiny_tokenizer
from topr.config import VerifierConfig
from topr.errors import ConfigError, DataError
from topr.records import Message
from topr.tasks import Split, load_task
from topr.tokenization.prompts import render
from topr.verifier.task import VerifierTask

ROWS = [
    {"question": f"What is {q} + 1?", "solution": f"It is {q + off}.", "is_correct": off == 1}
    for q in range(12)
    for off in (0, 1, 1, 2, 3)  # the right one twice
]


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


def task(rollouts: Path, **settings: object) -> VerifierTask:
    values = {"prompt": "plain", "rollouts": str(rollouts)} | settings
    made = load_task(VerifierConfig(name="verifier", **values))
    assert isinstance(made, VerifierTask)
    return made


def question(prompt: str) -> str:
    return prompt.removeprefix("Question: ").partition("\n")[0]


def test_splits_share_no_question(rollouts: Path) -> None:
    made = task(rollouts, validation_problems=3, test_problems=4, mix="natural")
    asked = {s: {question(p.prompt) for p in made.problems(s)} for s in Split}
    assert [len(asked[s]) for s in (Split.TRAIN, Split.VALIDATION, Split.TEST)] == [5, 3, 4]
    assert not asked[Split.TRAIN] & asked[Split.TEST]
    assert not asked[Split.TRAIN] & asked[Split.VALIDATION]


def test_a_question_of_the_test_rollouts_is_not_learnt_from(rollouts: Path, tmp_path: Path) -> None:
    held_out = [r | {"question": r["question"].replace(" ", "  ")} for r in ROWS[:15]]
    write_jsonl(tmp_path / "test.jsonl", held_out)
    made = task(rollouts, test_rollouts=str(tmp_path / "test.jsonl"), mix="natural")
    learnt = {question(p.prompt) for p in made.problems(Split.TRAIN)}
    assert learnt == {f"What is {q} + 1?" for q in range(3, 12)}


def test_the_same_solution_is_one_check(rollouts: Path) -> None:
    problems = task(rollouts, mix="natural").problems(Split.TRAIN)
    assert len(problems) == 12 * 4
    assert len({p.id for p in problems}) == 12 * 4
    assert sum(p.answer == "Yes" for p in problems) == 12


def test_training_is_balanced_and_evaluation_is_not(rollouts: Path) -> None:
    made = task(rollouts, test_problems=4)
    answers = [p.answer for p in made.problems(Split.TRAIN)]
    assert answers.count("Yes") == answers.count("No") == 8
    tested = [p.answer for p in made.problems(Split.TEST)]
    assert (tested.count("Yes"), tested.count("No")) == (4, 12)


def test_right_and_wrong_take_turns_under_a_cap(rollouts: Path) -> None:
    made = task(rollouts, per_problem=2, mix="natural", test_problems=4)
    answers = [p.answer for p in made.problems(Split.TRAIN)]
    assert (answers.count("Yes"), answers.count("No")) == (8, 8)
    # What is right does not decide what is measured: there the cap does nothing.
    tested = [p.answer for p in made.problems(Split.TEST)]
    assert (tested.count("Yes"), tested.count("No")) == (4, 12)


def test_the_first_checks_of_a_test_are_of_as_many_questions_as_can_be(rollouts: Path) -> None:
    problems = task(rollouts, test_problems=4).problems(Split.TEST)
    assert len({question(p.prompt) for p in problems[:4]}) == 4


def test_a_reference_solution_is_not_taken_for_the_one_to_be_checked(tmp_path: Path) -> None:
    rows = [
        {"problem": f"p{i}", "solution": "the reference", "response": f"r{i}", "is_correct": i % 2}
        for i in range(4)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"any of the columns solution, response: name the one"):
        task(tmp_path / "rows.jsonl").problems(Split.TRAIN)
    problems = task(tmp_path / "rows.jsonl", solution_column="response").problems(Split.TRAIN)
    assert not any("the reference" in p.prompt for p in problems)


def test_labels_are_right_or_wrong_and_a_timeout_is_neither(tmp_path: Path) -> None:
    rows = [{"question": "q", "solution": f"s{i}", "score": v} for i, v in enumerate((0.2, 1.0))]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"column score holds 0\.2: expected right or wrong"):
        task(tmp_path / "rows.jsonl").problems(Split.TRAIN)
    graded = [
        {"question": "q", "solution": f"s{i}", "grade": grade, "reward": reward}
        for i, (grade, reward) in enumerate(
            [("correct", 1.0), ("wrong", -1.0), ("timeout", -1.0), ("truncated", None)]
        )
    ]
    write_jsonl(tmp_path / "graded.jsonl", graded)
    problems = task(tmp_path / "graded.jsonl", mix="natural").problems(Split.TRAIN)
    assert [p.answer for p in problems] == ["Yes", "No", "No"]  # a truncated one is not right


def test_special_tokens_of_a_solution_are_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token
    write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"question": "q", "solution": f"4{end}Verification", "is_correct": True},
            {"question": "q", "solution": "5", "is_correct": False},
        ],
    )
    problems = task(tmp_path / "rows.jsonl").problems(Split.TRAIN)
    for problem in problems:
        assert (
            tokenizer.eos_token_id
            not in render(problem.prompt, tokenizer, escape=problem.escape_special_tokens).ids
        )
    (first, _) = problems
    assert tokenizer.eos_token_id in render(first.prompt, tokenizer).ids


def test_a_template_is_filled_whatever_the_solution_holds(tmp_path: Path) -> None:
    odd = "Put {question} into {solution}: \\frac{1}{2} {0}"
    rows = [
        {"question": "Q {solution}", "solution": odd, "is_correct": True},
        {"question": "Q {solution}", "solution": "no", "is_correct": False},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    made = task(tmp_path / "rows.jsonl", template="A {question} B {solution} C")
    assert {p.prompt for p in made.problems(Split.TRAIN)} == {
        f"A Q {{solution}} B {odd} C",
        "A Q {solution} B no C",
    }
    (chat, _) = task(tmp_path / "rows.jsonl", prompt="chat").problems(Split.TRAIN)
    assert isinstance(chat.prompt, tuple)
    assert isinstance(chat.prompt[0], Message)


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path) -> None:
    right = [r for r in ROWS if r["is_correct"]]
    write_jsonl(tmp_path / "right.jsonl", right)
    with pytest.raises(DataError, match=r"12 are right and 0 wrong: there is nothing to tell"):
        task(tmp_path / "right.jsonl").problems(Split.TRAIN)
    write_jsonl(tmp_path / "bare.jsonl", [{"question": "a", "solution": "b"}])
    with pytest.raises(DataError, match="says of none whether it is right"):
        task(tmp_path / "bare.jsonl").problems(Split.TRAIN)
    with pytest.raises(ConfigError, match=r"task\.rollouts is not set"):
        load_task(VerifierConfig(name="verifier"))
    with pytest.raises(ValueError, match=r"\{solution\} 0 times"):
        VerifierConfig(name="verifier", template="only {question}")
    with pytest.raises(ValueError, match=r"\{question\} 2 times"):
        VerifierConfig(name="verifier", template="{question} {question} {solution}")
