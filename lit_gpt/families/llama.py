"""Llama 1 and 2 and what shares their architecture: OpenLLaMA, Vicuna, LongChat, Stable Beluga, Code Llama, TinyLlama.

Sources: arXiv 2302.13971, arXiv 2307.09288; weight names as in `transformers`' LlamaForCausalLM.
"""

from typing import Any

from lit_gpt.families import activation, rope_fields

MODEL_TYPES = ("llama",)

WEIGHTS = {
    "model.embed_tokens.weight": "wte.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
    "model.layers.{}.input_layernorm.weight": "blocks.{}.norm_1.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.norm_2.weight",
    **{
        f"model.layers.{{}}.self_attn.{theirs}_proj.{kind}": f"blocks.{{}}.attn.{ours}.{kind}"
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "o"))
        for kind in ("weight", "bias")
    },
    **{
        f"model.layers.{{}}.mlp.{name}_proj.{kind}": f"blocks.{{}}.mlp.{name}.{kind}"
        for name in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
}

IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Llama checkpoint -> fields of `Config`."""
    attention_bias = bool(hf.get("attention_bias", False))
    return {
        # models with condensed rotary embeddings may keep the base's length in max_position_embeddings
        "block_size": max(hf.get("max_position_embeddings") or 2048, hf.get("max_sequence_length") or 0),
        "padded_vocab_size": hf.get("vocab_size", 32000),
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "head_size": hf.get("head_dim"),
        "n_query_groups": hf.get("num_key_value_heads"),
        "norm": "rms",
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "mlp": "gated",
        "activation": activation(hf, "hidden_act", "silu"),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": bool(hf.get("mlp_bias", False)),
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        **rope_fields(hf),
    }
