"""Prompts to text and ids, with real tokenizers made here."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from topr.errors import DataError, ModelError
from topr.records import Message
from topr.tasks.prompts import chat_prompt
from topr.tokenization.prompts import render

BOS, EOS = 0, 1
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = (Message(role="user", content="2 + 2?"),)


def make_tokenizer(single: str = "<s> $A", template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte; `single` says which special tokens go around a text."""
    special = {"<s>": BOS, "</s>": EOS}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = special | {letter: i for i, letter in enumerate(letters, start=len(special))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(list(special))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(special.items())
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("single", "before"), [("$A", []), ("<s> $A", [BOS]), ("$A </s>", []), ("<s> $A </s>", [BOS])]
)
def test_plain_text_keeps_what_the_tokenizer_puts_before_it_and_not_what_it_puts_after(
    single, before
):
    tokenizer = make_tokenizer(single)
    rendered = render("2 + 2?\nAnswer:", tokenizer)
    assert rendered.text == "2 + 2?\nAnswer:"
    assert list(rendered.ids[: len(before)]) == before
    assert BOS not in rendered.ids[len(before) :]
    assert EOS not in rendered.ids
    assert tokenizer.decode(rendered.ids, skip_special_tokens=True) == rendered.text


def test_text_that_opens_with_a_bos_gets_no_second_one():
    ids = render("<s>2 + 2?", make_tokenizer("<s> $A </s>")).ids
    assert ids.count(BOS) == 1
    assert ids[0] == BOS
    assert EOS not in ids


def test_an_eos_that_the_text_itself_ends_in_stays():
    # A user's own template may close a turn with it.
    assert render("2 + 2?</s>", make_tokenizer("<s> $A")).ids[-1] == EOS


@pytest.mark.parametrize("single", ["$A", "<s> $A", "<s> $A </s>"])
def test_messages_go_through_the_template_with_one_bos_up_to_the_answer(single):
    tokenizer = make_tokenizer(single, TEMPLATE)
    examples = chat_prompt("2 + 2?", [("1 + 1?", "2")])
    rendered = render(examples, tokenizer)
    assert rendered.text == "<s><user>1 + 1?</s><assistant>2</s><user>2 + 2?</s><assistant>"
    assert rendered.ids.count(BOS) == 1
    assert rendered.ids.count(EOS) == 3
    assert tokenizer.decode(rendered.ids) == rendered.text


def test_a_chat_prompt_without_examples_says_how_to_answer():
    (only,) = chat_prompt("2 + 2?", [], "End with a number.")
    assert only == Message(role="user", content="End with a number.\n\n2 + 2?")


def test_messages_without_a_chat_template_say_what_to_do():
    with pytest.raises(ModelError, match=r"no chat template: set task.prompt=plain"):
        render(ASKED, make_tokenizer())


def test_a_template_that_refuses_a_role_is_named_with_its_reason():
    messages = (Message(role="critic", content="Be brief."), *ASKED)
    with pytest.raises(ModelError, match=r"roles critic, user: no role critic"):
        render(messages, make_tokenizer(template=TEMPLATE))


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match="no tokens"):
        render("", make_tokenizer())


def test_a_template_that_prints_the_date_prints_the_same_one_every_day():
    dated = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    rendered = render(ASKED, make_tokenizer(template=dated))
    assert rendered.text == "26 Jul 2024 2 + 2?"
    llama = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date_string = 'never' %}{%- endif %}{%- endif %}{{ date_string }}"
    )
    assert render(ASKED, make_tokenizer(template=llama)).text == "26 Jul 2024"
    for call in ("strftime_now(messages[0].content)", "strftime_now( f )"):
        with pytest.raises(ModelError, match="strftime_now"):
            render(ASKED, make_tokenizer(template="{{ " + call + " }}"))
