"""OLMo 2: Llama with its norms behind attention and MLP, and norms of all queries and all keys of a token.

Source: arXiv 2501.00656; weight names as in `transformers`' Olmo2ForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama

MODEL_TYPES = ("olmo2",)

WEIGHTS = {
    **llama.WEIGHTS,
    "model.layers.{}.self_attn.q_norm.weight": "blocks.{}.attn.q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blocks.{}.attn.k_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blocks.{}.post_1.weight",
    "model.layers.{}.post_feedforward_layernorm.weight": "blocks.{}.post_2.weight",
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an OLMo 2 checkpoint -> fields of `Config`."""
    hf = {"rms_norm_eps": 1e-5, **hf}
    return {**llama.fields(hf), "pre_norm": False, "post_norm": True, "qk_norm": "all"}
