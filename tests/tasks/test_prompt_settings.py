"""What a task's settings make of a prompt: chat or plain, a system message, an instruction."""

import json
import logging
import re

import pytest

from tiny import save_tiny, tiny_tokenizer
from topr.config import (
    ArithmeticConfig,
    Gsm8kConfig,
    JsonlConfig,
    MathConfig,
    Recipe,
    VerifierConfig,
    load_recipe,
)
from topr.errors import ConfigError, DataError, ModelError
from topr.grading import GRADERS
from topr.progress import Silent
from topr.records import Message, Outcome, Problem
from topr.runs.preparation import decide_prompt
from topr.stages.common import fingerprint
from topr.tasks import Split, competition_math, gsm8k, load_task
from topr.tasks.prompts import check_prompts, make_prompt, prompt_kinds, resolve_prompt
from topr.verifier.task import Candidate, VerifierTask, note_prompt, noted_prompt

CHAT, BARE = tiny_tokenizer(chat_template=True), tiny_tokenizer()
ONE = [("1 + 1?", "2")]
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


def asked(config, question="2 + 2?", examples=()):
    return make_prompt(
        config, question, gsm8k.FORM, instruction=gsm8k.INSTRUCTION, examples=examples
    )


def gsm(**values) -> Gsm8kConfig:
    return Gsm8kConfig(name="gsm8k", **values)


@pytest.mark.parametrize(("tokenizer", "kind"), [(CHAT, "chat"), (BARE, "plain"), (None, "plain")])
def test_auto_is_chat_where_there_is_a_template_and_is_that_setting_from_then_on(tokenizer, kind):
    said: list[str] = []
    decided = resolve_prompt(gsm(few_shot=2), tokenizer, said.append)
    assert decided == gsm(few_shot=2, prompt=kind)
    assert fingerprint(decided) == fingerprint(gsm(few_shot=2, prompt=kind))
    (line,) = said
    assert line.startswith(f"task.prompt=auto: {kind}")


def test_what_is_set_or_has_nothing_to_set_stays_as_it_is():
    said: list[str] = []
    for config in (
        gsm(prompt="plain"), gsm(prompt="chat"), ArithmeticConfig(name="arithmetic"),
        JsonlConfig(name="jsonl", train_file="rows.jsonl"),
    ):  # fmt: skip
        assert resolve_prompt(config, CHAT, said.append) is config
    assert not said


def test_a_task_is_not_made_before_it_is_decided():
    with pytest.raises(ConfigError, match=r"task\.prompt=auto is decided by .*resolve_prompt"):
        load_task(gsm())


def test_a_system_prompt_needs_a_chat():
    with pytest.raises(ValueError, match="system_prompt is set, but the prompts are plain text"):
        gsm(prompt="plain", system_prompt="Be brief.")
    with pytest.raises(ConfigError, match=r"auto: plain.*system_prompt is set.*prompt=chat"):
        resolve_prompt(gsm(system_prompt="Be brief."), BARE)


def test_how_prompts_are_written_is_in_the_hash():
    assert {"system_prompt", "instruction"} & set(gsm(prompt="plain").fixed()) == set()
    assert gsm(prompt="plain").fixed()["prompt"] == "plain"
    assert fingerprint(gsm(prompt="chat", instruction="")) != fingerprint(gsm(prompt="chat"))


@pytest.mark.parametrize("name", ["gsm8k", "math", "verifier-gsm8k", "verifier-math"])
def test_the_papers_recipes_keep_their_plain_prompts(name):
    assert load_recipe(name).task.prompt == "plain"


def test_an_instruction_comes_before_the_question_or_holds_it():
    def said(instruction, examples=()):
        config = gsm(prompt="chat", instruction=instruction)
        return [message.content for message in asked(config, examples=examples)]

    assert said(None) == [f"{gsm8k.INSTRUCTION}\n\n2 + 2?"]
    assert said(None, ONE) == ["1 + 1?", "2", "2 + 2?"]
    assert said("") == ["2 + 2?"]
    assert said("Be brief.", ONE) == ["Be brief.\n\n1 + 1?", "2", "Be brief.\n\n2 + 2?"]
    boxed = "{question}\n\nPut the answer in \\boxed{}."
    assert said(boxed) == ["2 + 2?\n\nPut the answer in \\boxed{}."]
    assert said(boxed, ONE)[0] == "1 + 1?\n\nPut the answer in \\boxed{}."
    with pytest.raises(ValueError, match=r"has \{question\} more than once"):
        gsm(instruction="{question} {question}")


def test_plain_text_ends_where_the_answer_begins_whatever_the_instruction():
    def said(instruction, examples=()):
        return asked(gsm(prompt="plain", instruction=instruction), examples=examples)

    question = "Question: 2 + 2?\nAnswer:"
    shot = "Question: 1 + 1?\nAnswer: 2\n\n"
    assert said(None) == f"{gsm8k.INSTRUCTION}\n\n{question}"
    assert said(None, ONE) == shot + question
    assert said("") == question
    assert said("Be brief.", ONE) == f"Be brief.\n\n{shot}{question}"
    assert said("{question} In a box.", ONE) == (
        "Question: 1 + 1? In a box.\nAnswer: 2\n\nQuestion: 2 + 2? In a box.\nAnswer:"
    )


def test_braces_in_a_question_stay_as_they_are():
    question = "What is {question} in \\frac{1}{2} and {answer}?"
    for config in (gsm(prompt="chat", instruction="{question}!"), gsm(prompt="plain")):
        prompt = asked(config, question, ONE)
        text = prompt if isinstance(prompt, str) else prompt[-1].content
        assert question in text


def test_a_system_message_is_the_first_turn():
    config = gsm(prompt="chat", system_prompt="", instruction="")
    assert asked(config, examples=ONE)[0] == Message(role="system", content="")
    verifier = VerifierConfig(name="verifier", rollouts="x", prompt="chat", system_prompt="Judge.")
    candidate = Candidate(question="1 + 1?", solution="2", right=True)
    prompt = VerifierTask(verifier).problem(candidate).prompt
    assert [message.role for message in prompt] == ["system", "user"]


@pytest.mark.parametrize(
    ("task", "answers"), [(gsm8k, ["18", "1,250"]), (competition_math, ["\\frac{1}{2}", "[2,5)"])]
)
def test_an_answer_that_ends_as_the_instruction_says_is_read(task, answers):
    grade = GRADERS[{gsm8k: "numeric", competition_math: "math"}[task]]
    (ending,) = re.findall('"(.+)"', task.INSTRUCTION)
    for answer in answers:
        ends = ending.replace("ANSWER", answer).replace("is N.", f"is {answer}.")
        assert answer in ends
        # And as chat models are usually asked to end, which an instruction may say as well.
        for text in (ends, f"The final answer is $\\boxed{{{answer}}}$."):
            assert grade(f"First 3 and 4.\n\n{text}", answer, False).outcome is Outcome.CORRECT
            assert grade(f"First 3 and 4.\n\n{text}", "77", False).outcome is Outcome.WRONG


@pytest.fixture
def problems(tmp_path):
    """Return the problems of two rows, one of text and one of messages, by their answers."""
    rows = [{"prompt": "1?", "answer": "1"}, {"prompt": [turn("2?")], "answer": "2"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**values) -> dict[str, Problem]:
        task = load_task(JsonlConfig(name="jsonl", train_file=str(path), **values))
        return {problem.answer: problem for problem in task.problems(Split.TRAIN)}

    return make


def turn(content, role="user"):
    return {"role": role, "content": content}


def test_a_users_rows_are_asked_as_they_are_written_unless_told_otherwise(problems):
    two = (Message(role="user", content="2?"),)
    auto = problems()
    assert (auto["1"].prompt, auto["2"].prompt) == ("1?", two)
    assert prompt_kinds(auto.values()) == "chat and plain"
    chat = problems(prompt="chat", system_prompt="Hm.")
    for answer, problem in chat.items():
        assert [(m.role, m.content) for m in problem.prompt] == [
            ("system", "Hm."), ("user", f"{answer}?"),
        ]  # fmt: skip
    plain = problems(prompt="plain", template="Q: {prompt}\nA:")
    assert plain["2"].prompt == "Q: 2?\nA:"
    # One name, and so one split, however a row is asked.
    assert len({each["2"].id for each in (auto, chat, plain)}) == 1
    assert auto["1"].id == chat["1"].id


def test_a_system_prompt_that_a_row_has_no_place_for_is_refused(problems, tmp_path):
    with pytest.raises(DataError, match=r"row 1: the prompt is text.*task\.prompt=chat"):
        problems(system_prompt="Hm.")
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": [turn("Hm.", "system"), turn("1?")], "answer": "1"}))
    config = JsonlConfig(name="jsonl", train_file=str(path), system_prompt="Hm.")
    with pytest.raises(DataError, match="begins with a system message"):
        load_task(config).problems(Split.TRAIN)


def problem(prompt) -> Problem:
    return Problem(id="p", prompt=prompt, answer="1")


def test_plain_prompts_for_a_chat_model_are_warned_of(caplog):
    chat = problem((Message(role="user", content="1?"),))
    rendered = problem("<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n")
    with caplog.at_level(logging.WARNING):
        check_prompts([chat, rendered], CHAT)
        check_prompts([problem("1?")], BARE)
        assert not caplog.records
        check_prompts([problem("1?"), problem("2?")], CHAT)
    (record,) = caplog.records
    assert "task.prompt=chat" in record.getMessage()


def test_a_prompt_that_cannot_be_rendered_is_refused_before_anything_is_sampled():
    chat = problem((Message(role="user", content="1?"),))
    with pytest.raises(ModelError, match=r"no chat template: set task\.prompt=plain"):
        check_prompts([problem("1?"), chat], BARE)
    strict = tiny_tokenizer()
    strict.chat_template = NO_SYSTEM
    system = problem((Message(role="system", content="Hm."), Message(role="user", content="1?")))
    with pytest.raises(ModelError, match="roles system, user: no system"):
        check_prompts([chat, system], strict)


def test_a_run_goes_on_with_what_it_was_begun_with(tmp_path):
    save_tiny(tmp_path / "model", chat_template=True)
    values = {"name": "r", "task": {"name": "gsm8k"}, "model": {"path": str(tmp_path / "model")}}
    recipe, run = Recipe.model_validate(values), tmp_path / "run"

    def decided() -> str:
        return decide_prompt(recipe, run, Silent()).task.prompt

    assert decided() == "chat"
    run.mkdir()
    (run / "recipe.yaml").write_text("task: {name: gsm8k, prompt: plain}\n")
    assert decided() == "chat"  # nothing was made by it, so it is replaced
    (run / "iteration-00").mkdir()
    (run / "iteration-00/evaluation.json").write_text("{}")
    assert decided() == "plain"


def test_a_verifier_notes_its_system_prompt_and_reads_notes_without_one(tmp_path):
    config = VerifierConfig(name="verifier", prompt="chat", system_prompt="Judge.")
    note_prompt(config, tmp_path)
    assert noted_prompt(tmp_path) == {
        "prompt": "chat", "template": None, "system_prompt": "Judge.",
    }  # fmt: skip
    (tmp_path / "verifier.json").write_text('{"prompt": "plain", "template": null}')
    assert noted_prompt(tmp_path) == {"prompt": "plain", "template": None}


def test_math_has_the_same_settings():
    config = MathConfig(name="math", prompt="chat", few_shot=0, instruction="{question} Box it.")
    prompt = make_prompt(config, "1?", competition_math.FORM, instruction="unused")
    assert prompt == (Message(role="user", content="1? Box it."),)
