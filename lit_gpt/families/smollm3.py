"""SmolLM3: Llama in which one layer of four has no rotary positions (arXiv 2501.18795).

Weight names as in `transformers`' SmolLM3ForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama
from lit_gpt.settings import UserError

MODEL_TYPES = ("smollm3",)

WEIGHTS = llama.WEIGHTS

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a SmolLM3 checkpoint -> fields of `Config`.

    Raises:
        UserError: the lists of the layers' kinds do not fit the model or each other.
    """
    hf = {"num_key_value_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 32768, **hf}
    layers, every = hf["num_hidden_layers"], hf.get("no_rope_layer_interval") or 4
    rotated = hf.get("no_rope_layers") or [(layer + 1) % every for layer in range(layers)]  # 0: one without
    windows = bool(hf.get("use_sliding_window")) and hf.get("sliding_window") is not None
    kinds = hf.get("layer_types") or ["full_attention" if r or not windows else "sliding_attention" for r in rotated]
    if strange := set(kinds) - {"full_attention", *(["sliding_attention"] if windows else [])}:
        raise UserError(f"layer_types '{min(strange)}' is not supported, without use_sliding_window and sliding_window")
    if len(rotated) < layers or len(kinds) < layers:
        raise UserError(f"no_rope_layers or layer_types is too short for {layers} layers")
    return {
        **llama.fields({"rope_theta": 2000000.0, **hf}),
        "no_rope": [not r for r in rotated[:layers]],
        "sliding_window": hf["sliding_window"] if windows else None,
        "windowed": [kind == "sliding_attention" for kind in kinds[:layers]] if windows else None,
    }
