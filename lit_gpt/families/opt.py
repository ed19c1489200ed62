"""OPT: learned positions whose table begins with two rows that no position has.

350M is of another kind: its norms stand behind the sums, there is none at the end, and its embedding is narrower than
its layers.

Source: arXiv 2205.01068; weight names as in `transformers`' OPTForCausalLM, and without its prefix as in the first
exports.
"""

from typing import Any

from lit_gpt.families import activation

MODEL_TYPES = ("opt",)

_KINDS = ("weight", "bias")
_PREFIXES = ("model.decoder.", "decoder.")

WEIGHTS = {
    "lm_head.weight": "lm_head.weight",
    **{
        f"{prefix}{theirs}.weight": f"{ours}.weight"
        for theirs, ours in (
            ("embed_tokens", "wte"),
            ("embed_positions", "wpe"),
            ("project_in", "widen"),
            ("project_out", "narrow"),
        )
        for prefix in _PREFIXES
    },
    **{f"{prefix}final_layer_norm.{kind}": f"norm.{kind}" for kind in _KINDS for prefix in _PREFIXES},
    **{
        f"{prefix}layers.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("self_attn_layer_norm", "norm_1"),
            ("final_layer_norm", "norm_2"),
            ("self_attn.q_proj", "attn.q"),
            ("self_attn.k_proj", "attn.k"),
            ("self_attn.v_proj", "attn.v"),
            ("self_attn.out_proj", "attn.o"),
            ("fc1", "mlp.up"),
            ("fc2", "mlp.down"),
        )
        for kind in _KINDS
        for prefix in _PREFIXES
    },
}

IGNORED = (r"(model\.)?decoder\.version",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an OPT checkpoint -> fields of `Config`."""
    before = bool(hf.get("do_layer_norm_before", True))
    width = hf.get("word_embed_proj_dim")
    bias = bool(hf.get("enable_bias", True))
    return {
        "block_size": hf.get("max_position_embeddings") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["ffn_dim"],
        "norm": "layer" if hf.get("layer_norm_elementwise_affine", True) else "plain",
        "norm_eps": 1e-5,
        "norm_sums": not before,
        "final_norm": before and not hf.get("_remove_final_layer_norm"),
        "embed_size": None if width == hf["hidden_size"] else width,
        "mlp": "plain",
        "activation": activation(hf, "activation_function", "relu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "positions": "learned",
        "position_offset": 2,
    }
