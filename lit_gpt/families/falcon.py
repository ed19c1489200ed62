"""Falcon: 7B (multi-query, one norm for attention and MLP), 40B and 180B (grouped queries, two norms), 11B (one norm).

The first ones, falcon-rw, are multi-head and have ALiBi, in 16 bits and scaled as the scores are.

Reads the `config.json` of `transformers`' FalconForCausalLM and that of the first releases, whose code came with the
checkpoint (`model_type` RefinedWebModel for 7B and RefinedWeb for 40B, with keys of their own). Source: arXiv
2311.16867.
"""

from typing import TYPE_CHECKING, Any

from lit_gpt.families import activation, grouped, rope_fields
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lit_gpt.config import Config

MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")

_KINDS = ("weight", "bias")

WEIGHTS = {
    "transformer.word_embeddings.weight": "wte.weight",
    "lm_head.weight": "lm_head.weight",
    **{f"transformer.ln_f.{kind}": f"norm.{kind}" for kind in _KINDS},
    **{
        f"transformer.h.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("input_layernorm", "norm_1"),  # one norm, or two in sequence
            ("post_attention_layernorm", "norm_2"),
            ("ln_attn", "norm_1"),  # two norms side by side
            ("ln_mlp", "norm_2"),
            ("self_attention.dense", "attn.o"),
            ("mlp.dense_h_to_4h", "mlp.up"),
            ("mlp.dense_4h_to_h", "mlp.down"),
        )
        for kind in _KINDS
    },
    **{
        f"transformer.h.{{}}.self_attention.query_key_value.{kind}": grouped(
            *(f"blocks.{{}}.attn.{part}.{kind}" for part in ("q", "k", "v"))
        )
        for kind in _KINDS
    },
}

IGNORED = (r"transformer\.h\.\d+\.self_attention\.(maybe_)?rotary(_emb)?\.inv_freq",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Falcon checkpoint -> fields of `Config`.

    Raises:
        UserError: a residual stream after the norm.
    """
    if hf.get("apply_residual_connection_post_layernorm"):
        raise UserError("apply_residual_connection_post_layernorm is not supported")
    bias = bool(hf.get("bias", False))
    width = _either(hf, "hidden_size", "n_embed")
    heads = _either(hf, "num_attention_heads", "n_head")
    groups, parallel, shared = _shape(hf, heads)
    return {
        "block_size": hf.get("max_position_embeddings") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": _either(hf, "num_hidden_layers", "n_layer"),
        "n_head": heads,
        "n_embd": width,
        "intermediate_size": hf.get("ffn_hidden_size") or 4 * width,
        "n_query_groups": groups,
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "activation", "gelu"),
        "parallel_residual": parallel,
        "shared_norm": shared,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        **({"positions": "alibi-16"} if hf.get("alibi") else rope_fields(hf)),
    }


def _shape(hf: dict[str, Any], heads: int) -> tuple[int, bool, bool]:
    """Key and value heads, and whether attention and MLP stand side by side, and share their norm."""
    first_release = hf["model_type"] != "falcon"
    if hf.get("new_decoder_architecture", hf["model_type"] == "RefinedWeb"):
        groups = hf.get("num_kv_heads") or hf.get("n_head_kv") or heads
        return groups, True, hf.get("num_ln_in_parallel_attn") == 1
    groups = 1 if hf.get("multi_query", not first_release) else heads
    parallel = bool(hf.get("parallel_attn", not first_release))
    return groups, parallel, parallel


def _either(hf: dict[str, Any], key: str, old: str) -> int:
    """The value of `key`, or of its name in the first releases."""
    return hf[old] if key not in hf and old in hf else hf[key]


def in_files(config: "Config") -> tuple[str, ...]:
    """See `lit_gpt.families`."""
    two = config.parallel_residual and not config.shared_norm
    return (
        tuple(f"transformer.h.{{}}.{name}.{kind}" for name in ("ln_attn", "ln_mlp") for kind in _KINDS) if two else ()
    )
