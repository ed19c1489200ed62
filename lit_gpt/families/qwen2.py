"""Qwen 1.5, 2 and 2.5: Llama with biases of queries, keys and values, and windows in the upper layers if asked for.

Sources: arXiv 2407.10671, arXiv 2412.15115; weight names as in `transformers`' Qwen2ForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama
from lit_gpt.settings import UserError

MODEL_TYPES = ("qwen2",)

WEIGHTS, IGNORED = llama.WEIGHTS, llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Qwen checkpoint -> fields of `Config`.

    Raises:
        UserError: see `windows`.
    """
    hf = {"max_position_embeddings": 32768, "num_key_value_heads": 32, **hf}
    return {**llama.fields(hf), "qkv_bias": True, "out_bias": False, **windows(hf)}


def windows(hf: dict[str, Any]) -> dict[str, Any]:
    """The fields about windows. Most checkpoints name a `sliding_window` and do not use it.

    Raises:
        UserError: kinds of layers that the model does not know, or windows that `config.json` switches off.
    """
    layers, first = hf["num_hidden_layers"], hf.get("max_window_layers", 28)
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    kinds = hf.get("layer_types")
    if kinds and (len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}):
        raise UserError(f"layer_types {kinds} is not supported: full_attention or sliding_attention for each layer")
    if window is None:
        if kinds and "sliding_attention" in kinds:
            raise UserError("layer_types with sliding_attention is not supported without use_sliding_window")
        return {}
    windowed = [kind == "sliding_attention" for kind in kinds] if kinds else [at >= first for at in range(layers)]
    return {"sliding_window": window, "windowed": windowed}
