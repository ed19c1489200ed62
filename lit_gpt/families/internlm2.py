"""InternLM 2 and 2.5: Llama with fused queries, keys and values, under names of its own.

Its code came with the checkpoint. Source: arXiv 2403.17297.
"""

from typing import Any

from lit_gpt.families import grouped, llama

MODEL_TYPES = ("internlm2",)

_KINDS = ("weight", "bias")

WEIGHTS = {
    "model.tok_embeddings.weight": "wte.weight",
    "model.norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
    "model.layers.{}.attention_norm.weight": "blocks.{}.norm_1.weight",
    "model.layers.{}.ffn_norm.weight": "blocks.{}.norm_2.weight",
    **{
        f"model.layers.{{}}.attention.wqkv.{kind}": grouped(
            *(f"blocks.{{}}.attn.{part}.{kind}" for part in ("q", "k", "v"))
        )
        for kind in _KINDS
    },
    **{f"model.layers.{{}}.attention.wo.{kind}": f"blocks.{{}}.attn.o.{kind}" for kind in _KINDS},
    "model.layers.{}.feed_forward.w1.weight": "blocks.{}.mlp.gate.weight",
    "model.layers.{}.feed_forward.w2.weight": "blocks.{}.mlp.down.weight",
    "model.layers.{}.feed_forward.w3.weight": "blocks.{}.mlp.up.weight",
}

IGNORED = (r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq",)


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an InternLM 2 checkpoint -> fields of `Config`."""
    return llama.fields({**hf, "attention_bias": hf.get("bias", True)})
