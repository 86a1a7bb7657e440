"""What tells a tokenizer, its chat template included, from another one."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STATE = ("padding", "truncation")
"""Parts of a fast tokenizer that calls of it change."""


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a hash of all that prompts and their ids depend on, wherever its files lie."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = dict(sorted(tokenizer.get_vocab().items()))
    else:
        parts = json.loads(backend.to_str())
        rules = {name: part for name, part in parts.items() if name not in _STATE}
    special = [tokenizer.bos_token, tokenizer.eos_token]
    text = json.dumps([rules, tokenizer.chat_template, special], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
