"""Gemma: Llama with a scaled embedding, norms around one, wide heads and a GELU in its gated MLP.

Source: arXiv 2403.08295; weight names as in `transformers`' GemmaForCausalLM.
"""

from typing import Any

from lit_gpt.families import activation, llama
from lit_gpt.settings import UserError

MODEL_TYPES = ("gemma",)

WEIGHTS = llama.WEIGHTS

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Gemma checkpoint -> fields of `Config`.

    Raises:
        UserError: tokens that see those after them.
    """
    if hf.get("use_bidirectional_attention"):
        raise UserError("use_bidirectional_attention is not supported: tokens see those before them only")
    hf = {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True, **hf}
    key = "hidden_activation" if hf.get("hidden_activation") else "hidden_act"
    if key == "hidden_act" and hf.get(key) == "gelu":  # the first releases say so and mean the approximation
        hf[key] = "gelu_pytorch_tanh"
    return {
        **llama.fields(hf),
        "activation": activation(hf, key, "gelu_pytorch_tanh"),
        "norm": "rms+1",
        "embed_scale": hf["hidden_size"] ** 0.5,
    }
