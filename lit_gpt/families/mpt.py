"""MPT: ALiBi instead of positions, and no bias anywhere.

Reads the `config.json` of `transformers`' MptForCausalLM and that of MosaicML's own code, whose options are many more
than its released models use. Source: MosaicML's llm-foundry (2023); weight names are the same in both.
"""

from typing import Any

from lit_gpt.families import rows
from lit_gpt.settings import UserError

MODEL_TYPES = ("mpt",)

WEIGHTS = {
    "transformer.wte.weight": "wte.weight",
    "transformer.norm_f.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
    "transformer.blocks.{}.attn.Wqkv.weight": rows(*(f"blocks.{{}}.attn.{part}.weight" for part in ("q", "k", "v"))),
    **{
        f"transformer.blocks.{{}}.{theirs}.weight": f"blocks.{{}}.{ours}.weight"
        for theirs, ours in (
            ("norm_1", "norm_1"),
            ("norm_2", "norm_2"),
            ("attn.out_proj", "attn.o"),
            ("ffn.up_proj", "mlp.up"),
            ("ffn.down_proj", "mlp.down"),
        )
    },
}

IGNORED = ()

_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {
        "no_bias": (True,),
        "logit_scale": (None,),
        "embedding_fraction": (1,),
        "norm_type": ("low_precision_layernorm", "layernorm"),
    },
    "attn_config": {
        "attn_type": ("multihead_attention",),
        "alibi": (True,),
        "alibi_bias_max": (8,),
        "prefix_lm": (False,),
        "qk_ln": (False,),
        "qk_gn": (False,),
        "rope": (False,),
        "sliding_window_size": (-1,),
    },
    "ffn_config": {"ffn_type": ("mptmlp",)},
}
"""Section of `config.json` -> key -> the values that ours can express; the first is the default."""


def fields(hf: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of an MPT checkpoint -> fields of `Config`.

    Raises:
        UserError: an option has a value that none of the common models has.
    """
    for section, options in _ONLY.items():
        found = (hf.get(section) or {}) if section else hf
        for key, values in options.items():
            if found.get(key, values[0]) not in values:
                raise UserError(
                    f"{section}{'.' * bool(section)}{key} {found[key]} is not supported, only {values[0]} is"
                )
    attention = hf.get("attn_config") or {}
    return {
        "block_size": hf.get("max_seq_len") or 2048,
        "padded_vocab_size": hf["vocab_size"],
        "n_layer": hf["n_layers"],
        "n_head": hf["n_heads"],
        "n_embd": hf["d_model"],
        "intermediate_size": hf.get("expansion_ratio", 4) * hf["d_model"],
        "norm": "layer",
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "norm_bias": False,
        "mlp": "plain",
        "activation": "gelu",
        "tie_embeddings": bool(hf.get("tie_word_embeddings", True)),
        "clip_qkv": attention.get("clip_qkv") or None,
        "attn_scale": attention.get("softmax_scale"),
        "positions": "alibi",
    }
