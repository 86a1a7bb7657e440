"""Tiny GGUF files for tests, written as llama.cpp's converter writes them. No network, no tests.

save_gguf(tmp_path / "model.gguf", tiny_model("llama"), "Q8_0")
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from tiny import BOS, CHAT_TEMPLATE, EOS, PAD, SPECIAL_TOKENS, tiny_tokenizer

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


def save_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    *,
    head: str | None = None,
    leave_out: str = "nothing",
) -> Path:
    """Write a model of `tiny_model` with the tiny tokenizer.

    Matrices have the type `kind`, vectors are float32. The output matrix has the type `head`; none
    given: it is written where the model does not tie it, in `kind`.
    """
    config, architecture = model.config, model.config.model_type
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    if head is None and config.tie_word_embeddings:
        del weights["lm_head.weight"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    for name, value in weights.items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored == leave_out:
            continue
        of_head = head if name == "lm_head.weight" and head else kind
        _add(writer, stored, _as_stored(name, value, config), of_head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_stored(name: str, value: Any, config: Any) -> Any:
    """llama.cpp rotates pairs of neighbours, transformers halves: rows are exchanged for it."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    rotated = next((count for part, count in heads.items() if part in name), None)
    if config.model_type != "llama" or rotated is None:
        return value
    halves = value.reshape(rotated, 2, -1, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


def _add(writer: gguf.GGUFWriter, name: str, value: Any, kind: str) -> None:
    if value.ndim == 1 or kind == "F32":
        writer.add_tensor(name, value)
    elif kind == "I8":  # a type that nobody dequantizes
        writer.add_tensor(name, np.round(value).astype(np.int8))
    else:
        number = GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(value, number), raw_dtype=number)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([control if piece in SPECIAL_TOKENS else normal for piece in pieces])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_chat_template(CHAT_TEMPLATE)
