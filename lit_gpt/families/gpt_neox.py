"""GPT-NeoX and what shares its architecture: Pythia, RedPajama-INCITE, StableLM alpha, Dolly v2.

Sources: arXiv 2204.06745, arXiv 2304.01373; weight names as in `transformers`' GPTNeoXForCausalLM.
"""

from typing import TYPE_CHECKING, Any

from lit_gpt.families import activation, grouped, rope_fields

if TYPE_CHECKING:
    from lit_gpt.config import Config

MODEL_TYPES = ("gpt_neox",)

_KINDS = ("weight", "bias")

WEIGHTS = {
    "gpt_neox.embed_in.weight": "wte.weight",
    "lm_head.weight": "lm_head.weight",  # in the memory of transformers 5
    "embed_out.weight": "lm_head.weight",  # in files
    **{f"gpt_neox.final_layer_norm.{kind}": f"norm.{kind}" for kind in _KINDS},
    **{
        f"gpt_neox.layers.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("input_layernorm", "norm_1"),
            ("post_attention_layernorm", "norm_2"),
            ("attention.dense", "attn.o"),
            ("mlp.dense_h_to_4h", "mlp.up"),
            ("mlp.dense_4h_to_h", "mlp.down"),
        )
        for kind in _KINDS
    },
    **{
        f"gpt_neox.layers.{{}}.attention.query_key_value.{kind}": grouped(
            *(f"blocks.{{}}.attn.{part}.{kind}" for part in ("q", "k", "v"))
        )
        for kind in _KINDS
    },
}

IGNORED = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GPT-NeoX checkpoint -> fields of `Config`."""
    attention_bias = bool(hf.get("attention_bias", True))
    return {
        "block_size": hf.get("max_position_embeddings") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["num_hidden_layers"],
        "n_head": hf["num_attention_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "hidden_act", "gelu"),
        "parallel_residual": bool(hf.get("use_parallel_residual", True)),  # the key is younger than GPT-NeoX-20B
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        **rope_fields(hf, hf.get("rotary_pct") or hf.get("partial_rotary_factor") or 0.25),
    }


def in_files(config: "Config") -> tuple[str, ...]:
    """See `lit_gpt.families`."""
    return ("embed_out.weight",)
