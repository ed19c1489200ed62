"""Gemma, StableLM, OLMo and SmolLM3: small random models of each, for `test_families.py`."""

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
GEMMA = {**SIZES, "model_type": "gemma", "head_dim": 20, "rms_norm_eps": 1e-5}
GEMMA2 = {
    **SIZES,
    "model_type": "gemma2",
    "num_hidden_layers": 4,
    "head_dim": 20,
    "rms_norm_eps": 1e-3,
    "sliding_window": 5,
    "query_pre_attn_scalar": 30,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = {
    **SIZES,
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "head_dim": 20,
    "rms_norm_eps": 1e-3,
    "sliding_window": 5,
    "query_pre_attn_scalar": 30,
}
EYES = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
STABLELM = {**SIZES, "model_type": "stablelm", "hidden_size": 64, "layer_norm_eps": 1e-4}
OLMO = {**SIZES, "model_type": "olmo"}
OLMO2 = {**SIZES, "model_type": "olmo2"}
SMOLLM3 = {**SIZES, "model_type": "smollm3", "num_hidden_layers": 5}


def rope(kind: str, **settings: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


def ropes(local: float, theta: float, **settings: float | str) -> dict:
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta, **settings},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def kinds(pattern: str) -> list[str]:
    return [{"w": "sliding_attention", "-": "full_attention"}[letter] for letter in pattern]


VARIANTS = {
    "gemma: 2B, one key head": {**GEMMA, "num_key_value_heads": 1},
    "gemma: 7B, multi-head": {**GEMMA, "num_key_value_heads": 4, "vocab_size": 97},
    "gemma: gelu of the first release": {**GEMMA, "hidden_act": "gelu"},
    "gemma: biases, untied, other activation": {
        **GEMMA,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    "gemma: scaled rope": {**GEMMA, **rope("linear", factor=2.0)},
    "gemma2: windows and softcaps": GEMMA2,
    "gemma2: no softcaps": {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma2: other order of layers, exact gelu, other rope base": {
        **GEMMA2,
        "num_hidden_layers": 3,
        "layer_types": kinds("-ww"),
        "hidden_activation": "gelu",
        **rope("default", rope_theta=2000.0),
    },
    "gemma2: biases, untied": {**GEMMA2, "attention_bias": True, "tie_word_embeddings": False},
    "gemma3: five windows to one": GEMMA3,
    "gemma3: scaled rope without windows": {**GEMMA3, **ropes(10000.0, 1000000.0, rope_type="linear", factor=8.0)},
    "gemma3: llama3 scaling, other order of layers, other bases": {
        **GEMMA3,
        "num_hidden_layers": 3,
        "layer_types": kinds("w-w"),
        **ropes(
            100.0,
            5000.0,
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    },
    "gemma3: softcap of the logits, untied, biases": {
        **GEMMA3,
        "num_hidden_layers": 2,
        "layer_types": kinds("w-"),
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": False,
        "attention_bias": True,
    },
    "gemma3: with eyes": {
        "model_type": "gemma3",
        "text_config": {**GEMMA3, **ropes(10000.0, 1000000.0, rope_type="linear", factor=8.0)},
        "vision_config": EYES,
    },
    "stablelm: 3B": {**STABLELM, "num_key_value_heads": 4},
    "stablelm: 2 12B, a norm for every head": {
        **STABLELM,
        "num_key_value_heads": 2,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "stablelm: 2 1.6B, biases": {**STABLELM, "use_qkv_bias": True, "vocab_size": 97},
    "stablelm: parallel, half rotary": {
        **STABLELM,
        "use_parallel_residual": True,
        **rope("default", rope_theta=500.0, partial_rotary_factor=0.5),
    },
    "stablelm: tied, scaled rope": {
        **STABLELM,
        "tie_word_embeddings": True,
        **rope("linear", factor=2.0, partial_rotary_factor=0.25),
    },
    "olmo: multi-head": {**OLMO, "num_key_value_heads": 4},
    "olmo: clipped, tied": {**OLMO, "clip_qkv": 0.3, "tie_word_embeddings": True},
    "olmo: clipped, biases": {**OLMO, "clip_qkv": 0.5, "attention_bias": True},
    "olmo2: multi-head, other rope base": {
        **OLMO2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-3,
        **rope("default", rope_theta=500000.0),
    },
    "olmo2: grouped queries, biases, tied": {**OLMO2, "attention_bias": True, "tie_word_embeddings": True},
    "smollm3: every fourth layer without positions": SMOLLM3,
    "smollm3: other layers without positions, biases": {
        **SMOLLM3,
        "no_rope_layers": [0, 1, 1, 0, 1],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        **rope("default", rope_theta=5000000.0),
    },
    "smollm3: windows where there are no positions": {
        **SMOLLM3,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
    },
    "smollm3: windows elsewhere": {
        **SMOLLM3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": kinds("w-ww-"),
    },
}


def flat(hf: dict) -> dict:
    """Rotary settings beside the others."""
    hf = dict(hf)
    scaling = hf.pop("rope_parameters")
    theta, kind, share = (scaling.pop(key, None) for key in ("rope_theta", "rope_type", "partial_rotary_factor"))
    hf |= {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling} if kind != "default" else None}
    return hf if share is None else {**hf, "partial_rotary_factor": share}


def without_kinds(hf: dict, default: list[str]) -> dict:
    """The kinds of the layers were written where they are not the usual ones only."""
    return {key: value for key, value in hf.items() if key != "layer_types" or value != default}


def gemma(hf: dict) -> dict:
    hf = flat(hf)
    if hf["hidden_act"] == "gelu_pytorch_tanh":
        hf |= {"hidden_act": "gelu", "hidden_activation": None}
    return hf


def gemma2(hf: dict) -> dict:
    return without_kinds(flat(hf), kinds("w-" * 2)[: hf["num_hidden_layers"]])


def gemma3_text(hf: dict) -> dict:
    theirs = dict(hf["rope_parameters"])
    local = theirs.pop("sliding_attention")["rope_theta"]
    hf = flat({**hf, "rope_parameters": dict(theirs["full_attention"])})
    hf |= {"rope_local_base_freq": local, "sliding_window_pattern": 6}
    return without_kinds(hf, kinds("wwwww-w")[: hf["num_hidden_layers"]])


def gemma3(hf: dict) -> dict:
    """As the hub has it: the language model's config says what differs from the class's defaults."""
    text = gemma3_text(hf["text_config"])
    usual = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6}
    text = {key: value for key, value in text.items() if usual.get(key) != value and value is not None}
    return {key: value for key, value in hf.items() if key != "tie_word_embeddings"} | {"text_config": text}


def smollm3(hf: dict) -> dict:
    hf = flat(hf)
    usual = [int((layer + 1) % hf["no_rope_layer_interval"] != 0) for layer in range(hf["num_hidden_layers"])]
    hf["no_rope_layers"] = None if hf["no_rope_layers"] == usual else hf["no_rope_layers"]
    windows = "".join("w" if hf["use_sliding_window"] and not rotated else "-" for rotated in usual)
    return without_kinds(hf, kinds(windows))


OF_2023 = {
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "gemma3": gemma3,
    "stablelm": flat,
    "smollm3": smollm3,
}

REFUSED = [
    ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
    ({**GEMMA, "hidden_act": "relu2"}, "hidden_act 'relu2' is not supported"),
    ({**GEMMA2, "hidden_activation": "relu2"}, "hidden_activation 'relu2' is not supported"),
    ({**GEMMA2, "use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
    ({**GEMMA2, "layer_types": kinds("w-w")}, "layer_types has 3 entries for 4 layers"),
    ({**GEMMA2, "layer_types": ["chunked_attention"] * 4}, "layer_types 'chunked_attention' is not supported"),
    ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
    ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported"),
    (
        {**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_parameters: sliding_attention of type 'linear' is not supported",
    ),
    ({"model_type": "gemma3", "text_config": None}, "a value is of the wrong type"),
    ({**SMOLLM3, "no_rope_layers": [1, 0]}, "no_rope_layers or layer_types is too short for 5 layers"),
    ({**SMOLLM3, "layer_types": kinds("w----"), "sliding_window": 5}, "layer_types 'sliding_attention' is not"),
    ({"model_type": "internlm", "rotary": {"type": "yarn"}}, "rotary type 'yarn' is not supported"),
]

RELEASED = [
    (
        "google/gemma-2b",
        {
            "model_type": "gemma",
            "head_dim": 256,
            "hidden_act": "gelu",
            "hidden_activation": None,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "vocab_size": 256000,
        },
    ),
    (
        "google/gemma-3-4b-it",
        {
            "model_type": "gemma3",
            "image_token_index": 262144,
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": EYES,
        },
    ),
    (
        "google/gemma-3-27b-it",
        {
            "model_type": "gemma3",
            "text_config": {
                "head_dim": 128,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_attention_heads": 32,
                "num_hidden_layers": 62,
                "num_key_value_heads": 16,
                "query_pre_attn_scalar": 168,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        },
    ),
    (
        "stabilityai/stablelm-3b-4e1t",
        {
            "model_type": "stablelm_epoch",
            "hidden_act": "silu",
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rope_pct": 0.25,
            "rope_theta": 10000,
            "vocab_size": 50304,
        },
    ),
    (
        "internlm/internlm-20b",
        {
            "model_type": "internlm",
            "bias": False,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "max_position_embeddings": 4096,
            "num_attention_heads": 40,
            "num_hidden_layers": 60,
            "num_key_value_heads": 40,
            "rms_norm_eps": 1e-6,
            "rotary": {"base": 10000, "type": "dynamic"},
            "vocab_size": 103168,
        },
    ),
]
"""As the repositories had them, with few keys or those of their own code."""
