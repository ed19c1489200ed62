"""Mistral 7B and Nemo: Llama with grouped queries and, in the first release, windows.

Sources: arXiv 2310.06825; weight names as in `transformers`' MistralForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama
from lit_gpt.settings import UserError

MODEL_TYPES = ("mistral",)

WEIGHTS, IGNORED = llama.WEIGHTS, llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Mistral checkpoint -> fields of `Config`.

    Raises:
        UserError: windows in some layers only.
    """
    window = hf.get("sliding_window", 4096)
    if window is not None and set(hf.get("layer_types") or ()) - {"sliding_attention"}:
        raise UserError(f"layer_types is not supported in a {hf['model_type']} model: all layers have the window")
    hf = {"max_position_embeddings": 131072, "num_key_value_heads": 8, **hf}
    return {**llama.fields(hf), "sliding_window": window}
