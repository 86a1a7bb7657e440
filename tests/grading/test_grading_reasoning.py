"""The part of a completion that answers: all families' thinking marks and control tokens."""

import pyarrow as pa
import pytest

from tiny import TURN_END, TURN_START, tiny_tokenizer
from topr.config.sections import GradeConfig
from topr.grading import GRADERS, grade_table
from topr.grading.reasoning import opened_by, strip_reasoning

MARKS = [
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"),
    ("<Thought>", "</Thought>"), ("<reasoning>", "</reasoning>"), ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"), ("<seed:think>", "</seed:think>"), ("<analysis>", "</analysis>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|think_start|>", "<|think_end|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"), ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>",
     "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("Here is my thought process:", "Here is my response:"),
]  # fmt: skip


@pytest.mark.parametrize(("opens", "closes"), MARKS)
@pytest.mark.parametrize("grader", ["numeric", "math"])
def test_what_stands_only_in_the_thinking_is_no_answer(grader, opens, closes):
    def reward(completion, gold="8"):
        return GRADERS[grader](completion, gold, False).reward

    assert reward(f"{opens}The answer is 8.{closes}I do not know.") == -1.0
    assert reward(f"{opens}The answer is 8. Let me see") == -1.0  # it never ends
    assert reward(f"{opens}The answer is 9.{closes}The answer is 8.") == 1.0
    assert reward(f"{opens}The answer is 9.{closes}The answer is 8.", "9") == -1.0
    assert reward(f"The answer is 9.{closes}The answer is 8.") == 1.0  # the prompt began it
    assert reward(f"The answer is 8.{closes}I do not know.") == -1.0
    assert reward(f"The answer is 8.\n{opens}Is it 9?") == 1.0


@pytest.mark.parametrize(
    "token",
    [
        "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[INST]", "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>", "<eos>", "<|endoftext|>", "<|end|>", "<|return|>", "[|endofturn|]",
        "<turn|>", "[e~[", "<|user|>", "<seed:eos>", "<[EOS]>", "<_user>",
    ],
)  # fmt: skip
def test_a_control_token_ends_the_answer(token):
    assert strip_reasoning(f"It is 8.{token} It is 9.") == "It is 8."
    assert strip_reasoning(f"<think>8{token}</think> It is 9.") == ""


def test_tokens_that_begin_the_assistants_turn_say_nothing():
    for begins in (
        "<s>",
        "<|im_start|>assistant\n",
        "<|start_header_id|>assistant<|end_header_id|>",
    ):
        assert strip_reasoning(begins + "It is 8.").strip() == "It is 8."
    assert strip_reasoning("<|im_end|>\n<|im_start|>user\nIt is 8.").strip() == ""
    assert strip_reasoning("It is 8.<|im_start|>assistant\nIt is 9.") == "It is 8."


def test_plain_text_stays_as_it_is():
    for text in ("a < b, [3], H_2 and <b>bold</b>", "", r"\[x\]", "Here is my answer: 8"):
        assert strip_reasoning(text) == text


def test_named_stop_tokens_end_the_answer_and_marks_stay_marks():
    assert strip_reasoning("It is 8.@@It is 9.", ("@@",)) == "It is 8."
    assert strip_reasoning("[THINK]8[/THINK]9", ("[THINK]", "[/THINK]")) == "9"


def test_the_prompt_may_have_begun_the_thinking():
    assert opened_by("What is 4 + 4?<|assistant|><think>\n") == "<think>"
    assert opened_by("Think in <think> and </think>. What is 4 + 4?") == ""
    assert opened_by("<|assistant|><think>\n\n</think>\n\n") == ""
    rows = {
        "prompt": ["4 + 4?<think>\n", "4 + 4?<think>\n", "4 + 4?", None],
        "completion": ["The answer is 8.", "Hm.</think>#### 8", "The answer is 8.", "#### 8"],
        "gold": ["8"] * 4,
    }
    graded = grade_table(pa.table(rows), "numeric", GradeConfig(workers=1))
    assert graded["reward"].to_pylist() == [-1.0, 1.0, 1.0, 1.0]
    assert graded.select(list(rows)).equals(pa.table(rows))


def test_special_tokens_of_the_tokenizer_end_the_answer():
    """The text of a rollout leaves them out: `#### 8user #### 9` is what a reader would see."""
    tokenizer = tiny_tokenizer()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = [
        [*ids("#### 8"), TURN_END, TURN_START, *ids("user\n#### 9")],
        [*ids("#### 8\n#### 9"), TURN_END],
    ]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    table = pa.table({"completion": texts, "completion_ids": rows, "gold": ["8", "9"]})
    one = GradeConfig(workers=1)
    assert grade_table(table, "numeric", one, tokenizer=tokenizer)["reward"].to_pylist() == [
        1.0,
        1.0,
    ]
    # Ids that do not say what the text says are another tool's, and the text is what is graded.
    other = table.set_column(0, "completion", pa.array(["#### 8", "#### 9"]))
    assert grade_table(other, "numeric", one, tokenizer=tokenizer)["reward"].to_pylist() == [
        1.0,
        1.0,
    ]
