"""OLMo: Llama with a LayerNorm that has no weights, and queries, keys and values that may be clipped.

Source: arXiv 2402.00838; weight names as in `transformers`' OlmoForCausalLM and the repositories that end with "-hf";
the others hold the same weights under the names of the authors' own code.
"""

from typing import Any

from lit_gpt.families import llama

MODEL_TYPES = ("olmo",)

WEIGHTS = llama.WEIGHTS

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an OLMo checkpoint -> fields of `Config`."""
    return {**llama.fields(hf), "norm": "plain", "norm_eps": 1e-5, "clip_qkv": hf.get("clip_qkv")}
