"""Problems as published data sets have them: read with the right count, or refused with what to do.

The rows are of the shape that each data set's page shows, in a file of that data set's kind.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest

from topr.config import Gsm8kConfig, JsonlConfig, MathConfig
from topr.errors import DataError
from topr.records import Message
from topr.tasks import Split, load_task

Row = dict[str, Any]


def chat(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {n} + 1?"}]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One data set's rows, and the problems that they are."""

    rows: list[Row]
    values: dict[str, Any] = field(default_factory=dict)
    """Of the section `task`."""
    answers: list[str] = field(default_factory=list)
    refused: str = ""


KINDS: dict[str, Kind] = {
    "verl's gsm8k": Kind(
        rows=[
            {"data_source": "openai/gsm8k", "prompt": chat(n), "ability": "math",
             "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
             "extra_info": {"split": "train", "index": n, "answer": "...", "question": "..."}}
            for n in range(3)
        ],
        values={"answer_column": "reward_model.ground_truth", "id_column": "extra_info.index"},
        answers=["1", "2", "3"],
    ),
    "Skywork's lists as text": Kind(
        rows=[
            {"prompt": chat(n), "reward_model": {"ground_truth": json.dumps([str(n + 1)])}}
            for n in range(3)
        ],
        values={"answer_column": "reward_model.ground_truth"}, answers=["1", "2", "3"],
    ),
    "lists with one answer and with two": Kind(
        rows=[{"prompt": "p", "answer": ["1"]}, {"prompt": "q", "answer": ["1/2", "0.5"]}],
        refused=r"row 2: column 'answer' holds 2 different answers.*several_golds=any",
    ),
    "any of two answers": Kind(
        rows=[{"prompt": "p", "answer": ["1"]}, {"prompt": "q", "answer": ["1/2", "0.5"]}],
        values={"several_golds": "any"}, answers=['["1/2", "0.5"]', "1"],
    ),
    "objects as text": Kind(
        rows=[{"question": "p", "metadata": '{"expected": {"value": 4}}'}],
        values={"prompt_column": "question", "answer_column": "metadata.expected.value"},
        answers=["4"],
    ),
    "OpenR1": Kind(
        rows=[
            {"problem": f"p{n}", "solution": "...", "answer": str(n), "uuid": f"u{n}",
             "generations": ["a", "b"], "correctness_math_verify": [True, False]}
            for n in range(3)
        ],
        values={"prompt_column": "problem", "id_column": "uuid", "grader": "math"},
        answers=["0", "1", "2"],
    ),
    "one of many without an answer": Kind(
        rows=[
            {"prompt": f"{n}?", "answer": None if n == 7 else float(n)} for n in range(1000)
        ],
        answers=sorted(str(n) for n in range(1000) if n != 7),
    ),
    "NaN for no answer": Kind(
        rows=[{"prompt": "p", "answer": float("nan")}, {"prompt": "q", "answer": 2.5}],
        answers=["2.5"],
    ),
    "no answer at all": Kind(
        rows=[{"problem": "p", "solution": "..."}, {"problem": "q", "solution": "..."}],
        values={"prompt_column": "problem"},
        refused=r"row 1: column 'answer' is not there \(columns found: problem, solution\). task.a",
    ),
    "the fields of an object are named": Kind(
        rows=[{"prompt": "p", "reward_model": {"ground_truth": "1", "style": "rule"}}],
        refused=r"columns found: prompt, reward_model.ground_truth, reward_model.style",
    ),
    "an object for an answer": Kind(
        rows=[{"prompt": "p", "answer": {"value": "1"}}],
        refused=r"column 'answer' holds \{'value': '1'\} \(dict\), expected text or a number.*dot",
    ),
    "a verdict for an answer": Kind(
        rows=[{"prompt": "p", "answer": True}], refused=r"holds True \(bool\), expected text or",
    ),
    "chats of another shape": Kind(
        rows=[{"prompt": [{"from": "human", "value": "p"}], "answer": "1"}],
        refused="message 1 of the prompt is .*expected the keys role and content",
    ),
    "chats as text": Kind(
        rows=[{"prompt": json.dumps(chat(n)), "answer": str(n)} for n in range(2)],
        answers=["0", "1"],
    ),
}  # fmt: skip


MIXED: dict[str, tuple[Any, str | None]] = {
    "a list of a number": ([72], "72"),
    "the text of one": ("[72]", "72"),
    "a list of text": (["72"], "72"),
    "a number": (18.0, "18"),
    "null in a list": ([None], None),
    "NaN": (float("nan"), None),
    "empty texts": (["", " "], None),
    "an interval": ("[1, 2]", "[1, 2]"),
}
"""A gold answer, and how it is read."""
NO_GOLDS: dict[str, Any] = {
    r"holds True \(bool\)": True,
    r"\(dict\), expected text or a number": {"value": 3},
    "holds 2 different answers": [1, 2],
}


def task_of(folder: Path, value: Any, beside: Any, suffix: str) -> Any:
    path = folder / f"rows{suffix}"
    lines = [json.dumps({"prompt": f"{gold}", "answer": gold}) for gold in (value, beside)]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
    return load_task(JsonlConfig(name="jsonl", train_file=str(path)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(("beside", "other"), [("x", "x"), (3, "3"), (["4"], "4")])
def test_a_gold_is_read_the_same_whatever_stands_in_other_rows(
    tmp_path: Path, beside: Any, other: str, suffix: str
) -> None:
    for value, expected in MIXED.values():
        answers = sorted([other] if expected is None else [expected, other])
        found = task_of(tmp_path, value, beside, suffix).problems(Split.TRAIN)
        assert sorted(problem.answer for problem in found) == answers
    for message, value in NO_GOLDS.items():
        with pytest.raises(DataError, match=message):
            task_of(tmp_path, value, beside, suffix).problems(Split.TRAIN)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", KINDS)
def test_the_problem_table(tmp_path: Path, name: str, suffix: str) -> None:
    kind, path = KINDS[name], tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        datasets.Dataset.from_list(kind.rows).to_parquet(str(path))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in kind.rows))
    task = load_task(JsonlConfig(name="jsonl", train_file=str(path), **kind.values))
    if kind.refused:
        with pytest.raises(DataError, match=f"(?s){kind.refused}"):
            task.problems(Split.TRAIN)
        return
    problems = task.problems(Split.TRAIN)
    assert sorted(problem.answer for problem in problems) == sorted(kind.answers)
    if "chats" in name or "verl" in name:
        assert all(isinstance(problem.prompt[0], Message) for problem in problems)


def test_the_other_tasks_leave_out_and_count_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {
        Gsm8kConfig: [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(5)],
        MathConfig: [{"problem": f"q{n}", "answer": [str(n)]} for n in range(5)],
    }
    for config, given in rows.items():
        files = {}
        for split, some in (("train", given[:3]), ("test", given[3:])):
            path = tmp_path / f"{config.__name__}-{split}.jsonl"
            some = [*some, dict.fromkeys(given[0]) | {next(iter(given[0])): f"{split} of none"}]
            path.write_text("".join(json.dumps(row) + "\n" for row in some))
            files[f"{split}_file"] = str(path)
        name = config.model_fields["name"].annotation.__args__[0]  # type: ignore[union-attr]
        task = load_task(config(name=name, prompt="plain", validation_problems=0, **files))
        assert sorted(p.answer for p in task.problems(Split.TRAIN)) == ["0", "1", "2"]
        assert sorted(p.answer for p in task.problems(Split.TEST)) == ["3", "4"]
        assert "1 of 4 rows left out" in caplog.text
        assert "1 of 3 rows left out" in caplog.text
        caplog.clear()
