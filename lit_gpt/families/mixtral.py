"""Mixtral: Mistral with a sparse mixture of MLPs.

Sources: arXiv 2401.04088; weight names as in `transformers`' MixtralForCausalLM.
"""

from typing import Any

from lit_gpt.families import llama, mistral

MODEL_TYPES = ("mixtral",)

WEIGHTS = {
    **{theirs: ours for theirs, ours in llama.WEIGHTS.items() if ".mlp." not in theirs},
    "model.layers.{}.block_sparse_moe.gate.weight": "blocks.{}.mlp.router.weight",
    **{
        f"model.layers.{{}}.block_sparse_moe.experts.[].{theirs}.weight": f"blocks.{{}}.mlp.experts.[].{ours}.weight"
        for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    },
}

IGNORED = llama.IGNORED


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Mixtral checkpoint -> fields of `Config`."""
    defaults = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "sliding_window": None}
    return {
        **mistral.fields({**defaults, **hf}),
        "n_expert": hf.get("num_local_experts", 8),
        "n_expert_per_token": hf.get("num_experts_per_tok", 2),
    }
