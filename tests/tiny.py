"""Tiny random models and a byte-level tokenizer for tests. No network, no training, no tests.

model, tokenizer = tiny_model("llama"), tiny_tokenizer()
save_tiny(tmp_path)   # a Hugging Face model directory: config, safetensors, tokenizer
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from topr.stages.train_arguments import CHECKPOINTING

PAD, BOS, EOS, TURN_START, TURN_END = range(5)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
# A few merges, so that one token holds several characters and words begin with a space.
MERGES = [
    ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("T", "he"), ("Ġ", "a"), ("n", "s"), ("w", "e"),
    ("e", "r"), ("we", "r"), ("ns", "wer"), ("Ġa", "nswer"), ("i", "s"), ("Ġ", "is"),
    ("Ċ", "Ċ"), ("Ġ", "="), ("1", "2"),
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat_template: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 277 tokens: any text makes the round trip. Ids 0 to 4 are special."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += ["".join(pair) for pair in MERGES]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 - a token of the vocabulary
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _llama(**common: Any) -> PreTrainedConfig:
    return LlamaConfig(num_key_value_heads=2, **common)


def _qwen2(**common: Any) -> PreTrainedConfig:
    return Qwen2Config(num_key_value_heads=2, **common)


def _qwen3(**common: Any) -> PreTrainedConfig:
    return Qwen3Config(num_key_value_heads=2, **({"head_dim": 8} | common))


def _gemma(config: Callable[..., PreTrainedConfig], **common: Any) -> PreTrainedConfig:
    """One sliding layer, one full; a window of 8 tokens, so that tests slide past it.

    Gemma scales its embeddings up, so narrower weights keep its distributions from being points.
    """
    common["initializer_range"] *= 0.4
    return config(
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        **common,
    )


def _gemma1(**common: Any) -> PreTrainedConfig:
    common["initializer_range"] *= 0.4
    return GemmaConfig(num_key_value_heads=1, **({"head_dim": 8} | common))


def _gemma2(**common: Any) -> PreTrainedConfig:
    return _gemma(Gemma2Config, **common)


def _gemma3(**common: Any) -> PreTrainedConfig:
    return _gemma(Gemma3TextConfig, **common)


def _gpt_neox(**common: Any) -> PreTrainedConfig:
    return GPTNeoXConfig(**common)


ARCHITECTURES: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma1,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt_neox": _gpt_neox,
}


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Compute them anew in the backward pass."""
    getattr(model, f"{CHECKPOINTING}_enable")()  # transformers renamed it


def tiny_model(
    architecture: str = "llama", vocab_size: int | None = None, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random float32 model in eval mode: 2 layers, hidden 32, 4 heads, 256 positions.

    The weights are drawn wide (0.5), so that its next-token distributions are far from uniform
    and differ from position to position. `vocab_size` defaults to the tiny tokenizer's.
    """
    settings: dict[str, Any] = {
        "vocab_size": len(tiny_tokenizer()) if vocab_size is None else vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    config = ARCHITECTURES[architecture](**(settings | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def save_tiny(
    path: Path,
    architecture: str = "llama",
    *,
    chat_template: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a Hugging Face model directory (config, safetensors, tokenizer); return its path."""
    tiny_model(architecture, seed=seed, **overrides).save_pretrained(path)
    tiny_tokenizer(chat_template).save_pretrained(path)
    return path
