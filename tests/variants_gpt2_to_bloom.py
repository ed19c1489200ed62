"""Variants for test_families.py: families with learned positions or ALiBi, and GPT-J."""

SIZES = {"vocab_size": 101, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 70}
GPT2 = {**SIZES, "model_type": "gpt2"}
GPTJ = {**SIZES, "model_type": "gptj", "rotary_dim": 6}
BIGCODE = {**SIZES, "model_type": "gpt_bigcode"}
NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 101,
    "hidden_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "max_position_embeddings": 70,
    "window_size": 5,
    "attention_types": [[["global", "local"], 2]],
}
OPT = {
    "model_type": "opt",
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 70,
    "max_position_embeddings": 70,
}
MPT = {"model_type": "mpt", "vocab_size": 101, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 70}
BLOOM = {"model_type": "bloom", "vocab_size": 101, "hidden_size": 48, "n_layer": 2, "n_head": 4}

VARIANTS = {
    "gpt2: small": GPT2,
    "gpt2: Cerebras": {**GPT2, "n_inner": 100, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "gpt2: own head, scores as they are": {**GPT2, "tie_word_embeddings": False, "scale_attn_weights": False},
    "gpt2: upcast attention": {**GPT2, "reorder_and_upcast_attn": True, "activation_function": "relu"},
    "gptj: 6B": GPTJ,
    "gptj: whole heads rotated": {**GPTJ, "rotary_dim": 12, "n_inner": 50},
    "gptj: a share that is rounded": {**GPTJ, "n_embd": 196, "rotary_dim": 4, "vocab_size": 97},
    "gptj: tied": {**GPTJ, "tie_word_embeddings": True, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "gpt_neo: every second layer with a window": NEO,
    "gpt_neo: other order of layers, own head": {
        **NEO,
        "attention_types": [[["local"], 3], [["global"], 1]],
        "intermediate_size": 100,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-3,
        "tie_word_embeddings": False,
    },
    "opt: 125M": OPT,
    "opt: no bias": {**OPT, "enable_bias": False, "activation_function": "gelu"},
    "opt: 350M": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
    "opt: wide embedding, no norm at the end": {**OPT, "word_embed_proj_dim": 60, "_remove_final_layer_norm": True},
    "opt: norms without weights, own head": {
        **OPT,
        "layer_norm_elementwise_affine": False,
        "tie_word_embeddings": False,
    },
    "mpt: 7B": MPT,
    "mpt: clipped": {**MPT, "attn_config": {"clip_qkv": 0.75, "attn_impl": "flash", "attn_uses_sequence_id": True}},
    "mpt: 6 heads, other scale": {**MPT, "n_heads": 6, "attn_config": {"softmax_scale": 0.5}},
    "mpt: one head": {**MPT, "n_heads": 1, "layer_norm_epsilon": 1e-3, "norm_type": "layernorm"},
    "mpt: own head": {**MPT, "n_heads": 12, "tie_word_embeddings": False},
    "bloom: 560M": BLOOM,
    "bloom: 3 heads": {**BLOOM, "n_head": 3, "layer_norm_epsilon": 1e-3},
    "bloom: 14 heads, own head": {**BLOOM, "n_head": 14, "hidden_size": 56, "tie_word_embeddings": False},
    "gpt_bigcode: StarCoder": {**BIGCODE, "n_inner": 100, "activation_function": "gelu"},
    "gpt_bigcode: multi-head": {**BIGCODE, "multi_query": False, "tie_word_embeddings": False},
    "gpt_bigcode: scores as they are": {**BIGCODE, "scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
}


def without_new_keys(hf: dict) -> dict:
    """What was written before ties were, and before the many keys with the same value in every checkpoint."""
    new = {"reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    new |= {"n_inner": None, "tie_word_embeddings": hf["model_type"] != "gptj"}
    new |= {"enable_bias": True, "layer_norm_elementwise_affine": True, "scale_attn_weights": True}
    return {key: value for key, value in hf.items() if key not in new or value != new[key]}


def bloom_of_2022(hf: dict) -> dict:
    """With the keys of the first releases, and some that nothing reads."""
    hf = without_new_keys({**hf, "n_inner": None, "offset_alibi": 100, "skip_bias_add": True})
    hf["n_embed"], hf["num_attention_heads"] = hf.pop("hidden_size"), hf.pop("n_head")
    return hf


def mpt_of_2023(hf: dict) -> dict:
    """With the keys of MosaicML's own code."""
    names = ("alibi", "alibi_bias_max", "attn_type", "clip_qkv", "prefix_lm", "qk_ln", "softmax_scale")
    attention = {name: hf["attn_config"][name] for name in names}
    return {**without_new_keys(hf), "attn_config": attention, "verbose": 0, "init_config": {"name": "kaiming_normal_"}}


OF_2023 = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "opt", "gpt_bigcode"), without_new_keys),
    "mpt": mpt_of_2023,
    "bloom": bloom_of_2022,
}

REFUSED = [
    ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is not supported"),
    ({**GPT2, "add_cross_attention": True}, "add_cross_attention is not supported"),
    ({**GPT2, "activation_function": "swish1"}, "activation_function 'swish1' is not supported"),
    ({key: value for key, value in GPT2.items() if key != "n_layer"}, "key 'n_layer' is missing"),
    ({**GPTJ, "rotary_dim": None}, "rotary_dim None is not supported: even numbers up to the head's 12 are"),
    ({**GPTJ, "rotary_dim": 5}, "rotary_dim 5 is not supported"),
    ({**GPTJ, "rotary_dim": 14}, "rotary_dim 14 is not supported"),
    ({**NEO, "num_layers": 5}, "attention_types is for 4 layers, not for 5"),
    ({**NEO, "attention_types": [[["sparse"], 4]]}, "attention_types 'sparse' is not supported"),
    ({**OPT, "word_embed_proj_dim": 0.5}, "embed_size must be a whole number from 1 on, got 0.5"),
    ({**MPT, "no_bias": False}, "no_bias False is not supported, only True is"),
    ({**MPT, "logit_scale": "inv_sqrt_d_model"}, "logit_scale inv_sqrt_d_model is not supported, only None is"),
    ({**MPT, "norm_type": "rmsnorm"}, "norm_type rmsnorm is not supported, only low_precision_layernorm is"),
    ({**MPT, "ffn_config": {"ffn_type": "mptglu"}}, "ffn_config.ffn_type mptglu is not supported"),
    *(
        ({**MPT, "attn_config": {key: value}}, f"attn_config.{key} {value} is not supported")
        for key, value in (
            ("attn_type", "multiquery_attention"),
            ("alibi", False),
            ("alibi_bias_max", 16),
            ("prefix_lm", True),
            ("qk_ln", True),
            ("rope", True),
            ("sliding_window_size", 1024),
        )
    ),
    ({**BLOOM, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ({**BIGCODE, "add_cross_attention": True, "multi_query": False}, "add_cross_attention is not supported"),
]
