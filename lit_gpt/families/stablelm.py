"""StableLM 3B 4E1T, StableLM 2 and StableLM Zephyr: Llama with LayerNorm and partly rotated heads.

Reads the `config.json` of `transformers`' StableLmForCausalLM and that of the first releases, whose code came with the
checkpoint (`model_type` stablelm_epoch). Sources: the report on StableLM 3B 4E1T (2023), arXiv 2402.17834.
"""

from typing import Any

from lit_gpt.families import activation, llama, rope_fields

MODEL_TYPES = ("stablelm", "stablelm_epoch")

WEIGHTS = {
    **llama.WEIGHTS,
    "model.norm.bias": "norm.bias",
    "model.layers.{}.input_layernorm.bias": "blocks.{}.norm_1.bias",
    "model.layers.{}.post_attention_layernorm.bias": "blocks.{}.norm_2.bias",
    "model.layers.{}.self_attn.q_layernorm.norms.[].weight": "blocks.{}.attn.q_norm.[].weight",
    "model.layers.{}.self_attn.k_layernorm.norms.[].weight": "blocks.{}.attn.k_norm.[].weight",
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a StableLM checkpoint -> fields of `Config`."""
    parallel = bool(hf.get("use_parallel_residual", False))
    return {
        "block_size": hf.get("max_position_embeddings") or 4096,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "n_query_groups": hf.get("num_key_value_heads"),
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_eps") or hf.get("norm_eps") or 1e-5,
        "qk_norm": "each" if hf.get("qk_layernorm") else None,
        "mlp": "gated",
        "activation": activation(hf, "hidden_act", "silu"),
        "parallel_residual": parallel,
        "shared_norm": parallel,
        "qkv_bias": bool(hf.get("use_qkv_bias", False)),
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        **rope_fields(hf, hf.get("partial_rotary_factor") or hf.get("rope_pct") or 0.25),
    }
