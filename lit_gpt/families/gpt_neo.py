"""GPT-Neo: GPT-2 with separate projections, scores that are not scaled, and a window in every second layer.

Source: Mesh TensorFlow's GPT-Neo (2021); weight names as in `transformers`' GPTNeoForCausalLM, and without its prefix.
"""

from typing import Any

from lit_gpt.families import activation
from lit_gpt.settings import UserError

MODEL_TYPES = ("gpt_neo",)

_KINDS = ("weight", "bias")
_PREFIXES = ("transformer.", "")

WEIGHTS = {
    "lm_head.weight": "lm_head.weight",
    **{f"{prefix}{name}.weight": f"{name}.weight" for name in ("wte", "wpe") for prefix in _PREFIXES},
    **{f"{prefix}ln_f.{kind}": f"norm.{kind}" for kind in _KINDS for prefix in _PREFIXES},
    **{
        f"{prefix}h.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in (
            ("ln_1", "norm_1"),
            ("ln_2", "norm_2"),
            *((f"attn.attention.{part}_proj", f"attn.{part}") for part in "qkv"),
            ("attn.attention.out_proj", "attn.o"),
            ("mlp.c_fc", "mlp.up"),
            ("mlp.c_proj", "mlp.down"),
        )
        for kind in _KINDS
        for prefix in _PREFIXES
    },
}

IGNORED = (r"(transformer\.)?h\.\d+\.attn\.attention\.(bias|masked_bias)",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a GPT-Neo checkpoint -> fields of `Config`.

    Raises:
        UserError: `attention_types` names other kinds than global and local, or does not fit the model.
    """
    layers = hf["num_layers"]
    kinds = [
        kind for group, times in hf.get("attention_types") or [[["global", "local"], 12]] for kind in group * times
    ]
    if strange := set(kinds) - {"global", "local"}:
        raise UserError(f"attention_types '{min(strange)}' is not supported; supported are global and local")
    if len(kinds) != layers:
        raise UserError(f"attention_types is for {len(kinds)} layers, not for {layers}")
    return {
        "block_size": hf.get("max_position_embeddings") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": layers,
        "n_head": hf["num_heads"],
        "n_embd": hf["hidden_size"],
        "intermediate_size": hf.get("intermediate_size") or 4 * hf["hidden_size"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "mlp": "plain",
        "activation": activation(hf, "activation_function", "gelu_new"),
        "out_bias": True,
        "mlp_bias": True,
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "attn_scale": 1.0,
        "sliding_window": hf.get("window_size", 256),
        "windowed": [kind == "local" for kind in kinds],
        "positions": "learned",
    }
