"""Phi 3 and Phi 4: Llama with fused weights, windows in the short Phi 3, and heads that may be partly rotated.

The models for 128k tokens, Phi 3.5 and Phi 4 mini have LongRoPE. Sources: arXiv 2404.14219, arXiv 2412.08905; weight
names as in `transformers`' Phi3ForCausalLM.
"""

from typing import Any

from lit_gpt.families import activation, llama, rope_fields, rows

MODEL_TYPES = ("phi3",)

WEIGHTS = {
    "model.embed_tokens.weight": "wte.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
    "model.layers.{}.input_layernorm.weight": "blocks.{}.norm_1.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.norm_2.weight",
    "model.layers.{}.self_attn.qkv_proj.weight": rows(*(f"blocks.{{}}.attn.{part}.weight" for part in "qkv")),
    "model.layers.{}.self_attn.o_proj.weight": "blocks.{}.attn.o.weight",
    "model.layers.{}.mlp.gate_up_proj.weight": rows("blocks.{}.mlp.gate.weight", "blocks.{}.mlp.up.weight"),
    "model.layers.{}.mlp.down_proj.weight": "blocks.{}.mlp.down.weight",
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Phi 3 checkpoint -> fields of `Config`."""
    return {
        "block_size": hf.get("max_position_embeddings") or 4096,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "head_size": hf.get("head_dim"),
        "n_query_groups": hf.get("num_key_value_heads"),
        "norm": "rms",
        "norm_eps": hf.get("rms_norm_eps", 1e-5),
        "mlp": "gated",
        "activation": activation(hf, "hidden_act", "silu"),
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        "sliding_window": hf.get("sliding_window"),
        **rope_fields(hf, hf.get("partial_rotary_factor") or 1.0),
    }
