"""Workers: the same grades however many there are, and nothing hostile gets past them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import listens_to_interrupts
from topr.config.sections import GradeConfig
from topr.errors import GradingError
from topr.grading import grade_all
from topr.grading.numeric import grade_numeric
from topr.records import Outcome

ONE = GradeConfig(workers=1)
HOSTILE = {
    "nothing": "",
    "boxes": "\\boxed{" * 140_000,
    "boxes of one": "\\boxed{1}" * 140_000,
    "braces": "\\boxed{" + "{" * 10_000 + "1" + "}" * 10_000 + "}",
    "parentheses": "\\boxed{" + "(" * 10_000 + "1" + ")" * 10_000 + "}",
    "digits": "\\boxed{" + "9" * 1_000_000 + "}",
    "many digits": "The answer is " + "9" * 100_000,
    "power tower": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "factorials": r"\boxed{((100!)!)!}",
    "sum": r"\boxed{\sum_{i=1}^{10^{12}} i}",
    "power of a sum": r"\boxed{(x+y+z)^{100000000}}",
    "set": r"\boxed{\{" + ",".join(map(str, range(20_000))) + r"\}}",
    "newlines": "answer is" + "\n" * 200_000,
    "spaces": "answer is" + " " * 200_000 + "1",
    "dollars": "$" * 200_000,
    "backslashes": "\\" * 200_000,
    "labels": "A:" * 100_000,
    "answers": "answer is " * 30_000,
    "answers to": "answer to " * 30_000,
    "hashes": "\n####" * 60_000,
    "thoughts": "<think>" * 50_000,
    "minus": r"\boxed{" + "-" * 400 + "1}",
    "markup": "<b a=" * 40_000 + "</b>",
    "struck out": "~~a" * 100_000,
    "bold": "[b]" * 60_000 + "[/b]",
    "asked": "The answer is 5.\n" + "?\n" * 100_000,
    "asked how": "The answer is 5.\n" + "how many?\n" * 30_000,
    "brackets beside": "The answer is 5 " + "(a 5 " * 60_000,
    "json": '"answer": "' * 30_000,
    "wide": "\uff11" * 200_000,
    "surrogate": "The answer is \ud800",
    "exponent": "The answer is 1e999999999",
    "zero": r"\boxed{\frac{1}{0}}",
}


@pytest.mark.parametrize("grader", ["numeric", "math", "exact"])
def test_hostile_text_is_never_correct_and_costs_little(grader):
    started = time.monotonic()
    items = [(text, "x + \\sqrt{2}" if grader == "math" else "12345") for text in HOSTILE.values()]
    grades = grade_all(items, grader, config=GradeConfig(workers=1, timeout=2.0))
    outcomes = dict(zip(HOSTILE, (grade.outcome for grade in grades), strict=True))
    assert Outcome.CORRECT not in outcomes.values()
    assert {grade.reward for grade in grades} == {-1.0}
    assert outcomes["nothing"] is Outcome.UNPARSEABLE
    if grader != "exact":
        assert outcomes["boxes"] is Outcome.UNPARSEABLE
        assert outcomes["digits"] is Outcome.UNPARSEABLE
    assert time.monotonic() - started < 60


def test_what_computes_without_end_is_killed_and_named():
    # The binomial is computed while it is parsed, in C, where no signal handler gets a turn.
    items = [
        (r"\boxed{1}", "1"),
        (r"\boxed{\binom{900000000}{450000000}}", "1"),
        (r"\boxed{2}", "1"),
    ]
    grades = grade_all(items, "math", config=GradeConfig(workers=1, timeout=1.0))
    assert [grade.outcome.value for grade in grades] == ["correct", "timeout", "wrong"]
    assert [grade.reward for grade in grades] == [1.0, -1.0, -1.0]


def test_hanging_dying_and_eating_memory_cost_only_themselves():
    asked = ["good", "hang", "bad", "eat", "none", "die", "good", "hang"]
    grades = grade_all(
        [(text, None) for text in asked],
        "grading_rewards:by_what_it_says",
        config=GradeConfig(workers=1, timeout=0.7, memory_mb=512),
    )
    found = [(grade.outcome.value, grade.reward) for grade in grades]
    assert found == [
        ("correct", 2.5), ("timeout", -1.0), ("wrong", 0.0), ("timeout", -1.0),
        ("unscored", None), ("timeout", -1.0), ("correct", 2.5), ("timeout", -1.0),
    ]  # fmt: skip


def test_grades_and_their_order_do_not_depend_on_the_workers():
    items = [
        (f"It is {n % 7} + 1.\nThe answer is {n % 7 + n % 3}.", str(n % 7)) for n in range(500)
    ]
    expected = [grade_numeric(*item) for item in items]
    assert {grade.outcome for grade in expected} == {Outcome.CORRECT, Outcome.WRONG}
    for workers in (1, 3):
        told = []
        config = GradeConfig(workers=workers)
        assert grade_all(items, "numeric", config=config, progress=told.append) == expected
        assert sum(told) == len(items)
    assert grade_all([], "numeric", config=ONE) == []


def test_a_user_function_is_given_the_other_columns():
    columns = {"gold": ["1", "2"], "answer": ["1", "2"], "points": [1, -2], "prompt": ["a", "b"]}
    grades = grade_all(
        [("x", None), ("y", None)], "grading_rewards:column_names", config=ONE, columns=columns
    )
    assert [grade.reward for grade in grades] == [1.0, -2.0]


def test_a_function_that_was_written_for_trl_works_as_it_is():
    columns = {"gold": ["1", "2"], "points": [3, 4], "prompt": ["a", "b"]}
    grades = grade_all(
        [("x", None), ("y", None)], "grading_rewards:as_in_trl", config=ONE, columns=columns
    )
    assert [grade.reward for grade in grades] == [3.0, None]


def test_a_user_function_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def f(completions, **_):\n    return [0.5]\n")
    monkeypatch.chdir(tmp_path)
    assert grade_all([("x", None)], "my_own_rewards:f", config=ONE)[0].reward == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numerical", "no grader 'numerical': the built-in ones are numeric, numeric_marked, math"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("grading_rewards:nothing", "'nothing' does not exist in module 'grading_rewards'"),
        ("grading_rewards:time", "grading_rewards:time' is not callable"),
        ("grading_rewards:", "not of the form"),
        ("grading_rewards:two_rewards", "completion 0 .* 2 rewards for 1 completion"),
        ("grading_rewards:no_list", "returned 1.0, expected a list"),
        ("grading_rewards:a_word", "returned 'good', expected a finite number or None"),
        ("grading_rewards:not_a_number", "returned nan"),
        ("grading_rewards:fails", "completion 0 .* ValueError: no luck today"),
    ],
)
def test_a_grader_that_cannot_work_says_which_and_why(name, message):
    with pytest.raises(GradingError, match=message):
        grade_all([("x", None)], name, config=ONE)


def test_a_number_worker_loads_no_heavy_package():
    code = (
        "import sys, topr.grading.worker, topr.grading.numeric; topr.grading.numeric.grade_numeric"
        "('The answer is 5', '5'); "
        "print(sorted({'sympy', 'torch', 'pyarrow', 'pydantic', 'math_verify'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def workers_of(marker):
    """Process ids whose environment holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marker in environment and b"topr.grading.worker" in command and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="finds workers by their environment in /proc, which this system does not have",
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how, tmp_path):
    script = tmp_path / "parent.py"
    # No `if __name__ == "__main__"`: workers do not import the user's script again.
    script.write_text(
        "from topr.config.sections import GradeConfig\n"
        "from topr.grading import grade_all\n"
        "grade_all([('hang', None)] * 99, 'grading_rewards:by_what_it_says',\n"
        "          config=GradeConfig(workers=2, timeout=1.5))\n"
    )
    marker = f"TOPR_TEST_MARKER={os.getpid()}-{how}"
    name, _, value = marker.partition("=")
    path = str(Path(__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, name: value, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        preexec_fn=listens_to_interrupts,
    )
    try:
        assert wait_for(lambda: len(workers_of(marker.encode())) == 2, 30)
        parent.send_signal(how)
        assert parent.wait(timeout=10) != 0
        # A worker in the midst of a completion ends with that completion's time at the latest.
        assert wait_for(lambda: not workers_of(marker.encode()), 1.5 + 1.0 + 5.0)
    finally:
        parent.kill()


def wait_for(condition, seconds):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False
