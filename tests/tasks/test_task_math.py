"""MATH: the real problems, what is left out and why, the prompt, the hub's shape."""

import gzip
import json
import logging
from collections import Counter

import datasets
import pytest

from topr.config import MathConfig
from topr.errors import DataError
from topr.tasks import Split, load_task
from topr.tasks.competition_math import EXAMPLES, INSTRUCTION, boxed
from topr.tasks.splits import question_key


def config(folder, **values) -> MathConfig:
    files = {
        "train_file": str(folder / "math_train.jsonl.gz"),
        "test_file": str(folder / "math500.jsonl.gz"),
    }
    return MathConfig(name="math", **({"prompt": "plain"} | files | values))


def read(path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def raw(shared_data):
    return {row["id"]: row for row in read(shared_data / "math_train.jsonl.gz")}


@pytest.fixture(scope="module")
def real(shared_data):
    task = load_task(config(shared_data))
    return {split: task.problems(split) for split in Split}


@pytest.fixture(scope="module")
def trained_on(real):
    return {p.id for split in (Split.TRAIN, Split.VALIDATION) for p in real[split]}


def test_the_real_problems_load_and_none_is_in_two_splits(real):
    together = [problem for problems in real.values() for problem in problems]
    assert len(real[Split.TEST]) == 500
    assert len({problem.id for problem in together}) == len(together)
    assert len({question_key(problem.prompt) for problem in together}) == len(together)
    assert all(problem.answer for problem in together)


def test_what_is_left_out_of_the_7500_is_what_the_data_page_names(raw, trained_on):
    left_out = {raw[id_]["id"]: raw[id_] for id_ in raw.keys() - trained_on}
    reasons = Counter(
        "empty"
        if row.get("answer_missing")
        else "boxes"
        if len(set(boxed(row["solution"]))) > 1
        else "example"
        if question_key(row["problem"]) in {question_key(problem) for problem, _ in EXAMPLES}
        else "twice"
        for row in left_out.values()
    )
    # 24 rows have `all_boxed`; the 25th, math-train-0721, has 1/6 as \frac and as \dfrac. The
    # data holds one problem twice, math-train-0925 and -0959.
    assert reasons == {"empty": 2, "boxes": 25, "example": 4, "twice": 1}
    assert sum("all_boxed" in row for row in left_out.values()) == 24
    assert len(trained_on) == 7500 - 32


def test_all_four_examples_are_training_problems(raw):
    # Why they are left out: the prompt would hold the solution.
    keys = {question_key(row["problem"]): row for row in raw.values()}
    for problem, solution in EXAMPLES:
        assert boxed(solution) == [keys[question_key(problem)]["answer"]]


def test_fewer_examples_leave_out_fewer_problems(shared_data, trained_on):
    task = load_task(config(shared_data, few_shot=0))
    ids = {p.id for split in (Split.TRAIN, Split.VALIDATION) for p in task.problems(split)}
    assert trained_on < ids
    assert len(ids - trained_on) == 4


def test_the_problem_that_is_in_both_splits_stays_in_the_test(shared_data):
    test = str(shared_data / "math_test.jsonl.gz")
    task = load_task(config(shared_data, test_file=test))
    test_ids = {problem.id for problem in task.problems(Split.TEST)}
    train_ids = {p.id for split in (Split.TRAIN, Split.VALIDATION) for p in task.problems(split)}
    assert len(test_ids) == 5000
    assert "math-test-4656" in test_ids
    assert "math-train-2948" not in train_ids


def test_the_first_hundred_mix_the_subjects(raw, real):
    # Stored, the first hundred are all of one subject; shuffled, all seven turn up, and the
    # largest (1744 of 7500 are Algebra) has its share: 23 +- 4 (one standard deviation).
    assert {row["subject"] for row in list(raw.values())[:100]} == {"Algebra"}
    mix = Counter(problem.columns["subject"] for problem in real[Split.TRAIN][:100])
    assert len(mix) == 7
    assert max(mix.values()) < 40


def test_boxes_agree_with_the_answers_in_the_data(shared_data):
    rows = read(shared_data / "math_train.jsonl.gz") + read(shared_data / "math_test.jsonl.gz")
    assert len(rows) == 12_500
    assert [row["id"] for row in rows if boxed(row["solution"])[-1] != row["answer"].strip()] == []


@pytest.mark.parametrize(
    ("solution", "boxes"),
    [
        (r"so $\boxed{\frac{1}{2}}$", [r"\frac{1}{2}"]),
        (r"\boxed{\boxed{11}\times 2} = \fbox{22}", [r"\boxed{11}\times 2", "22"]),
        (r"$\boxed 5$.", ["5"]),
        (r"$\boxed {5}$", ["5"]),
        (r"$\boxed{}$", [""]),
        (r"first \boxed{1}, then \boxed{2 never closed", ["1"]),
        ("no box", []),
    ],
)
def test_boxed(solution, boxes):
    assert boxed(solution) == boxes


def test_a_plain_prompt_ends_where_the_model_goes_on(real):
    problem = real[Split.TRAIN][0]
    assert problem.prompt.startswith(
        "Problem:\nFind the domain of the expression $\\frac{\\sqrt{x-2}}{\\sqrt{5-x}}$.\n\n"
        "Solution:\nThe expressions inside each square root"
    )
    assert problem.prompt.endswith(
        "Final Answer: The final answer is $-\\frac{2}{3}$. I hope it is correct.\n\n"
        f"Problem:\n{problem.columns['problem'].strip()}\n\nSolution:\n"
    )
    assert problem.prompt.count("I hope it is correct.") == 4


def test_the_stop_strings_end_an_answer_and_never_cut_one(shared_data):
    end, next_problem = load_task(config(shared_data)).stop
    for _, solution in EXAMPLES:
        assert solution.index(end) + len(end) == len(solution)
        assert next_problem not in solution
    assert load_task(config(shared_data, prompt="chat")).stop == ()


def test_chat_examples_are_turns(shared_data):
    task = load_task(config(shared_data, prompt="chat", few_shot=2, train_problems=1))
    roles = [message.role for message in task.problems(Split.TRAIN)[0].prompt]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


def test_the_hubs_subjects_are_read_together(monkeypatch, caplog):
    def load_dataset(path, name=None, *, split):
        if path == "HuggingFaceH4/MATH-500":
            assert (name, split) == (None, "test")
            rows = [{"problem": "Test?", "solution": r"\boxed{0}", "answer": "0"}]
        else:
            assert (path, split) == ("EleutherAI/hendrycks_math", "train")
            rows = [
                {"problem": f"{name} {i}?", "solution": rf"$\boxed{{{answer}}}$", "type": name}
                for i, answer in enumerate(["1", "2", ""])
            ]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["geometry", "algebra"])
    task = load_task(MathConfig(name="math", prompt="plain", validation_problems=0, few_shot=0))
    with caplog.at_level(logging.WARNING):
        found = {p.id: (p.columns["type"], p.answer) for p in task.problems(Split.TRAIN)}
    # Numbered over both, those left out included: an id does not depend on what is left out.
    assert found == {
        "math-train-00000": ("algebra", "1"),
        "math-train-00001": ("algebra", "2"),
        "math-train-00003": ("geometry", "1"),
        "math-train-00004": ("geometry", "2"),
    }
    assert "of 6 problems left out: 2 with an empty answer" in caplog.text
    (test,) = task.problems(Split.TEST)
    assert (test.id, test.answer) == ("math-test-00000", "0")
    assert test.prompt == f"{INSTRUCTION}\n\nProblem:\nTest?\n\nSolution:\n"


def problems_of(tmp_path, *rows) -> list:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text('{"problem": "Test?", "answer": "0"}\n')
    task = load_task(
        MathConfig(
            name="math",
            prompt="plain",
            train_file=str(train),
            test_file=str(test),
            validation_problems=0,
        )
    )
    return sorted(task.problems(Split.TRAIN), key=lambda problem: problem.id)


def test_an_answer_column_that_says_more_than_the_last_box_is_believed(tmp_path):
    both = r"So $\boxed{1}$ or $\boxed{2}$."
    found = problems_of(
        tmp_path,
        {"id": "a", "problem": "A?", "solution": both, "answer": "1, 2"},
        {"id": "b", "problem": "B?", "solution": both, "answer": "2"},
        {"id": "c", "problem": "C?", "answer": "3"},
        {"id": "d", "problem": "D?", "answer": "4", "solution": "Clear."},
    )
    assert [(problem.id, problem.answer) for problem in found] == [
        ("a", "1, 2"),
        ("c", "3"),
        ("d", "4"),
    ]


def test_a_solution_without_a_box_is_left_out_and_counted(tmp_path, caplog):
    boxless = {"problem": "B?", "solution": "It is 1."}
    (found,) = problems_of(tmp_path, {"problem": "A?", "solution": r"\boxed{1}"}, boxless)
    assert found.answer == "1"
    assert "1 of 2 rows left out" in caplog.text
    assert r"row 2: column 'solution' has no \boxed" in caplog.text
    with pytest.raises(DataError, match=r"train.jsonl, row 1: column 'solution' has no \\boxed"):
        problems_of(tmp_path, boxless)


def test_levels_are_chosen_in_training_and_test(shared_data, raw):
    task = load_task(config(shared_data, levels=[1, 2], validation_problems=50))
    tested = {row["id"]: row for row in read(shared_data / "math500.jsonl.gz")}
    assert {raw[p.id]["level"] for p in task.problems(Split.TRAIN)} == {"Level 1", "Level 2"}
    assert {tested[p.id]["level"] for p in task.problems(Split.TEST)} == {1, 2}
    of_levels = [row for row in tested.values() if row["level"] in (1, 2)]
    assert len(task.problems(Split.TEST)) == len(of_levels)


def test_levels_need_the_column(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"problem": "A?", "solution": r"\boxed{1}"}) + "\n")
    task = load_task(
        MathConfig(
            name="math", prompt="plain", levels=[1], train_file=str(file), test_file=str(file)
        )
    )
    with pytest.raises(DataError, match=r"row 1: there is no 'level'.*task\.levels"):
        task.problems(Split.TRAIN)
