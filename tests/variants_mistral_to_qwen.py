"""Mistral, Mixtral, Phi, Phi 3, Qwen 2 and 3."""

from collections.abc import Callable

import transformers

SIZES = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
MISTRAL = {**SIZES, "model_type": "mistral", "intermediate_size": 70, "num_key_value_heads": 2, "sliding_window": 5}
MIXTRAL = {**SIZES, "model_type": "mixtral", "intermediate_size": 36, "num_key_value_heads": 2}
PHI = {**SIZES, "model_type": "phi", "intermediate_size": 90}
PHI3 = {**SIZES, "model_type": "phi3", "intermediate_size": 70, "eos_token_id": 1}
QWEN2 = {**SIZES, "model_type": "qwen2", "intermediate_size": 70, "num_key_value_heads": 2}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 20}
QWEN3_MOE = {**QWEN3, "model_type": "qwen3_moe", "moe_intermediate_size": 28, "num_experts": 5}
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 32, "hidden_size": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}


def factors(count: int) -> dict[str, list[float]]:
    """Of the frequencies, below the original length and beyond it, where ours does not go."""
    return {"short_factor": [1 + 0.3 * i for i in range(count)], "long_factor": [2.0 + i for i in range(count)]}


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def rope(theta: float, **settings: float | str) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **settings}}


VARIANTS = {
    "mistral: v0.1, window": MISTRAL,
    "mistral: v0.2, no window": {**MISTRAL, "sliding_window": None, "rms_norm_eps": 1e-5, **rope(1000000.0)},
    "mistral: Nemo, narrow heads": {**MISTRAL, "head_dim": 10, "vocab_size": 97, "num_key_value_heads": 1},
    "mistral: window of one token": {**MISTRAL, "sliding_window": 1, "tie_word_embeddings": True},
    "mistral: all by default, gelu": {
        **without(MISTRAL, "sliding_window", "num_key_value_heads"),
        "num_attention_heads": 8,
        "hidden_act": "gelu",
    },
    "mixtral: 8x7B": {**MIXTRAL, "num_local_experts": 8},
    "mixtral: window, three of five experts, wide heads": {
        **MIXTRAL,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "sliding_window": 5,
        "head_dim": 14,
        **rope(10000.0),
    },
    "mixtral: one of three experts, tied": {
        **MIXTRAL,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "tie_word_embeddings": True,
    },
    "phi: 1.5": PHI,
    "phi: 2, fewer rotated channels": {**PHI, "hidden_size": 80, **rope(10000.0, partial_rotary_factor=0.4)},
    "phi: norms of queries and keys, grouped queries": {**PHI, "qk_layernorm": True, "num_key_value_heads": 2},
    "phi: whole heads, gelu, epsilon": {
        **PHI,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
        **rope(500.0, partial_rotary_factor=1.0),
    },
    "phi: tied, scaled rope": {
        **PHI,
        "tie_word_embeddings": True,
        **rope(10000.0, rope_type="linear", factor=4.0, partial_rotary_factor=0.5),
    },
    "phi3: mini, window": {**PHI3, "sliding_window": 5},
    "phi3: medium, window, grouped queries": {**PHI3, "num_key_value_heads": 2, "sliding_window": 7},
    "phi3: 4": {**PHI3, "num_key_value_heads": 1, "vocab_size": 97, **rope(250000.0)},
    "phi3: 4 mini without longrope": {
        **PHI3,
        "hidden_size": 64,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,
        **rope(10000.0, partial_rotary_factor=0.75),
    },
    "phi3: 3.5 mini, longrope": {**PHI3, **LONGROPE, **rope(10000.0, rope_type="longrope", **factors(6))},
    "phi3: 4 mini, longrope, partly rotated": {
        **PHI3,
        **LONGROPE,
        "hidden_size": 64,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        **rope(10000.0, rope_type="longrope", partial_rotary_factor=0.75, **factors(6)),
    },
    "qwen2: yarn": {**QWEN2, **rope(1000000.0, **YARN)},
    "qwen3: yarn, attention factor": {**QWEN3, **rope(1000000.0, **YARN, attention_factor=0.9)},
    "qwen2: 1.5, multi-head": {**QWEN2, "num_key_value_heads": 4, "sliding_window": 3, "max_window_layers": 1},
    "qwen2: 2.5, tied": {**QWEN2, "tie_word_embeddings": True, "num_key_value_heads": 1, **rope(1000000.0)},
    "qwen2: 32 heads by default": {**without(QWEN2, "num_key_value_heads"), **HEADS},
    "qwen2: windows in the upper layers": {**QWEN2, **WINDOW, "max_window_layers": 2},
    "qwen2: windows in all layers, wide heads": {**QWEN2, **WINDOW, "max_window_layers": 0, "head_dim": 14},
    "qwen2: no layer has a window": {**QWEN2, **WINDOW, "max_window_layers": 4, "vocab_size": 97},
    "qwen3: dense": {**QWEN3, **rope(1000000.0)},
    "qwen3: tied, default heads": {
        **without(QWEN3, "head_dim"),
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
    },
    "qwen3: 32 heads by default": {**without(QWEN3, "num_key_value_heads"), **HEADS},
    "qwen3: biases, windows": {**QWEN3, **WINDOW, "attention_bias": True, "max_window_layers": 1},
    "qwen3: by default layers from the 29th on have windows": {
        **QWEN3,
        "use_sliding_window": True,
        "num_hidden_layers": 30,
    },
    "qwen3: every other layer with a window": {
        **QWEN3,
        **WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "qwen3_moe: 30B-A3B": {**QWEN3_MOE, "num_experts_per_tok": 3, "norm_topk_prob": True, **rope(1000000.0)},
    "qwen3_moe: weights as they are, biases": {**QWEN3_MOE, "num_experts_per_tok": 2, "attention_bias": True},
    "qwen3_moe: 8 of 128 experts by default": without(QWEN3_MOE, "num_key_value_heads", "num_experts"),
    "qwen3_moe: default heads, tied": {
        **without(QWEN3_MOE, "head_dim"),
        "num_experts_per_tok": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}

EVERY = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
REFUSED = [
    ({**MISTRAL, "layer_types": EVERY["layer_types"]}, "layer_types is not supported in a mistral model"),
    ({**MIXTRAL, "hidden_act": "relu2"}, "hidden_act 'relu2' is not supported"),
    ({**PHI, "hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
    ({**PHI3, **LONGROPE, "rope_scaling": {"type": "su"}}, "key 'short_factor' is missing"),
    ({**PHI3, "rope_scaling": {"type": "su", "short_factor": [1.0] * 6}}, "key 'max_position_embeddings' is missing"),
    (
        {**PHI3, "rope_scaling": {"type": "yarn", "short_factor": [1.0] * 6}},
        "rope_scaling type 'yarn' is not supported",
    ),
    ({**QWEN2, "layer_types": ["linear_attention", "full_attention"]}, "layer_types ['linear_attention', 'full_att"),
    ({**QWEN2, **WINDOW, **EVERY, "num_hidden_layers": 3}, "layer_types ['full_attention', 'sliding_attention'] is"),
    ({**QWEN3, **EVERY}, "layer_types with sliding_attention is not supported without use_sliding_window"),
    ({**QWEN3, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported in a qwen3 model"),
    ({**QWEN3_MOE, "mlp_only_layers": [0]}, "mlp_only_layers is not supported"),
    ({**QWEN3_MOE, "decoder_sparse_step": 2}, "decoder_sparse_step is not supported"),
    ({**QWEN3_MOE, "use_sliding_window": True}, "use_sliding_window is not supported in a qwen3_moe model"),
]

NEEDED = {*SIZES, "model_type", "intermediate_size"}


def of_2023(hf: dict) -> dict:
    """As transformers 4 wrote it, without what is as by default; most Qwen name a window that they do not use."""
    usual = transformers.AutoConfig.for_model(hf["model_type"]).to_dict()
    scaling, usual_scaling = hf.pop("rope_parameters"), usual["rope_parameters"]
    kinds = hf.pop("layer_types", None)
    hf = {key: value for key, value in hf.items() if key in NEEDED or usual.get(key, "") != value}
    kind = scaling.pop("rope_type")
    for key in ("rope_theta", "partial_rotary_factor"):
        if (value := scaling.pop(key, None)) != usual_scaling.get(key):
            hf[key] = value
    hf["rope_scaling"] = None if kind == "default" else {"type": kind, **scaling}
    if kinds and kinds == ["sliding_attention", "full_attention"] * 2:
        hf["layer_types"] = kinds  # no other key says it
    if hf["model_type"].startswith("qwen") and not hf.get("use_sliding_window"):
        hf |= {"use_sliding_window": False, "sliding_window": 32768}
    if "num_local_experts" in hf and hf["model_type"] == "qwen3_moe":
        hf["num_experts"] = hf.pop("num_local_experts")
    return hf


OF_2023: dict[str, Callable[[dict], dict]] = dict.fromkeys(
    ("mistral", "mixtral", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe"), of_2023
)
