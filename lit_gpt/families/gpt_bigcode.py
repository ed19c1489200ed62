"""StarCoder and SantaCoder: GPT-2 with one key and value head for all queries.

Sources: arXiv 2305.06161, arXiv 2301.03988; weight names as in `transformers`' GPTBigCodeForCausalLM.
"""

from typing import Any

from lit_gpt.families import activation, grouped
from lit_gpt.settings import UserError

MODEL_TYPES = ("gpt_bigcode",)

_KINDS = ("weight", "bias")

WEIGHTS = {
    "transformer.wte.weight": "wte.weight",
    "transformer.wpe.weight": "wpe.weight",
    "lm_head.weight": "lm_head.weight",
    **{f"transformer.ln_f.{kind}": f"norm.{kind}" for kind in _KINDS},
    **{
        f"transformer.h.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("ln_1", "norm_1"),
            ("ln_2", "norm_2"),
            ("attn.c_proj", "attn.o"),
            ("mlp.c_fc", "mlp.up"),
            ("mlp.c_proj", "mlp.down"),
        )
        for kind in _KINDS
    },
    **{
        f"transformer.h.{{}}.attn.c_attn.{kind}": grouped(
            *(f"blocks.{{}}.attn.{part}.{kind}" for part in ("q", "k", "v"))
        )
        for kind in _KINDS
    },
}

IGNORED = (r"transformer\.(h\.\d+\.attn\.)?(bias|masked_bias)",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GPTBigCode checkpoint -> fields of `Config`.

    Raises:
        UserError: layers attend to an encoder.
    """
    if hf.get("add_cross_attention"):
        raise UserError("add_cross_attention is not supported")
    return {
        "block_size": hf.get("n_positions") or 1024,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["n_layer"],
        "n_head": hf["n_head"],
        "n_embd": hf["n_embd"],
        "intermediate_size": hf.get("n_inner") or 4 * hf["n_embd"],
        "n_query_groups": 1 if hf.get("multi_query", True) else hf["n_head"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "activation_function", "gelu_pytorch_tanh"),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "attn_scale": None if hf.get("scale_attn_weights", True) else 1.0,
        "positions": "learned",
    }
