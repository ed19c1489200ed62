"""Gemma 2: Gemma with norms behind attention and MLP too, softcaps, and a window in every second layer.

Source: arXiv 2408.00118; weight names as in `transformers`' Gemma2ForCausalLM.
"""

from typing import Any

from lit_gpt.families import gemma
from lit_gpt.settings import UserError

MODEL_TYPES = ("gemma2",)

WEIGHTS = {
    **gemma.WEIGHTS,
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.post_1.weight",
    "model.layers.{}.pre_feedforward_layernorm.weight": "blocks.{}.norm_2.weight",
    "model.layers.{}.post_feedforward_layernorm.weight": "blocks.{}.post_2.weight",
}

IGNORED = gemma.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Gemma 2 checkpoint -> fields of `Config`.

    Raises:
        UserError: as for Gemma, or a layer of an unknown kind.
    """
    return {
        **gemma.fields({"num_key_value_heads": 4, **hf}),
        "post_norm": True,
        "attn_scale": hf.get("query_pre_attn_scalar", 256) ** -0.5,
        "attn_softcap": hf.get("attn_logit_softcapping", 50.0),
        "logit_softcap": hf.get("final_logit_softcapping", 30.0),
        "sliding_window": hf.get("sliding_window", 4096),
        "windowed": windowed(hf, 2),
    }


def windowed(hf: dict[str, Any], every: int) -> list[bool]:
    """Which layers have a window: by `layer_types`, or where that is missing all but one of `every` so many.

    Raises:
        UserError: `layer_types` does not fit the model.
    """
    layers = hf["num_hidden_layers"]
    kinds = hf.get("layer_types")
    if not kinds:
        return [bool((layer + 1) % every) for layer in range(layers)]
    if strange := set(kinds) - {"sliding_attention", "full_attention"}:
        raise UserError(f"layer_types '{min(strange)}' is not supported; supported are sliding and full attention")
    if len(kinds) != layers:
        raise UserError(f"layer_types has {len(kinds)} entries for {layers} layers")
    return [kind == "sliding_attention" for kind in kinds]
