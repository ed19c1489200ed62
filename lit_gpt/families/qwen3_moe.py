"""Qwen 3 with a sparse mixture of MLPs.

Sources: arXiv 2505.09388; weight names as in `transformers`' Qwen3MoeForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama, qwen3
from lit_gpt.settings import UserError

MODEL_TYPES = ("qwen3_moe",)

WEIGHTS = {
    **{theirs: ours for theirs, ours in qwen3.WEIGHTS.items() if ".mlp." not in theirs},
    "model.layers.{}.mlp.gate.weight": "blocks.{}.mlp.router.weight",
    **{
        f"model.layers.{{}}.mlp.experts.[].{name}_proj.weight": f"blocks.{{}}.mlp.experts.[].{name}.weight"
        for name in ("gate", "up", "down")
    },
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Qwen 3 checkpoint with experts -> fields of `Config`.

    Raises:
        UserError: layers with a single MLP, or windows, about which versions of `transformers` differ.
    """
    if hf.get("mlp_only_layers"):
        raise UserError("mlp_only_layers is not supported: all layers have experts")
    if hf.get("decoder_sparse_step", 1) != 1:
        raise UserError("decoder_sparse_step is not supported: all layers have experts")
    if hf.get("use_sliding_window"):
        raise UserError(f"use_sliding_window is not supported in a {hf['model_type']} model")
    hf = {"max_position_embeddings": 32768, "num_key_value_heads": 4, **hf}
    return {
        **llama.fields(hf),
        "qk_norm": "head",
        "intermediate_size": hf.get("moe_intermediate_size", 768),
        "n_expert": hf.get("num_local_experts") or hf.get("num_experts") or 128,
        "n_expert_per_token": hf.get("num_experts_per_tok", 8),
        "norm_expert_weights": bool(hf.get("norm_topk_prob", False)),
    }
