"""Qwen 3: Llama with norms of every head's queries and keys, and windows in the upper layers if asked for.

Sources: arXiv 2505.09388; weight names as in `transformers`' Qwen3ForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama, qwen2

MODEL_TYPES = ("qwen3",)

WEIGHTS = {
    **llama.WEIGHTS,
    "model.layers.{}.self_attn.q_norm.weight": "blocks.{}.attn.q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blocks.{}.attn.k_norm.weight",
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Qwen 3 checkpoint -> fields of `Config`.

    Raises:
        UserError: see `qwen2.windows`.
    """
    hf = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, **hf}
    return {**llama.fields(hf), "qk_norm": "head", **qwen2.windows(hf)}
