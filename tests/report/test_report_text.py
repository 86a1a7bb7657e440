import base64
import json
import math
import random
import re
import zlib
from typing import Any

import pytest

from topr.report.rollouts import question_of
from topr.report.text import align_tokens, clip, packed, plural, visible

ODD = "ab <>&\"'/\\\n\t\r\0\x1b\x7f\x85é数👩"
ODD += "\u00ad\u200b\u200d\u2028\u202e\u2066\ufeff\ud800\U000e0041"


def odd_text(rng: random.Random) -> str:
    return "".join(rng.choices(ODD, k=rng.randrange(12)))


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(4 if depth == 3 else 6)
    if kind == 4:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {odd_text(rng): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return (None, rng.randrange(-5, 5), odd_text(rng), rng.choice([0.5, math.nan, -math.inf]))[kind]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("né 数学 ≤ 👩\u200d🏫", "né 数学 ≤ 👩\u200d🏫"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x00\x1b[31m\r", "⟨U+0000⟩⟨U+001B⟩[31m⟨U+000D⟩"),
        ("\u2028\u200b\ufeff\ud800", "⟨U+2028⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ],
)
def test_hidden_characters_are_spelled_out_and_honest_ones_left(text, shown):
    assert visible(text) == shown


def test_visible_text_can_always_be_written_and_is_stable():
    rng = random.Random(0)
    for _ in range(200):
        shown = visible(odd_text(rng))
        shown.encode("utf-8")
        assert visible(shown) == shown


def test_clip_keeps_the_ends_and_says_what_is_gone():
    assert clip("abc", head=3) == "abc"
    assert clip("a" * 5000, head=4000) == "a" * 4000 + " … [1,000 characters left out]"
    clipped = clip("few shots " * 100 + "the question", head=10, tail=12)
    assert clipped.startswith("few shots ")
    assert clipped.endswith("… the question")


@pytest.mark.parametrize("seed", range(20))
def test_data_survives_a_script_element_unchanged(seed):
    rng = random.Random(seed)
    value = [odd_value(rng) for _ in range(20)]
    text = packed(value)
    assert re.fullmatch("[A-Za-z0-9+/=]*", text)

    def expected(item):
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: expected(inner) for key, inner in item.items()}
        return [expected(inner) for inner in item] if isinstance(item, list) else item

    assert json.loads(zlib.decompress(base64.b64decode(text))) == expected(value)


def test_tokens_get_back_the_space_that_single_decoding_lost():
    assert align_tokens(["12", "+", "3", "</s>"], "12 + 3") == ["12", " +", " 3", "</s>"]


def test_tokens_that_carry_their_own_space_stay_as_they_are():
    tokens = ["12", " +", " ", "3", "\n"]
    assert align_tokens(tokens, "12 + 3\n") == tokens


def test_alignment_changes_nothing_but_white_space():
    rng = random.Random(0)
    for _ in range(200):
        tokens = [odd_text(rng) for _ in range(5)]
        pieces = align_tokens(tokens, " ".join(tokens[: rng.randrange(6)]))
        assert [piece.strip() for piece in pieces] == [token.strip() for token in tokens]


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 problems"), (1, "1 problem"), (1200, "1,200 problems")]
)
def test_counts_are_said_right(count, said):
    assert plural(count, "problem") == said


@pytest.mark.parametrize(
    "prompt",
    [
        "1 + 1 = ?",
        "Question: 0 + 0 = ?\nAnswer: 0\n\n1 + 1 = ?",
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n1 + 1 = ?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>user\n0?<|im_end|>\n<|im_start|>assistant\n0<|im_end|>\n<|im_start|>user\n"
        "1 + 1 = ?<|im_end|>\n<|im_start|>assistant\n",
        "<|start_header_id|>user<|end_header_id|>\n\n1 + 1 = ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<start_of_turn>user\n1 + 1 = ?<end_of_turn>\n<start_of_turn>model\n",
        "<|user|>\n1 + 1 = ?<|end|>\n<|assistant|>\n",
        "<s>[INST] 1 + 1 = ? [/INST]",
    ],
)
def test_the_preview_of_a_prompt_is_what_the_user_asks(prompt):
    assert question_of({"prompt": prompt}) == "1 + 1 = ?"
    assert question_of({"prompt": prompt, "question": "Two ones?"}) == "Two ones?"
