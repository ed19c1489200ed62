"""GPT-J: attention and MLP side by side with one norm, rotated channels in neighbouring pairs, a bias in the head.

Source: Mesh Transformer JAX (2021); weight names as in `transformers`' GPTJForCausalLM.
"""

import math
from typing import Any

from lit_gpt.families import activation, interleaved
from lit_gpt.settings import UserError

MODEL_TYPES = ("gptj",)

_KINDS = ("weight", "bias")

WEIGHTS = {
    "transformer.wte.weight": "wte.weight",
    **{f"transformer.ln_f.{kind}": f"norm.{kind}" for kind in _KINDS},
    **{f"lm_head.{kind}": f"lm_head.{kind}" for kind in _KINDS},
    **{
        f"transformer.h.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (("ln_1", "norm_1"), ("mlp.fc_in", "mlp.up"), ("mlp.fc_out", "mlp.down"))
        for kind in _KINDS
    },
    **{
        f"transformer.h.{{}}.attn.{part}_proj.weight": interleaved(f"blocks.{{}}.attn.{part}.weight")
        for part in ("q", "k")
    },
    "transformer.h.{}.attn.v_proj.weight": "blocks.{}.attn.v.weight",
    "transformer.h.{}.attn.out_proj.weight": "blocks.{}.attn.o.weight",
}

IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GPT-J checkpoint -> fields of `Config`.

    Raises:
        UserError: the rotated channels are not pairs of a head.
    """
    head, rotated = hf["n_embd"] // hf["n_head"], hf.get("rotary_dim", 64)
    if not rotated or rotated % 2 or rotated > head:
        raise UserError(f"rotary_dim {rotated} is not supported: even numbers up to the head's {head} are")
    return {
        "block_size": hf.get("n_positions") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["n_layer"],
        "n_head": hf["n_head"],
        "n_embd": hf["n_embd"],
        "intermediate_size": hf.get("n_inner") or 4 * hf["n_embd"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "activation_function", "gelu_new"),
        "parallel_residual": True,
        "shared_norm": True,
        "mlp_bias": True,
        "head_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
        # a quotient that was rounded down would give one channel less when it is multiplied again
        "rope_percentage": math.nextafter(rotated / head, 1),
    }
