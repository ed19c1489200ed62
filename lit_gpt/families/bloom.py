"""BLOOM and BLOOMZ: ALiBi instead of positions, and a norm behind the embedding.

Source: arXiv 2211.05100; weight names as in `transformers`' BloomForCausalLM, and without its prefix as in BigScience's
repositories.
"""

from typing import Any

from lit_gpt.families import grouped
from lit_gpt.settings import UserError

MODEL_TYPES = ("bloom",)

_KINDS = ("weight", "bias")
_PREFIXES = ("transformer.", "")

WEIGHTS = {
    "lm_head.weight": "lm_head.weight",
    **{f"{prefix}word_embeddings.weight": "wte.weight" for prefix in _PREFIXES},
    **{
        f"{prefix}{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (
            ("word_embeddings_layernorm", "embed_norm"),
            ("ln_f", "norm"),
            ("h.{}.input_layernorm", "blocks.{}.norm_1"),
            ("h.{}.post_attention_layernorm", "blocks.{}.norm_2"),
            ("h.{}.self_attention.dense", "blocks.{}.attn.o"),
            ("h.{}.mlp.dense_h_to_4h", "blocks.{}.mlp.up"),
            ("h.{}.mlp.dense_4h_to_h", "blocks.{}.mlp.down"),
        )
        for kind in _KINDS
        for prefix in _PREFIXES
    },
    **{
        f"{prefix}h.{{}}.self_attention.query_key_value.{kind}": grouped(
            *(f"blocks.{{}}.attn.{part}.{kind}" for part in ("q", "k", "v"))
        )
        for kind in _KINDS
        for prefix in _PREFIXES
    },
}

IGNORED = ()


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a BLOOM checkpoint -> fields of `Config`.

    The first releases have `n_embed` and `num_attention_heads` where `transformers` writes `hidden_size` and `n_head`.

    Raises:
        UserError: a residual stream after the norm.
    """
    if hf.get("apply_residual_connection_post_layernorm"):
        raise UserError("apply_residual_connection_post_layernorm is not supported")
    width = hf.get("n_embed") or hf["hidden_size"]
    return {
        "block_size": hf.get("seq_length") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf.get("num_hidden_layers") or hf["n_layer"],
        "n_head": hf.get("num_attention_heads") or hf["n_head"],
        "n_embd": width,
        "intermediate_size": 4 * width,
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "embed_norm": True,
        "mlp": "plain",
        "activation": "gelu_pytorch_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "positions": "alibi",
    }
