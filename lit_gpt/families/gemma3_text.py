"""Gemma 3: Gemma 2 with norms of queries and keys instead of softcaps, five windows to a layer without one.

Windows have a rotary base of their own; scaling is for the other layers. The checkpoints of 4B and more read images,
too: of these, the language model is taken, with a `config.json` inside theirs. Source: arXiv 2503.19786; weight names
as in `transformers`' Gemma3ForCausalLM and Gemma3ForConditionalGeneration.
"""

from typing import Any

from lit_gpt.families import gemma2
from lit_gpt.settings import UserError

MODEL_TYPES = ("gemma3_text", "gemma3")

_TEXT = {
    **gemma2.WEIGHTS,
    "model.layers.{}.self_attn.q_norm.weight": "blocks.{}.attn.q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blocks.{}.attn.k_norm.weight",
}

WEIGHTS = {
    **_TEXT,
    # beside a model of images: in files, and in the memory of transformers 5
    **{f"language_model.{theirs}": ours for theirs, ours in _TEXT.items()},
    **{theirs.replace("model.", "model.language_model.", 1): ours for theirs, ours in _TEXT.items()},
}

IGNORED = (*gemma2.IGNORED, r"(model\.)?(vision_tower|multi_modal_projector)\..*")

DEFAULTS: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
"""What a config inside another leaves out."""


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Gemma 3 checkpoint -> fields of `Config`.

    Raises:
        UserError: as for Gemma 2, or scores with a softcap, or scaled rotary embeddings in windows.
    """
    if "text_config" in hf:
        shared = {key: hf[key] for key in ("tie_word_embeddings",) if key in hf}
        hf = {**hf["text_config"], **shared}
    hf = {**DEFAULTS, **hf}
    if hf["attn_logit_softcapping"] is not None:
        raise UserError("attn_logit_softcapping is not supported in a gemma3 model")
    ropes = hf.get("rope_parameters") or {}
    local = ropes.get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise UserError(f"rope_parameters: sliding_attention of type '{local['rope_type']}' is not supported")
    hf["rope_parameters"] = {"rope_theta": hf.get("rope_theta") or 1000000.0, **(ropes.get("full_attention") or {})}
    return {
        **gemma2.fields(hf),
        "qk_norm": "head",
        "windowed": gemma2.windowed(hf, hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6),
        "rope_local_base": float(local.get("rope_theta") or hf.get("rope_local_base_freq") or 10000),
    }
