"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere, heads that are partly rotated.

Sources: arXiv 2306.11644, arXiv 2309.05463; weight names as in `transformers`' PhiForCausalLM.
"""

from typing import Any

from lit_gpt.families import activation, rope_fields

MODEL_TYPES = ("phi",)

_KINDS = ("weight", "bias")

WEIGHTS = {
    "model.embed_tokens.weight": "wte.weight",
    **{f"model.final_layernorm.{kind}": f"norm.{kind}" for kind in _KINDS},
    **{f"lm_head.{kind}": f"lm_head.{kind}" for kind in _KINDS},
    **{
        f"model.layers.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("input_layernorm", "norm_1"),
            ("self_attn.q_proj", "attn.q"),
            ("self_attn.k_proj", "attn.k"),
            ("self_attn.v_proj", "attn.v"),
            ("self_attn.dense", "attn.o"),
            ("self_attn.q_layernorm", "attn.q_norm"),
            ("self_attn.k_layernorm", "attn.k_norm"),
            ("mlp.fc1", "mlp.up"),
            ("mlp.fc2", "mlp.down"),
        )
        for kind in _KINDS
    },
}

IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Phi checkpoint -> fields of `Config`."""
    return {
        "block_size": hf.get("max_position_embeddings") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "head_size": hf.get("head_dim"),
        "n_query_groups": hf.get("num_key_value_heads"),
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "qk_norm": "head" if hf.get("qk_layernorm") else None,
        "mlp": "plain",
        "activation": activation(hf, "hidden_act", "gelu_new"),
        "parallel_residual": True,
        "shared_norm": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        **rope_fields(hf, hf.get("partial_rotary_factor") or 0.5),
    }
