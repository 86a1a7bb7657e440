"""GSM8K: the real questions, the prompt, the hub's shape."""

import gzip
import json

import datasets
import pytest

from topr.config import Gsm8kConfig
from topr.errors import DataError
from topr.tasks import Split, load_task
from topr.tasks.gsm8k import EXAMPLES, INSTRUCTION
from topr.tasks.splits import question_key


def config(folder, **values) -> Gsm8kConfig:
    files = {
        "train_file": str(folder / "gsm8k_train.jsonl.gz"),
        "test_file": str(folder / "gsm8k_test.jsonl.gz"),
    }
    return Gsm8kConfig(name="gsm8k", **({"prompt": "plain"} | files | values))


@pytest.fixture(scope="module")
def real(shared_data):
    task = load_task(config(shared_data))
    return {split: task.problems(split) for split in Split}


def test_all_real_questions_load_and_none_is_in_two_splits(real):
    sizes = {split: len(problems) for split, problems in real.items()}
    assert sizes == {Split.TRAIN: 6973, Split.VALIDATION: 500, Split.TEST: 1319}
    together = [problem for problems in real.values() for problem in problems]
    assert len({problem.id for problem in together}) == 7473 + 1319
    assert len({question_key(problem.prompt) for problem in together}) == 7473 + 1319


def test_every_real_gold_answer_is_a_whole_number(real):
    # The data's own final_answer column, an independent reading of the same text.
    for problems in real.values():
        for problem in problems:
            assert problem.answer == problem.columns["final_answer"]
            int(problem.answer.replace(",", ""))


def test_rows_are_shuffled_by_the_seed_whatever_the_prompt(shared_data, real):
    ids = [problem.id for problem in real[Split.TRAIN]]
    assert ids != sorted(ids)
    again = load_task(config(shared_data, few_shot=0)).problems(Split.TRAIN)
    assert [problem.id for problem in again] == ids
    other = load_task(config(shared_data, few_shot=0, seed=1)).problems(Split.TRAIN)
    assert [problem.id for problem in other] != ids


@pytest.fixture
def small(tmp_path):
    """A folder with files of GSM8K's shape and names, ten questions each."""
    for split in ("train", "test"):
        rows = [
            {"id": f"{split}-{i}", "question": f"Is it {split} {i}?", "answer": f"Yes.\n#### {i}"}
            for i in range(10)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"gsm8k_{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_limits_keep_the_first_of_the_shuffled(small):
    whole = load_task(config(small, validation_problems=3))
    few = load_task(config(small, validation_problems=3, train_problems=4, test_problems=5))
    assert list(few.problems(Split.TRAIN)) == list(whole.problems(Split.TRAIN)[:4])
    assert list(few.problems(Split.TEST)) == list(whole.problems(Split.TEST)[:5])
    assert list(few.problems(Split.VALIDATION)) == list(whole.problems(Split.VALIDATION))
    assert len(whole.problems(Split.TRAIN)) == 7


def test_each_example_ends_in_its_answer_and_no_example_is_a_question_of_the_dataset(real):
    # The answers of the eight examples, as listed in the paper's table.
    answers = [answer.rpartition("The answer is ")[2] for _, answer in EXAMPLES]
    assert answers == ["6.", "5.", "39.", "8.", "9.", "29.", "33.", "8."]
    asked = {question_key(question) for question, _ in EXAMPLES}
    questions = {
        question_key(problem.columns["question"])
        for problems in real.values()
        for problem in problems
    }
    assert len(questions) == 8792
    assert not asked & questions


def test_a_plain_prompt_ends_where_the_model_goes_on(real):
    problem = real[Split.TRAIN][0]
    assert problem.prompt.startswith("Question: There are 15 trees in the grove.")
    question = problem.columns["question"]
    assert problem.prompt.endswith(
        f"23 - 15 is 8. The answer is 8.\n\nQuestion: {question}\nAnswer:"
    )
    assert problem.prompt.count("Question: ") == 9


def test_the_stop_string_is_what_would_begin_the_next_question(shared_data, real):
    (stop,) = load_task(config(shared_data)).stop
    prompt = real[Split.TRAIN][0].prompt
    # As the model would go on in the pattern of its prompt, and never inside one of the answers.
    assert prompt.count(stop) == 8
    assert not any(stop in answer for _, answer in EXAMPLES)
    assert load_task(config(shared_data, prompt="chat")).stop == ()


@pytest.mark.parametrize("shots", [0, 3])
def test_chat_examples_are_turns(small, shots):
    task = load_task(config(small, prompt="chat", few_shot=shots, validation_problems=0))
    problem = task.problems(Split.TEST)[0]
    assert [message.role for message in problem.prompt] == ["user", "assistant"] * shots + ["user"]
    assert problem.prompt[-1].content.endswith(problem.columns["question"].strip())
    assert (INSTRUCTION in problem.prompt[-1].content) == (shots == 0)


def test_without_examples_the_prompt_says_how_to_end(small):
    task = load_task(config(small, few_shot=0, validation_problems=0))
    problem = task.problems(Split.TEST)[0]
    assert problem.prompt.startswith(INSTRUCTION + "\n\nQuestion: ")


def test_the_hubs_rows_get_stable_ids(monkeypatch):
    def load_dataset(path, name=None, *, split):
        assert (path, name) == ("openai/gsm8k", "main")
        return datasets.Dataset.from_list(
            [{"question": f"{split} {i}?", "answer": f"So {i}.\n#### 1,00{i}"} for i in range(6)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(Gsm8kConfig(name="gsm8k", prompt="plain", validation_problems=2))
    golds = {p.id: p.answer for split in Split for p in task.problems(split)}
    assert golds == {
        f"gsm8k-{split}-0000{i}": f"1,00{i}" for split in ("train", "test") for i in range(6)
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1?", "answer": "It is 1."}, "does not end in '#### N'"),
        ({"question": "1?", "answer": "It is 1.\n####  "}, "does not end in '#### N'"),
        ({"question": "1?", "solution": "#### 1"}, "'answer' is not there.*found: question, sol"),
        ({"prompt": "1?", "answer": "#### 1"}, "'question' is not there.*task.name=jsonl"),
        ({"question": 1, "answer": "#### 1"}, r"holds 1 \(int\), expected text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    task = load_task(
        Gsm8kConfig(
            name="gsm8k",
            prompt="plain",
            train_file=str(path),
            test_file=str(path),
            validation_problems=0,
        )
    )
    with pytest.raises(DataError, match=rf"rows.jsonl, row 1: .*{message}"):
        task.problems(Split.TRAIN)


def test_importing_the_registry_imports_nothing_heavy(python_modules_after):
    heavy = {"torch", "transformers", "datasets", "pyarrow", "jinja2"}
    assert not heavy & python_modules_after("import topr.tasks, topr.tasks.base")
