"""The tokenizer of the arithmetic task: one token per word, sign and number. Nothing is trained.

Prompt and completion may be tokenised apart or together, with or without a space between them:
the ids are the same, since no token reaches over a space or from a word into a sign.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from topr.tasks.arithmetic.demonstrations import FILLERS, MAX_NUMBER
from topr.tasks.arithmetic.problems import NAMES, THINGS, WORDINGS

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_SIGNS = ("+", "-", "*", "=", ".", "?")
_FRAME = ("has", "How", "many", "now", "so", "doubled", "The", "answer", "is", "I", "am", "not")


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return the tokenizer: about 128 tokens, ids 0, 1, 2 for padding, end and unknown.

    Args:
        more: further words, after all others.

    """
    words_in_order = dict.fromkeys([PAD, EOS, UNK, *_tokens(), *more])
    vocabulary = {token: index for index, token in enumerate(words_in_order)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _tokens() -> list[str]:
    numbers = [str(number) for number in range(MAX_NUMBER + 1)]
    forms = [form for forms in WORDINGS.values() for form in forms]
    clauses = [word for form in forms for word in form.split() if not word.startswith("{")]
    # Each word once, in an order that stays as it is between runs.
    return list(
        dict.fromkeys(
            [*numbers, *_SIGNS, *_FRAME, "sure", *clauses, *FILLERS, *NAMES, *THINGS],
        )
    )
