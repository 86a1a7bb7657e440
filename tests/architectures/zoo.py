"""A tiny random model of every causal language model that transformers lists.

    model = build("mistral")

A config is made from its class's own defaults: what says how large the model is becomes tiny, what
is switched off and matters in training (dropout, router noise) is switched on, and windows become
shorter than the sequences. No tests here, and nothing of topr.
"""

import inspect
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tiny import BOS, EOS, PAD, tiny_tokenizer

ARCHITECTURES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Names of `model_type`, as a config has them."""

WINDOW = 8
POSITIONS = 256

NOISE = re.compile(r"drop|jitter")
NOISE_LEVEL = 0.3
"""What is made of every dropout probability and every jitter of a config."""

KINDS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types", "indexer_types")
"""Fields that list a kind for each layer: a layer of each kind is kept."""

LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "num_blocks",
)  # fmt: skip

UNSET = ("head_dim", "sliding_window", "pad_token_id", "bos_token_id", "eos_token_id",
         "n_routed_experts", "num_key_value_heads", "num_experts_per_tok",
         "n_shared_experts")  # fmt: skip
"""Fields that are given a size where the class leaves them open, too."""

SIZES: dict[str, Any] = {
    "vocab_size": len(tiny_tokenizer()),
    "vocab_size_per_layer_input": len(tiny_tokenizer()),
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
} | dict.fromkeys(
    ("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim",
     "attention_hidden_size", "lru_width", "embedding_dim", "emb_dim"), 32,
) | dict.fromkeys(
    ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "dff", "dim_ff",
     "feed_forward_size", "d_inner", "ffn_hidden_size", "intermediate_size_mlp",
     "dense_intermediate_size"), 64,
) | dict.fromkeys(
    ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
     "shared_experts_intermediate_size", "expert_ffn_hidden_size",
     "moe_shared_expert_intermediate_size", "hidden_size_per_layer_input", "router_hidden_size",
     "q_lora_rank", "kv_lora_rank", "o_lora_rank", "hc_lowrank", "ple_embed_dim"), 16,
) | dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads",
     "encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads",
     "num_decoder_attention_heads", "swa_num_attention_heads"), 4,
) | dict.fromkeys(
    ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads",
     "linear_num_heads", "index_n_heads", "n_mamba_heads", "linear_num_value_heads"), 2,
) | dict.fromkeys(
    ("head_dim", "v_head_dim", "swa_head_dim", "d_head", "dim_head", "kv_channels",
     "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "rotary_dim",
     "query_pre_attn_scalar", "attention_head_dim", "attention_head_size", "index_head_dim",
     "qk_nope_head_dim", "qk_rope_head_dim"), 8,
) | dict.fromkeys(
    LAYERS, 2,
) | dict.fromkeys(
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4,
) | dict.fromkeys(
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "n_shared_experts",
     "num_shared_experts", "moe_num_shared_experts"), 2,
) | dict.fromkeys(
    ("n_group", "topk_group", "num_expert_group", "n_groups", "mamba_n_groups", "mamba_ngroups",
     "first_k_dense_replace", "num_dense_layers"), 1,
) | dict.fromkeys(
    ("sliding_window", "sliding_window_size", "window_size", "attention_window_size",
     "local_attention", "attention_chunk_size", "local_attention_window_len",
     "keep_window_size", "index_topk"), WINDOW,
) | dict.fromkeys(
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
     "max_target_positions", "model_max_length"), POSITIONS,
) | {
    "mamba_d_state": 8, "state_size": 8, "ssm_state_size": 8,
    "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "time_step_rank": 4, "mamba_dt_rank": 4, "chunk_size": 8, "mamba_chunk_size": 8,
    "mamba_d_ssm": 64, "use_sliding_window": True, "max_window_layers": 1,
}  # fmt: skip
"""What a config is made with, where its class has the field."""

_QWEN4 = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 4, "ngram_vocab_size_base": 200, "split_ngram_parts": 1,
}  # fmt: skip

OVERRIDES: dict[str, dict[str, Any]] = {
    "diffllama": {"attention_dropout": 0.0},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 200,
        "split_ngram_parts": 1,
    },
    "zamba": {
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
    },
    "dots1": {"n_group": 1, "topk_group": 1},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "minicpm3": {"scale_emb": 1},  # else one token has nearly all of the probability
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 300,
        "shape_embed_dim": 8,
        "shape_vocab_size": 300,
    },
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 64},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
}
"""What single architectures need besides."""


NOT_BUILT: dict[str, str] = {
    "blt": "its embeddings of hashed bytes have sizes of their own",
    "dbrx": "its attention reads a field that transformers 5.23 gives no config",
    "dots3_note": "multimodal; its text model is dots3_note_text",
    "gemma3n": "multimodal, needs timm; its text model is gemma3n_text",
    "gemma4_assistant": "drafts for another model, whose states it is given",
    "gemma4_unified_assistant": "drafts for another model, whose states it is given",
    "musicgen": "transformers cannot make the class from this config",
    "musicgen_melody": "transformers cannot make the class from this config",
    "qwen4_exp": "multimodal; its text model is qwen4_exp_text",
}
"""What cannot be built from the class's defaults made tiny, and why. It must not grow unseen."""

ORIGINAL = 28
"""Tokens from which the variants scale positions: fewer than sequences have."""


def _rope(kind: str, **further: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} | further


_ORIGINAL = {"original_max_position_embeddings": ORIGINAL}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, linear": ("llama", {"rope_parameters": _rope("linear")}),
    "llama, dynamic": (
        "llama", {"rope_parameters": _rope("dynamic"), "max_position_embeddings": ORIGINAL},
    ),
    "llama, yarn": ("llama", {"rope_parameters": _rope("yarn", **_ORIGINAL)}),
    "llama, longrope": (
        "llama",
        {
            "rope_parameters": _rope(
                "longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4, **_ORIGINAL
            )
        },
    ),
    "llama, llama3": (
        "llama",
        {"rope_parameters": _rope("llama3", low_freq_factor=1, high_freq_factor=4, **_ORIGINAL)},
    ),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "bert, bidirectional": ("bert", {"is_decoder": False}),
}  # fmt: skip
"""Settings of an architecture that change what matters here: name to architecture and fields."""


TRIED = tuple(name for name in (*ARCHITECTURES, *VARIANTS) if name not in NOT_BUILT)
"""Architectures and variants that `build` makes."""


def fields_of(kind: type[PreTrainedConfig]) -> set[str]:
    """Return the fields that a config class can be made with."""
    return set(inspect.signature(kind.__init__).parameters) | set(
        getattr(kind, "__dataclass_fields__", ())
    )


def _default(config: PreTrainedConfig, name: str) -> Any:
    """Return a field of a default config; where layers differ in it, the class's own default."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' error for it is not public
        return getattr(type(config), name, None)


def tiny_config(kind: type[PreTrainedConfig], **overrides: Any) -> PreTrainedConfig:
    """Return a tiny config of a class; those inside it are tiny too."""
    names = fields_of(kind)
    default = kind()
    found: dict[str, Any] = {}
    for name in names:
        value = _default(default, name)
        known = name if name in SIZES else kind.attribute_map.get(name, name)
        if known in SIZES and (type(value) is int or name in UNSET):
            found[name] = SIZES[known]
        elif NOISE.search(name) and type(value) in (int, float):
            found[name] = NOISE_LEVEL
    if "per_layer_config" in names:
        found.pop("per_layer_config", None)
    if "is_decoder" in names:
        found["is_decoder"] = True
    if "kv_lora_rank" in names:  # every head has keys of its own there
        found["num_key_value_heads"] = found["num_attention_heads"]
    layers = [n for n in KINDS if n in names and isinstance(_default(default, n), list | tuple)]
    for name in layers:
        distinct = list(dict.fromkeys(_default(default, name)))
        found[name] = distinct if len(distinct) > 1 else distinct * 2
    count = max((len(found[name]) for name in layers), default=2)
    for name in layers:
        found[name] = (found[name] * count)[:count]
    found |= {name: count for name in LAYERS if name in found}
    for name in getattr(kind, "sub_configs", {}):
        inner = _default(default, name)
        if isinstance(inner, PreTrainedConfig):
            found[name] = tiny_config(type(inner), **overrides.pop(name, {}))
    return kind(**(found | overrides))


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random float32 model in evaluation mode, its distributions far from uniform.

    Args:
        name: an architecture, or a variant.
        seed: of the weights.

    """
    name, fields = VARIANTS.get(name, (name, {}))
    config = tiny_config(CONFIG_MAPPING[name], **(OVERRIDES.get(name, {}) | fields))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.2 if parameter.ndim > 1 else 0.1
                parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()
