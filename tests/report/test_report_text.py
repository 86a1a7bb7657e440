import json
import math
import random
from typing import Any

import pytest

from topr.report.text import align_tokens, clip, json_for_script, visible

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
def test_json_survives_a_script_element_unchanged(seed):
    rng = random.Random(seed)
    value = [odd_value(rng) for _ in range(20)]
    text = json_for_script(value)
    assert text.isascii()
    assert not set("<>&") & set(text)

    def expected(item):
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: expected(inner) for key, inner in item.items()}
        return [expected(inner) for inner in item] if isinstance(item, list) else item

    assert json.loads(text) == expected(value)


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
