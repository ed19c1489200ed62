"""InternLM: Llama with biases in its attention.

7B and 20B, their code came with the checkpoint. Source: github.com/InternLM/InternLM.
"""

from typing import Any

from lit_gpt.families import llama
from lit_gpt.settings import UserError

MODEL_TYPES = ("internlm",)

WEIGHTS = llama.WEIGHTS

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an InternLM checkpoint -> fields of `Config`.

    Raises:
        UserError: rotary embeddings of an unknown kind.
    """
    rotary = hf.get("rotary") or {}
    # dynamic: other than the plain ones beyond max_position_embeddings only
    if rotary.get("type", "origin") not in ("origin", "dynamic"):
        raise UserError(f"rotary type '{rotary['type']}' is not supported; supported are origin and dynamic")
    base = rotary.get("base") or 10000
    return llama.fields({**hf, "attention_bias": hf.get("bias", True), "rope_theta": base})
