"""A stage that began with one chat template is not resumed with another."""

import pytest

from tiny import tiny_tokenizer
from topr.tokenization.digest import tokenizer_digest


def test_a_tokenizer_is_known_by_what_it_does():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    assert tokenizer_digest(one) == tokenizer_digest(other)
    one(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(one) == tokenizer_digest(other)  # which is a state of it, not a rule
    other.chat_template = "{{ messages[0].content }}!"
    assert tokenizer_digest(one) != tokenizer_digest(other)


@pytest.mark.parametrize("change", ["token", "end"])
def test_tokens_and_ends_count(change):
    one, other = tiny_tokenizer(), tiny_tokenizer()
    if change == "token":
        other.add_tokens(["<new>"])
    else:
        other.eos_token = other.pad_token or "<other>"
    assert tokenizer_digest(one) != tokenizer_digest(other)
