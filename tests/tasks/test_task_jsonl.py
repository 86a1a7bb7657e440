"""A user's own problems: shapes of prompts, ids, splits, graders, and messages for each slip."""

import json

import datasets
import pytest

from topr.config import JsonlConfig
from topr.errors import ConfigError, DataError
from topr.records import Message
from topr.tasks import Split, load_task

TEN = [{"prompt": f"{i} + 1?", "answer": i + 1, "hint": f"h{i}"} for i in range(10)]


@pytest.fixture
def load(tmp_path):
    """Write rows to a file and make the task that reads it."""

    def run(rows, test=None, **values):
        files = {}
        for split, given in (("train_file", rows), ("test_file", test)):
            if given is not None:
                path = tmp_path / f"{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in given))
                files[split] = str(path)
        return load_task(JsonlConfig(name="jsonl", **files, **values))

    return run


def test_rows_become_problems_with_their_columns(load):
    task = load(TEN, grader="exact", stop=("\n",))
    found = {problem.prompt: problem for problem in task.problems(Split.TRAIN)}
    assert found.keys() == {f"{i} + 1?" for i in range(10)}
    assert found["3 + 1?"].answer == "4"
    assert found["3 + 1?"].columns == {"answer": 4, "hint": "h3"}
    assert (task.grader, task.stop) == ("exact", ("\n",))


def test_ids_are_hashes_of_prompts_so_they_survive_reordering(load):
    first = {p.prompt: p.id for p in load(TEN).problems(Split.TRAIN)}
    again = {p.prompt: p.id for p in load(TEN[::-1]).problems(Split.TRAIN)}
    assert first == again
    assert len(set(first.values())) == 10


def test_a_prompt_twice_without_ids_is_one_problem(load, caplog):
    assert len(load([*TEN, TEN[0]]).problems(Split.TRAIN)) == 10
    assert "1 of 11 problems left out" in caplog.text


def test_an_id_column_names_the_problems_and_may_hold_numbers(load):
    rows = [{"n": i, "prompt": f"{i}?", "answer": "1"} for i in range(3)]
    assert {p.id for p in load(rows, id_column="n").problems(Split.TRAIN)} == {"0", "1", "2"}
    with pytest.raises(DataError, match="two problems have the id '1'"):
        load([*rows, {**rows[1], "prompt": "other"}], id_column="n").problems(Split.TRAIN)


def test_problems_are_held_out_where_there_is_no_test_file(load):
    task = load(TEN, validation_problems=2, test_problems=3)
    prompts = [{p.prompt for p in task.problems(split)} for split in Split]
    assert [len(each) for each in prompts] == [5, 2, 3]
    assert len(set.union(*prompts)) == 10


def test_a_test_file_is_taken_whole_and_kept_out_of_training(load):
    task = load(TEN, test=[TEN[4], {"prompt": "new?", "answer": "1"}])
    assert {p.prompt for p in task.problems(Split.TEST)} == {"4 + 1?", "new?"}
    assert "4 + 1?" not in {p.prompt for p in task.problems(Split.TRAIN)}


def test_a_template_goes_around_text_with_braces_of_its_own(load):
    rows = [{"prompt": r"$\frac{1}{2}$ {x}", "answer": "1"}]
    task = load(rows, template="Q: {prompt}\nA {so}:")
    (problem,) = task.problems(Split.TRAIN)
    assert problem.prompt == "Q: $\\frac{1}{2}$ {x}\nA {so}:"


def test_messages_stay_messages(load):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    named = [{"role": "user", "content": "2 + 2?", "name": None}]
    found = load([{"prompt": turns, "answer": "2"}, {"prompt": named, "answer": "4"}])
    assert {problem.answer: problem.prompt for problem in found.problems(Split.TRAIN)} == {
        "2": (Message(role="system", content="Be brief."), Message(role="user", content="1 + 1?")),
        "4": (Message(role="user", content="2 + 2?"),),
    }


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ([{"question": "1?", "answer": "1"}], {}, "'prompt' is not there.*found: question, answer"),
        ([{"prompt": "2?", "answer": None}], {}, "column 'answer' is empty.*task.answer_column"),
        ([{"prompt": "  ", "answer": "1"}], {}, "column 'prompt' is empty"),
        ([{"prompt": "1?", "answer": " "}], {}, "column 'answer' is empty"),
        ([{"prompt": "1?", "answer": ["1", "2"]}], {}, "'answer' holds 2 different answers.*any"),
        ([{"prompt": "1?", "answer": {"a": 1}}], {}, r"holds \{'a': 1\} \(dict\), expected text"),
        ([{"prompt": "1?", "answer": True}], {}, r"holds True \(bool\), expected text or a"),
        ([{"prompt": 1, "answer": "1"}], {}, r"'prompt' holds 1 \(int\)"),
        ([{"prompt": [], "answer": "1"}], {}, "empty list of messages"),
        ([{"prompt": [{"role": "user"}], "answer": "1"}], {}, "message 1 of the prompt"),
        ([{"prompt": ["Hello"], "answer": "1"}], {}, "message 1 of the prompt is 'Hello'"),
        (
            [{"prompt": "[{'role': 'user', 'content': '1?'}]", "answer": "1"}],
            {},
            "messages are written as text, but not as JSON",
        ),
        (
            [{"prompt": [{"role": "user", "content": "1?"}], "answer": "1"}],
            {"template": "Q: {prompt}"},
            "the prompt is messages, and task.template goes around text",
        ),
        (TEN, {"id_column": "key"}, "column 'key' is not there.*leave task.id_column out"),
    ],
)
def test_a_bad_row_is_named(load, rows, values, message):
    with pytest.raises(DataError, match=rf"train_file.jsonl, row \d: .*{message}"):
        load(rows, **values).problems(Split.TRAIN)


def test_messages_that_are_written_as_text_are_messages(load):
    # Columns have one type: text beside messages turns the messages into text.
    chat = [{"role": "user", "content": "1?"}]
    found = load([TEN[0], {"prompt": chat, "answer": "1"}]).problems(Split.TRAIN)
    expected = {"0 + 1?", (Message(role="user", content="1?"),)}
    assert {problem.prompt for problem in found} == expected


def test_rows_without_an_answer_or_prompt_are_left_out_and_counted(load, caplog):
    rows = [*TEN, {"prompt": "11?"}, {"prompt": "12?", "answer": " "}, {"answer": "13"}]
    assert len(load(rows).problems(Split.TRAIN)) == 10
    assert "3 of 13 rows left out" in caplog.text
    assert "row 11: column 'answer' is empty" in caplog.text


@pytest.mark.parametrize(
    "answer",
    ["72", 72, 72.0, ["72"], [72], '["72"]', ["72", "72"], {"inner": ["72"]}, '{"inner": "72"}'],
)
def test_an_answer_means_the_same_however_it_is_written(load, answer):
    nested = isinstance(answer, dict) or str(answer).startswith("{")
    column = "answer.inner" if nested else "answer"
    task = load([{"prompt": "p", "answer": answer}], answer_column=column)
    assert [problem.answer for problem in task.problems(Split.TRAIN)] == ["72"]


@pytest.mark.parametrize("answer", ["[1, 2]", "[2, 5)", "[]x", '{"a"}'])
def test_text_with_brackets_is_an_answer(load, answer):
    task = load([{"prompt": "p", "answer": answer}], grader="math")
    assert [problem.answer for problem in task.problems(Split.TRAIN)] == [answer]


def test_several_answers_are_any_of_them_if_the_user_says_so(load):
    rows = [{"prompt": "p", "answer": ["1/2", "0.5"]}, {"prompt": "q", "answer": '["a", "b"]'}]
    task = load(rows, several_golds="any")
    answers = {problem.prompt: problem.answer for problem in task.problems(Split.TRAIN)}
    assert answers == {"p": '["1/2", "0.5"]', "q": '["a", "b"]'}


def test_splits_and_configurations_of_a_hub_dataset_are_named(monkeypatch):
    asked = []

    def load_dataset(*names, split, **more):
        asked.append((*names, split))
        return datasets.Dataset.from_list([{"prompt": f"{split}?", "answer": "1"}] * 1)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    values = {"subset": "main", "split": "dev", "test_split": "held_out"}
    task = load_task(JsonlConfig(name="jsonl", train_file="owner/data", **values))
    assert [problem.prompt for problem in task.problems(Split.TRAIN)] == ["dev?"]
    assert [problem.prompt for problem in task.problems(Split.TEST)] == ["held_out?"]
    assert asked == [("owner/data", "main", "dev"), ("owner/data", "main", "held_out")]


def test_a_file_has_no_splits(load):
    for values in ({"split": "dev"}, {"subset": "main"}, {"test_split": "dev"}):
        with pytest.raises(ConfigError, match=r"is a file, which has no configurations and splits"):
            load(TEN, **values).problems(Split.TRAIN)
    with pytest.raises(ConfigError, match=r"task.test_subset=x is of no use without task.test_sp"):
        load(TEN, test_subset="x")


@pytest.mark.parametrize("grader", ["numeric", "math", "exact", "rewards:f", "a.b_c:_f2"])
def test_graders_by_name_or_function_are_taken(load, grader):
    assert load(TEN, grader=grader).grader == grader


@pytest.mark.parametrize(
    "grader", ["numerical", "", "rewards", "rewards.f", "r:", ":f", "r.py:f()"]
)
def test_a_grader_that_cannot_be_is_refused_before_anything_is_read(grader):
    config = JsonlConfig(name="jsonl", train_file="nowhere.jsonl", grader=grader)
    known = r"numeric, numeric_marked, math, exact nor.*module:function"
    with pytest.raises(ConfigError, match=known):
        load_task(config)


def test_a_reward_function_needs_no_gold_answer(load):
    rows = [{"prompt": "Write a poem.", "style": "haiku"}]
    (problem,) = load(rows, grader="rewards:poem").problems(Split.TRAIN)
    assert (problem.answer, problem.columns) == ("", {"style": "haiku"})
    with pytest.raises(DataError, match="'answer' is not there"):
        load(rows).problems(Split.TRAIN)


def test_settings_that_would_do_nothing_are_refused(load):
    with pytest.raises(ConfigError, match="all problems would have the same prompt"):
        load(TEN, template="Q: {question}")
    with pytest.raises(ConfigError, match=r"both task.test_file=.*task.test_problems=2"):
        load(TEN, test=TEN[:1], test_problems=2)
