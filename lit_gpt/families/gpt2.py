"""GPT-2 and what shares its architecture: Cerebras-GPT.

Sources: the GPT-2 report (2019), arXiv 2304.03208; weight names as in `transformers`' GPT2LMHeadModel, and without its
prefix as in OpenAI's repositories. The projections are stored turned: columns for outputs.
"""

from typing import Any

from lit_gpt.families import activation, turned
from lit_gpt.settings import UserError

MODEL_TYPES = ("gpt2",)

_KINDS = ("weight", "bias")
_PREFIXES = ("transformer.", "")

WEIGHTS = {
    "lm_head.weight": "lm_head.weight",
    **{f"{prefix}{name}.weight": f"{name}.weight" for name in ("wte", "wpe") for prefix in _PREFIXES},
    **{f"{prefix}ln_f.{kind}": f"norm.{kind}" for kind in _KINDS for prefix in _PREFIXES},
    **{
        f"{prefix}h.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (("ln_1", "norm_1"), ("ln_2", "norm_2"))
        for kind in _KINDS
        for prefix in _PREFIXES
    },
    **{
        f"{prefix}h.{{}}.{theirs}.{kind}": turned(*(f"blocks.{{}}.{name}.{kind}" for name in ours))
        for theirs, ours in (
            ("attn.c_attn", ("attn.q", "attn.k", "attn.v")),
            ("attn.c_proj", ("attn.o",)),
            ("mlp.c_fc", ("mlp.up",)),
            ("mlp.c_proj", ("mlp.down",)),
        )
        for kind in _KINDS
        for prefix in _PREFIXES
    },
}

IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GPT-2 checkpoint -> fields of `Config`.

    Raises:
        UserError: every layer has a scale of its own, or attends to an encoder.
    """
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if hf.get(key):
            raise UserError(f"{key} is not supported")
    return {
        "block_size": hf.get("n_positions") or 1024,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["n_layer"],
        "n_head": hf["n_head"],
        "n_embd": hf["n_embd"],
        "intermediate_size": hf.get("n_inner") or 4 * hf["n_embd"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "activation_function", "gelu_new"),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "attn_scale": None if hf.get("scale_attn_weights", True) else 1.0,
        "positions": "learned",
    }
