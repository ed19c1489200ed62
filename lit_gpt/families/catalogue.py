"""Well-known checkpoints of the Hugging Face hub: one row each, so that sizes and licences are known offline.

The numbers are those of each repository's `config.json`. What the NeurIPS 2023 LLM Efficiency Challenge allows is its
list of 2023-10-07: base models of certain families.
"""

import difflib
import struct
from dataclasses import dataclass
from typing import Any

from lit_gpt.settings import UserError


@dataclass(frozen=True)
class Row:
    """A checkpoint of the hub."""

    repo_id: str
    """Organisation and name on the hub."""
    config: dict[str, Any]
    """What its `config.json` says about the architecture."""
    parameters: int
    """Number of parameters; a weight that embedding and head share counts once."""
    licence: str
    """Its name on the hub; "llama" is Meta's of LLaMA 1, for research only."""
    instruct: bool
    """Tuned to follow instructions or to chat; otherwise a base model."""
    allowed: bool
    """The challenge allows it as a base."""
    gated: bool
    """The hub asks for an account that accepted the licence, and its token."""

    @property
    def name(self) -> str:
        """The name without the organisation."""
        return self.repo_id.partition("/")[2]


def find(name: str) -> Row:
    """The row of a checkpoint, by its `repo_id` or its name alone; capitals do not matter.

    Raises:
        UserError: there is no such row; shows the nearest name.
    """
    for row in CATALOGUE.values():
        if name.lower() in (row.repo_id.lower(), row.name.lower()):
            return row
    raise UserError(f"the catalogue has no model '{name}'; {nearest(name)}")


def nearest(name: str) -> str:
    """A hint for a message: the row whose name is nearest, whatever the organisation, and where all are listed."""
    rows = {row.name.lower(): row.repo_id for row in CATALOGUE.values() if row.repo_id != name}
    close = difflib.get_close_matches(name.rstrip("/").rpartition("/")[2].lower(), rows, n=1)
    return (f"did you mean {rows[close[0]]}? " if close else "") + "scripts/download.py without --repo_id lists all"


def _llama(layers: int, heads: int, width: int, mlp: int, **other: Any) -> dict[str, Any]:
    """A Llama 1 of this size; `other` says what is different."""
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": mlp,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **other,
    }


def _gpt_neox(layers: int, heads: int, width: int, vocab: int, **other: Any) -> dict[str, Any]:
    """A GPT-NeoX of this size; `other` says what is different from Pythia."""
    return {
        "model_type": "gpt_neox",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        **other,
    }


def _falcon(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    """A Falcon of this size; `other` says what is different from 7B."""
    return {
        "model_type": "falcon",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "vocab_size": 65024,
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        **other,
    }


def _gpt2(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    """A GPT-2 of this size; `other` says what is different."""
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "vocab_size": 50257,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        **other,
    }


def _gpt_neo(layers: int, heads: int, width: int) -> dict[str, Any]:
    """A GPT-Neo of this size."""
    return {
        "model_type": "gpt_neo",
        "num_layers": layers,
        "num_heads": heads,
        "hidden_size": width,
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "window_size": 256,
        "attention_types": [[["global", "local"], layers // 2]],
    }


def _gpt_bigcode(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    """A GPTBigCode of this size; `other` says what is different from GPT-2."""
    return {**_gpt2(layers, heads, width, **other), "model_type": "gpt_bigcode", "multi_query": True}


def _opt(layers: int, heads: int, width: int) -> dict[str, Any]:
    """An OPT of this size."""
    return {
        "model_type": "opt",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "word_embed_proj_dim": width,
        "activation_function": "relu",
    }


def _bloom(layers: int, heads: int, width: int) -> dict[str, Any]:
    """A BLOOM of this size."""
    return {
        "model_type": "bloom",
        "n_layer": layers,
        "n_head": heads,
        "hidden_size": width,
        "vocab_size": 250880,
        "layer_norm_epsilon": 1e-5,
    }


def _mpt(layers: int, heads: int, width: int, length: int) -> dict[str, Any]:
    """An MPT of this size."""
    return {
        "model_type": "mpt",
        "n_layers": layers,
        "n_heads": heads,
        "d_model": width,
        "max_seq_len": length,
        "vocab_size": 50432,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None},
    }


def _phi(layers: int, width: int, share: float) -> dict[str, Any]:
    """A Phi 1 or 2 of this size, with the share of a head that is rotated."""
    return {
        "model_type": "phi",
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "partial_rotary_factor": share,
        "tie_word_embeddings": False,
    }


def _pythia(size: str) -> tuple[str, str]:
    """Pythia was trained twice, on the Pile and on the Pile without its duplicates."""
    return f"EleutherAI/pythia-{size} apache-2.0 allowed", f"EleutherAI/pythia-{size}-deduped apache-2.0 allowed"


def _bloom_and_z(size: str) -> tuple[str, str]:
    """BLOOM, and what was tuned from it to follow instructions."""
    licence = "bigscience-bloom-rail-1.0"
    return f"bigscience/bloom{size} {licence} allowed", f"bigscience/bloomz{size} {licence} instruct"


def _float32(numbers: str) -> list[float]:
    """Numbers that were rounded to float32 before they were written."""
    return [struct.unpack("f", struct.pack("f", float(number)))[0] for number in numbers.split()]


def _size(parameters: int, config: dict[str, Any], *rows: str) -> dict[str, Row]:
    """Checkpoints of one shape, each as "repo_id licence kind": base, allowed (a base, too) or instruct; then gated."""
    found = {}
    for row in rows:
        repo_id, licence, *kind = row.split()
        flags = {flag: flag in kind for flag in ("instruct", "allowed", "gated")}
        found[repo_id] = Row(repo_id, config, parameters, licence, **flags)
    return found


_7B, _13B, _70B = (32, 32, 4096, 11008), (40, 40, 5120, 13824), (80, 64, 8192, 28672)
_LLAMA_2: dict[str, Any] = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_16K: dict[str, Any] = {"max_sequence_length": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}
_CONDENSED: dict[str, Any] = {"max_sequence_length": 16384, "rope_scaling": {"type": "linear", "factor": 8.0}}
_CODE: dict[str, Any] = {"max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 1000000}
_INCITE: dict[str, Any] = {"rotary_pct": 1.0, "use_parallel_residual": False}
_CEREBRAS: dict[str, Any] = {"n_positions": 2048, "activation_function": "gelu"}
_GROUPED: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 8}
_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000,
}
_LLAMA_3_1: dict[str, Any] = {
    **_LLAMA_3,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_LLAMA_3_2: dict[str, Any] = {
    **_LLAMA_3_1,
    "rope_scaling": {**_LLAMA_3_1["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}
_YI: dict[str, Any] = {
    "vocab_size": 64000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000000,
}
_YI_1_5: dict[str, Any] = {**_YI, "rms_norm_eps": 1e-6}
_SMOL: dict[str, Any] = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
_MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
}
_MISTRAL_1: dict[str, Any] = {**_MISTRAL, "sliding_window": 4096, "rope_theta": 10000}
_MIXTRAL: dict[str, Any] = {**_MISTRAL, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
_PHI_3: dict[str, Any] = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "sliding_window": 2047,
    "rms_norm_eps": 1e-5,
}
_PHI_3_5: dict[str, Any] = {
    **_PHI_3,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": _float32(
            "1 1.02 1.03 1.03 1.05 1.05 1.05 1.05 1.05 1.07 1.1 1.11 1.16 1.16 1.17 1.29 1.34 1.68 1.79 1.82 1.85 1.88 "
            "1.91 1.94 1.99 2.02 2.02 2.02 2.02 2.02 2.02 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.03 2.08 2.09 2.19 "
            "2.22 2.59 2.73 2.75 2.84"
        ),
        "long_factor": _float32(
            "1.08 1.11 1.14 1.34 1.59 1.6 1.62 2.62 3.23 3.23 4.79 7.4 7.7 9.09 12.2 17.67 24.46 28.57 30.42 30.84 "
            "32.59 32.93 42.32 44.96 50.34 50.45 57.55 57.93 58.21 60.14 62.61 62.62 62.71 63.14 63.14 63.77 63.93 "
            "63.96 63.97 64.03 64.07 64.08 64.12 64.41 64.48 64.51 64.53 64.84"
        ),
    },
}
_PHI_4: dict[str, Any] = {
    **_PHI_3,
    "vocab_size": 100352,
    "num_key_value_heads": 10,
    "max_position_embeddings": 16384,
    "sliding_window": None,
    "rope_theta": 250000,
}
_QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "rope_theta": 1000000,
}
_QWEN_MATH: dict[str, Any] = {**_QWEN, "max_position_embeddings": 4096, "rope_theta": 10000}
_QWEN_3: dict[str, Any] = {**_QWEN, "model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128}
_QWEN_3_MOE: dict[str, Any] = {
    **_QWEN_3,
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
_BIG: dict[str, Any] = {"vocab_size": 152064}
_LONG: dict[str, Any] = {"max_position_embeddings": 131072}
_40K: dict[str, Any] = {"max_position_embeddings": 40960}
_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_GEMMA: dict[str, Any] = {
    "model_type": "gemma",
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_GEMMA_2: dict[str, Any] = {
    **_GEMMA,
    "model_type": "gemma2",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA_2_27B: dict[str, Any] = {
    **_GEMMA_2,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
}
_GEMMA_3: dict[str, Any] = {
    **_GEMMA,
    "model_type": "gemma3_text",
    "num_key_value_heads": 1,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
}
_GEMMA_3_LONG: dict[str, Any] = {
    **_GEMMA_3,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_GEMMA_3_27B: dict[str, Any] = {
    **_GEMMA_3_LONG,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 168,
}
_STABLELM: dict[str, Any] = {
    "model_type": "stablelm",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
}
_STABLELM_12B: dict[str, Any] = {**_STABLELM, "vocab_size": 100352, "qk_layernorm": True, "use_parallel_residual": True}
_OLMO: dict[str, Any] = {"model_type": "olmo", "vocab_size": 50304}
_OLMO_2: dict[str, Any] = {
    "model_type": "olmo2",
    "vocab_size": 100352,
    "max_position_embeddings": 4096,
    "rope_theta": 500000,
}
_SMOL_3: dict[str, Any] = {
    "model_type": "smollm3",
    "num_key_value_heads": 4,
    "vocab_size": 128256,
    "max_position_embeddings": 65536,
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
}
_INTERNLM: dict[str, Any] = {"model_type": "internlm", "vocab_size": 103168}
_INTERNLM_2: dict[str, Any] = {
    "model_type": "internlm2",
    "vocab_size": 92544,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "bias": False,
}

CATALOGUE: dict[str, Row] = {
    # Llama 2, arXiv 2307.09288
    **_size(
        6_738_415_616,
        _llama(*_7B, **_LLAMA_2),
        "meta-llama/Llama-2-7b-hf llama2 allowed gated",
        "meta-llama/Llama-2-7b-chat-hf llama2 instruct gated",
        "lmsys/vicuna-7b-v1.5 llama2 instruct",
    ),
    **_size(
        13_015_864_320,
        _llama(*_13B, **_LLAMA_2),
        "meta-llama/Llama-2-13b-hf llama2 allowed gated",
        "meta-llama/Llama-2-13b-chat-hf llama2 instruct gated",
        "lmsys/vicuna-13b-v1.5 llama2 instruct",
    ),
    **_size(
        68_976_648_192,
        _llama(*_70B, num_key_value_heads=8, **_LLAMA_2),
        "meta-llama/Llama-2-70b-hf llama2 allowed gated",
        "meta-llama/Llama-2-70b-chat-hf llama2 instruct gated",
        "stabilityai/FreeWilly2 cc-by-nc-4.0 instruct",
        "stabilityai/StableBeluga2 stable-beluga-nc instruct",
    ),
    **_size(6_738_415_616, _llama(*_7B, **_LLAMA_2, **_16K), "lmsys/vicuna-7b-v1.5-16k llama2 instruct"),
    **_size(13_015_864_320, _llama(*_13B, **_LLAMA_2, **_16K), "lmsys/vicuna-13b-v1.5-16k llama2 instruct"),
    # Llama 1, arXiv 2302.13971; OpenLLaMA; Vicuna and LongChat, arXiv 2306.05685
    **_size(
        3_426_473_600,
        _llama(26, 32, 3200, 8640),
        "openlm-research/open_llama_3b apache-2.0 allowed",
        "openlm-research/open_llama_3b_v2 apache-2.0 allowed",
    ),
    **_size(
        6_738_415_616,
        _llama(*_7B),
        "openlm-research/open_llama_7b apache-2.0 allowed",
        "openlm-research/open_llama_7b_v2 apache-2.0 allowed",
        "huggyllama/llama-7b llama allowed",
        "lmsys/vicuna-7b-v1.3 llama instruct",
    ),
    **_size(
        13_015_864_320,
        _llama(*_13B),
        "openlm-research/open_llama_13b apache-2.0 allowed",
        "huggyllama/llama-13b llama allowed",
        "lmsys/vicuna-13b-v1.3 llama instruct",
    ),
    **_size(
        32_528_943_616,
        _llama(60, 52, 6656, 17920),
        "huggyllama/llama-30b llama allowed",
        "lmsys/vicuna-33b-v1.3 llama instruct",
    ),
    **_size(65_285_660_672, _llama(80, 64, 8192, 22016, rms_norm_eps=1e-5), "huggyllama/llama-65b llama allowed"),
    **_size(6_738_415_616, _llama(*_7B, **_CONDENSED), "lmsys/longchat-7b-16k llama instruct"),
    **_size(13_015_864_320, _llama(*_13B, **_CONDENSED), "lmsys/longchat-13b-16k llama instruct"),
    # Code Llama, arXiv 2308.12950: those that can fill in the middle know 16 more pieces
    **_size(
        6_738_546_688,
        _llama(*_7B, **_CODE, vocab_size=32016),
        "codellama/CodeLlama-7b-hf llama2 base",
        "codellama/CodeLlama-7b-Instruct-hf llama2 instruct",
    ),
    **_size(
        13_016_028_160,
        _llama(*_13B, **_CODE, vocab_size=32016),
        "codellama/CodeLlama-13b-hf llama2 base",
        "codellama/CodeLlama-13b-Instruct-hf llama2 instruct",
    ),
    **_size(6_738_415_616, _llama(*_7B, **_CODE), "codellama/CodeLlama-7b-Python-hf llama2 base"),
    **_size(13_015_864_320, _llama(*_13B, **_CODE), "codellama/CodeLlama-13b-Python-hf llama2 base"),
    **_size(
        33_743_970_304,
        _llama(48, 64, 8192, 22016, num_key_value_heads=8, **_CODE),
        "codellama/CodeLlama-34b-hf llama2 base",
        "codellama/CodeLlama-34b-Python-hf llama2 base",
        "codellama/CodeLlama-34b-Instruct-hf llama2 instruct",
    ),
    # TinyLlama, arXiv 2401.02385
    **_size(
        1_100_048_384,
        _llama(22, 32, 2048, 5632, num_key_value_heads=4, rms_norm_eps=1e-5),
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T apache-2.0 base",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0 apache-2.0 instruct",
    ),
    # Pythia, arXiv 2304.01373, and GPT-NeoX-20B, arXiv 2204.06745
    **_size(14_067_712, _gpt_neox(6, 4, 128, 50304), *_pythia("14m")),
    **_size(30_494_720, _gpt_neox(6, 8, 256, 50304), *_pythia("31m")),
    **_size(70_426_624, _gpt_neox(6, 8, 512, 50304), *_pythia("70m")),
    **_size(162_322_944, _gpt_neox(12, 12, 768, 50304), *_pythia("160m")),
    **_size(405_334_016, _gpt_neox(24, 16, 1024, 50304), *_pythia("410m")),
    **_size(1_011_781_632, _gpt_neox(16, 8, 2048, 50304), *_pythia("1b")),
    **_size(1_414_647_808, _gpt_neox(24, 16, 2048, 50304), *_pythia("1.4b")),
    **_size(2_775_208_960, _gpt_neox(32, 32, 2560, 50304), *_pythia("2.8b")),
    **_size(6_857_302_016, _gpt_neox(32, 32, 4096, 50432), *_pythia("6.9b")),
    **_size(11_846_072_320, _gpt_neox(36, 40, 5120, 50688), *_pythia("12b")),
    **_size(
        20_554_567_680,
        _gpt_neox(44, 64, 6144, 50432, hidden_act="gelu_fast"),
        "EleutherAI/gpt-neox-20b apache-2.0 allowed",
    ),
    # RedPajama-INCITE
    **_size(
        2_775_864_320,
        _gpt_neox(32, 32, 2560, 50432, **_INCITE),
        "togethercomputer/RedPajama-INCITE-Base-3B-v1 apache-2.0 allowed",
        "togethercomputer/RedPajama-INCITE-Chat-3B-v1 apache-2.0 instruct",
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1 apache-2.0 instruct",
    ),
    **_size(
        6_857_302_016,
        _gpt_neox(32, 32, 4096, 50432, **_INCITE),
        "togethercomputer/RedPajama-INCITE-7B-Base apache-2.0 allowed",
        "togethercomputer/RedPajama-INCITE-7B-Chat apache-2.0 instruct",
        "togethercomputer/RedPajama-INCITE-7B-Instruct apache-2.0 instruct",
    ),
    # StableLM alpha. Its authors publish 3,638,525,952 and 7,869,358,080: these count the norms and the output biases
    # once per GPU that a layer was split over (4 and 2)
    **_size(
        3_637_321_728,
        _gpt_neox(16, 32, 4096, 50688, max_position_embeddings=4096),
        "stabilityai/stablelm-base-alpha-3b cc-by-sa-4.0 base",
        "stabilityai/stablelm-tuned-alpha-3b cc-by-nc-sa-4.0 instruct",
    ),
    **_size(
        7_868_755_968,
        _gpt_neox(16, 48, 6144, 50432, max_position_embeddings=4096),
        "stabilityai/stablelm-base-alpha-7b cc-by-sa-4.0 base",
        "stabilityai/stablelm-tuned-alpha-7b cc-by-nc-sa-4.0 instruct",
    ),
    # Dolly v2: Pythia without the unused rows of the vocabulary
    **_size(2_775_086_080, _gpt_neox(32, 32, 2560, 50280), "databricks/dolly-v2-3b mit instruct"),
    **_size(6_856_056_832, _gpt_neox(32, 32, 4096, 50280), "databricks/dolly-v2-7b mit instruct"),
    **_size(11_841_894_400, _gpt_neox(36, 40, 5120, 50280), "databricks/dolly-v2-12b mit instruct"),
    # Falcon, arXiv 2311.16867
    **_size(
        6_921_720_704,
        _falcon(32, 71, 4544),
        "tiiuae/falcon-7b apache-2.0 allowed",
        "tiiuae/falcon-7b-instruct apache-2.0 instruct",
    ),
    **_size(
        41_303_293_952,
        _falcon(60, 128, 8192, **_GROUPED),
        "tiiuae/falcon-40b apache-2.0 allowed",
        "tiiuae/falcon-40b-instruct apache-2.0 instruct",
    ),
    **_size(
        178_557_088_768,
        _falcon(80, 232, 14848, **_GROUPED),
        "tiiuae/falcon-180B falcon-180b allowed gated",
        "tiiuae/falcon-180B-chat falcon-180b instruct gated",
    ),
    # GPT-2; Cerebras-GPT, arXiv 2304.03208
    **_size(124_439_808, _gpt2(12, 12, 768), "openai-community/gpt2 mit allowed"),
    **_size(354_823_168, _gpt2(24, 16, 1024), "openai-community/gpt2-medium mit allowed"),
    **_size(774_030_080, _gpt2(36, 20, 1280), "openai-community/gpt2-large mit allowed"),
    **_size(1_557_611_200, _gpt2(48, 25, 1600), "openai-community/gpt2-xl mit allowed"),
    **_size(111_050_496, _gpt2(10, 12, 768, **_CEREBRAS), "cerebras/Cerebras-GPT-111M apache-2.0 allowed"),
    **_size(255_977_024, _gpt2(14, 17, 1088, **_CEREBRAS), "cerebras/Cerebras-GPT-256M apache-2.0 allowed"),
    **_size(590_310_912, _gpt2(18, 12, 1536, **_CEREBRAS), "cerebras/Cerebras-GPT-590M apache-2.0 allowed"),
    **_size(1_315_723_264, _gpt2(24, 16, 2048, **_CEREBRAS), "cerebras/Cerebras-GPT-1.3B apache-2.0 allowed"),
    **_size(2_651_553_280, _gpt2(32, 32, 2560, **_CEREBRAS), "cerebras/Cerebras-GPT-2.7B apache-2.0 allowed"),
    **_size(6_658_404_352, _gpt2(32, 32, 4096, **_CEREBRAS), "cerebras/Cerebras-GPT-6.7B apache-2.0 allowed"),
    **_size(12_853_386_240, _gpt2(40, 40, 5120, **_CEREBRAS), "cerebras/Cerebras-GPT-13B apache-2.0 allowed"),
    # GPT-Neo
    **_size(125_198_592, _gpt_neo(12, 12, 768), "EleutherAI/gpt-neo-125m mit allowed"),
    **_size(1_315_575_808, _gpt_neo(24, 16, 2048), "EleutherAI/gpt-neo-1.3B mit allowed"),
    **_size(2_651_307_520, _gpt_neo(32, 20, 2560), "EleutherAI/gpt-neo-2.7B mit allowed"),
    # GPT-J. Its authors publish 6,053,381,344: that counts norms, output biases and a bias of the embedding, which the
    # checkpoint lacks, once for each of the 8 parts that a layer was split into
    **_size(
        6_050_882_784,
        {
            "model_type": "gptj",
            "n_layer": 28,
            "n_head": 16,
            "n_embd": 4096,
            "rotary_dim": 64,
            "vocab_size": 50400,
            "n_positions": 2048,
            "activation_function": "gelu_new",
            "tie_word_embeddings": False,
        },
        "EleutherAI/gpt-j-6b apache-2.0 allowed",
    ),
    # OPT, arXiv 2205.01068, under a licence for research only
    **_size(125_239_296, _opt(12, 12, 768), "facebook/opt-125m opt-175b allowed"),
    **_size(1_315_758_080, _opt(24, 32, 2048), "facebook/opt-1.3b opt-175b allowed"),
    **_size(2_651_596_800, _opt(32, 32, 2560), "facebook/opt-2.7b opt-175b allowed"),
    **_size(6_658_473_984, _opt(32, 32, 4096), "facebook/opt-6.7b opt-175b allowed"),
    **_size(12_853_473_280, _opt(40, 40, 5120), "facebook/opt-13b opt-175b allowed"),
    **_size(29_974_540_288, _opt(48, 56, 7168), "facebook/opt-30b opt-175b allowed"),
    **_size(65_719_701_504, _opt(64, 72, 9216), "facebook/opt-66b opt-175b allowed"),
    # BLOOM, arXiv 2211.05100, and BLOOMZ, arXiv 2211.01786
    **_size(559_214_592, _bloom(24, 16, 1024), *_bloom_and_z("-560m")),
    **_size(1_065_314_304, _bloom(24, 16, 1536), *_bloom_and_z("-1b1")),
    **_size(1_722_408_960, _bloom(24, 16, 2048), *_bloom_and_z("-1b7")),
    **_size(3_002_557_440, _bloom(30, 32, 2560), *_bloom_and_z("-3b")),
    **_size(7_069_016_064, _bloom(30, 32, 4096), *_bloom_and_z("-7b1")),
    **_size(176_247_271_424, _bloom(70, 112, 14336), *_bloom_and_z("")),
    # MPT
    **_size(
        6_649_286_656,
        _mpt(32, 32, 4096, 2048),
        "mosaicml/mpt-7b apache-2.0 allowed",
        "mosaicml/mpt-7b-chat cc-by-nc-sa-4.0 instruct",
    ),
    **_size(
        29_957_200_896,
        _mpt(48, 64, 7168, 8192),
        "mosaicml/mpt-30b apache-2.0 allowed",
        "mosaicml/mpt-30b-chat cc-by-nc-sa-4.0 instruct",
    ),
    # StarCoder, arXiv 2305.06161, and SantaCoder, arXiv 2301.03988
    **_size(
        15_517_456_384,
        _gpt_bigcode(40, 48, 6144, vocab_size=49152, n_positions=8192, activation_function="gelu"),
        "bigcode/starcoder bigcode-openrail-m base gated",
        "bigcode/starcoderbase bigcode-openrail-m base gated",
    ),
    **_size(
        1_124_886_528,
        _gpt_bigcode(24, 16, 2048, vocab_size=49280, n_positions=2048, activation_function="gelu_pytorch_tanh"),
        "bigcode/gpt_bigcode-santacoder bigcode-openrail-m base",
    ),
    # Llama 3, arXiv 2407.21783
    **_size(
        8_030_261_248,
        _llama(32, 32, 4096, 14336, **_LLAMA_3),
        "meta-llama/Meta-Llama-3-8B llama3 base gated",
        "meta-llama/Meta-Llama-3-8B-Instruct llama3 instruct gated",
    ),
    **_size(
        70_553_706_496,
        _llama(80, 64, 8192, 28672, **_LLAMA_3),
        "meta-llama/Meta-Llama-3-70B llama3 base gated",
        "meta-llama/Meta-Llama-3-70B-Instruct llama3 instruct gated",
    ),
    **_size(
        8_030_261_248,
        _llama(32, 32, 4096, 14336, **_LLAMA_3_1),
        "meta-llama/Llama-3.1-8B llama3.1 base gated",
        "meta-llama/Llama-3.1-8B-Instruct llama3.1 instruct gated",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B mit instruct",
    ),
    **_size(
        70_553_706_496,
        _llama(80, 64, 8192, 28672, **_LLAMA_3_1),
        "meta-llama/Llama-3.1-70B llama3.1 base gated",
        "meta-llama/Llama-3.1-70B-Instruct llama3.1 instruct gated",
        "meta-llama/Llama-3.3-70B-Instruct llama3.3 instruct gated",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B mit instruct",
    ),
    **_size(
        405_853_388_800,
        _llama(126, 128, 16384, 53248, **_LLAMA_3_1),
        "meta-llama/Llama-3.1-405B llama3.1 base gated",
        "meta-llama/Llama-3.1-405B-Instruct llama3.1 instruct gated",
    ),
    **_size(
        1_235_814_400,
        _llama(16, 32, 2048, 8192, head_dim=64, **_LLAMA_3_2),
        "meta-llama/Llama-3.2-1B llama3.2 base gated",
        "meta-llama/Llama-3.2-1B-Instruct llama3.2 instruct gated",
    ),
    **_size(
        3_212_749_824,
        _llama(28, 24, 3072, 8192, head_dim=128, **_LLAMA_3_2),
        "meta-llama/Llama-3.2-3B llama3.2 base gated",
        "meta-llama/Llama-3.2-3B-Instruct llama3.2 instruct gated",
    ),
    # Code Llama 70B: only the base model was trained for long texts
    **_size(
        68_976_910_336,
        _llama(*_70B, num_key_value_heads=8, vocab_size=32016, **_CODE),
        "codellama/CodeLlama-70b-hf llama2 base",
    ),
    **_size(
        68_976_910_336,
        _llama(*_70B, num_key_value_heads=8, vocab_size=32016, **_LLAMA_2),
        "codellama/CodeLlama-70b-Python-hf llama2 base",
        "codellama/CodeLlama-70b-Instruct-hf llama2 instruct",
    ),
    # Yi, arXiv 2403.04652
    **_size(
        6_061_035_520,
        _llama(*_7B, num_key_value_heads=4, **_YI),
        "01-ai/Yi-6B apache-2.0 base",
        "01-ai/Yi-6B-Chat apache-2.0 instruct",
    ),
    **_size(
        34_388_917_248,
        _llama(60, 56, 7168, 20480, num_key_value_heads=8, **_YI),
        "01-ai/Yi-34B apache-2.0 base",
        "01-ai/Yi-34B-Chat apache-2.0 instruct",
    ),
    **_size(
        6_061_035_520,
        _llama(*_7B, num_key_value_heads=4, **_YI_1_5),
        "01-ai/Yi-1.5-6B apache-2.0 base",
        "01-ai/Yi-1.5-6B-Chat apache-2.0 instruct",
    ),
    **_size(
        8_829_407_232,
        _llama(48, 32, 4096, 11008, num_key_value_heads=4, **_YI_1_5),
        "01-ai/Yi-1.5-9B apache-2.0 base",
        "01-ai/Yi-1.5-9B-Chat apache-2.0 instruct",
    ),
    **_size(
        34_388_917_248,
        _llama(60, 56, 7168, 20480, num_key_value_heads=8, **_YI_1_5),
        "01-ai/Yi-1.5-34B apache-2.0 base",
        "01-ai/Yi-1.5-34B-Chat apache-2.0 instruct",
    ),
    # SmolLM2, arXiv 2502.02737
    **_size(
        134_515_008,
        _llama(30, 9, 576, 1536, num_key_value_heads=3, **_SMOL),
        "HuggingFaceTB/SmolLM2-135M apache-2.0 base",
        "HuggingFaceTB/SmolLM2-135M-Instruct apache-2.0 instruct",
    ),
    **_size(
        361_821_120,
        _llama(32, 15, 960, 2560, num_key_value_heads=5, **_SMOL),
        "HuggingFaceTB/SmolLM2-360M apache-2.0 base",
        "HuggingFaceTB/SmolLM2-360M-Instruct apache-2.0 instruct",
    ),
    **_size(
        1_711_376_384,
        _llama(24, 32, 2048, 8192, **_SMOL | {"rope_theta": 130000}),
        "HuggingFaceTB/SmolLM2-1.7B apache-2.0 base",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct apache-2.0 instruct",
    ),
    # Mistral, arXiv 2310.06825, and Mixtral, arXiv 2401.04088; the challenge ended before any but the first
    **_size(
        7_241_732_096,
        _llama(32, 32, 4096, 14336, **_MISTRAL_1),
        "mistralai/Mistral-7B-v0.1 apache-2.0 allowed gated",
        "mistralai/Mistral-7B-Instruct-v0.1 apache-2.0 instruct gated",
        "HuggingFaceH4/zephyr-7b-beta mit instruct",
    ),
    **_size(
        7_241_732_096,
        _llama(32, 32, 4096, 14336, **_MISTRAL),
        "mistralai/Mistral-7B-Instruct-v0.2 apache-2.0 instruct gated",
    ),
    **_size(
        7_248_023_552,
        _llama(32, 32, 4096, 14336, **_MISTRAL, vocab_size=32768),
        "mistralai/Mistral-7B-v0.3 apache-2.0 base gated",
        "mistralai/Mistral-7B-Instruct-v0.3 apache-2.0 instruct gated",
    ),
    **_size(
        46_702_792_704,
        _llama(32, 32, 4096, 14336, **_MIXTRAL),
        "mistralai/Mixtral-8x7B-v0.1 apache-2.0 base gated",
        "mistralai/Mixtral-8x7B-Instruct-v0.1 apache-2.0 instruct gated",
    ),
    # Phi, arXiv 2306.11644, arXiv 2309.05463, arXiv 2404.14219, arXiv 2412.08905
    **_size(
        1_418_270_720,
        _phi(24, 2048, 0.5),
        "microsoft/phi-1 mit base",
        "microsoft/phi-1_5 mit base",
    ),
    **_size(
        2_779_683_840,
        _phi(32, 2560, 0.4),
        "microsoft/phi-2 mit base",
    ),
    **_size(
        3_821_079_552,
        _llama(32, 32, 3072, 8192, **_PHI_3),
        "microsoft/Phi-3-mini-4k-instruct mit instruct",
    ),
    **_size(
        3_821_079_552,
        _llama(32, 32, 3072, 8192, **_PHI_3_5),
        "microsoft/Phi-3.5-mini-instruct mit instruct",
    ),
    **_size(
        13_960_238_080,
        _llama(40, 40, 5120, 17920, num_key_value_heads=10, **_PHI_3),
        "microsoft/Phi-3-medium-4k-instruct mit instruct",
    ),
    **_size(
        14_659_507_200,
        _llama(40, 40, 5120, 17920, **_PHI_4),
        "microsoft/phi-4 mit instruct",
    ),
    # Qwen 1.5, 2 and 2.5, arXiv 2407.10671, arXiv 2412.15115
    **_size(
        463_987_712,
        _llama(24, 16, 1024, 2816, num_key_value_heads=16, **_QWEN | _TIED),
        "Qwen/Qwen1.5-0.5B tongyi-qianwen-research base",
        "Qwen/Qwen1.5-0.5B-Chat tongyi-qianwen-research instruct",
    ),
    **_size(
        1_836_828_672,
        _llama(24, 16, 2048, 5504, num_key_value_heads=16, **_QWEN),
        "Qwen/Qwen1.5-1.8B tongyi-qianwen-research base",
        "Qwen/Qwen1.5-1.8B-Chat tongyi-qianwen-research instruct",
    ),
    **_size(
        7_721_324_544,
        _llama(*_7B, num_key_value_heads=32, **_QWEN),
        "Qwen/Qwen1.5-7B tongyi-qianwen base",
        "Qwen/Qwen1.5-7B-Chat tongyi-qianwen instruct",
    ),
    **_size(
        14_167_290_880,
        _llama(40, 40, 5120, 13696, num_key_value_heads=40, **_QWEN | _BIG),
        "Qwen/Qwen1.5-14B tongyi-qianwen base",
        "Qwen/Qwen1.5-14B-Chat tongyi-qianwen instruct",
    ),
    **_size(
        494_032_768,
        _llama(24, 14, 896, 4864, num_key_value_heads=2, **_QWEN | _LONG | _TIED),
        "Qwen/Qwen2-0.5B apache-2.0 base",
    ),
    **_size(
        494_032_768,
        _llama(24, 14, 896, 4864, num_key_value_heads=2, **_QWEN | _TIED),
        "Qwen/Qwen2-0.5B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-0.5B apache-2.0 base",
        "Qwen/Qwen2.5-0.5B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-Coder-0.5B apache-2.0 base",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct apache-2.0 instruct",
    ),
    **_size(
        1_543_714_304,
        _llama(28, 12, 1536, 8960, num_key_value_heads=2, **_QWEN | _LONG | _TIED),
        "Qwen/Qwen2-1.5B apache-2.0 base",
        "Qwen/Qwen2.5-1.5B apache-2.0 base",
    ),
    **_size(
        1_543_714_304,
        _llama(28, 12, 1536, 8960, num_key_value_heads=2, **_QWEN | _TIED),
        "Qwen/Qwen2-1.5B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-1.5B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-Coder-1.5B apache-2.0 base",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct apache-2.0 instruct",
    ),
    **_size(
        1_543_714_304,
        _llama(28, 12, 1536, 8960, num_key_value_heads=2, **_QWEN_MATH | _TIED),
        "Qwen/Qwen2.5-Math-1.5B apache-2.0 base",
        "Qwen/Qwen2.5-Math-1.5B-Instruct apache-2.0 instruct",
    ),
    **_size(
        3_085_938_688,
        _llama(36, 16, 2048, 11008, num_key_value_heads=2, **_QWEN | _TIED),
        "Qwen/Qwen2.5-3B qwen-research base",
        "Qwen/Qwen2.5-3B-Instruct qwen-research instruct",
    ),
    **_size(
        7_615_616_512,
        _llama(28, 28, 3584, 18944, num_key_value_heads=4, **_QWEN | _LONG | _BIG),
        "Qwen/Qwen2-7B apache-2.0 base",
        "Qwen/Qwen2.5-7B apache-2.0 base",
    ),
    **_size(
        7_615_616_512,
        _llama(28, 28, 3584, 18944, num_key_value_heads=4, **_QWEN | _BIG),
        "Qwen/Qwen2-7B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-7B-Instruct apache-2.0 instruct",
        "Qwen/Qwen2.5-Coder-7B apache-2.0 base",
        "Qwen/Qwen2.5-Coder-7B-Instruct apache-2.0 instruct",
    ),
    **_size(
        7_615_616_512,
        _llama(28, 28, 3584, 18944, num_key_value_heads=4, **_QWEN_MATH | _BIG),
        "Qwen/Qwen2.5-Math-7B apache-2.0 base",
        "Qwen/Qwen2.5-Math-7B-Instruct apache-2.0 instruct",
    ),
    **_size(
        7_615_616_512,
        _llama(28, 28, 3584, 18944, num_key_value_heads=4, **_QWEN_MATH | _LONG | _BIG),
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B mit instruct",
    ),
    **_size(
        14_770_033_664,
        _llama(48, 40, 5120, 13824, num_key_value_heads=8, rms_norm_eps=1e-5, **_QWEN | _LONG | _BIG),
        "Qwen/Qwen2.5-14B apache-2.0 base",
    ),
    **_size(
        14_770_033_664,
        _llama(48, 40, 5120, 13824, num_key_value_heads=8, **_QWEN | _BIG),
        "Qwen/Qwen2.5-14B-Instruct apache-2.0 instruct",
    ),
    **_size(
        32_763_876_352,
        _llama(64, 40, 5120, 27648, num_key_value_heads=8, rms_norm_eps=1e-5, **_QWEN | _LONG | _BIG),
        "Qwen/Qwen2.5-32B apache-2.0 base",
    ),
    **_size(
        32_763_876_352,
        _llama(64, 40, 5120, 27648, num_key_value_heads=8, **_QWEN | _BIG),
        "Qwen/Qwen2.5-32B-Instruct apache-2.0 instruct",
    ),
    **_size(
        72_706_203_648,
        _llama(80, 64, 8192, 29568, num_key_value_heads=8, rms_norm_eps=1e-5, **_QWEN | _LONG | _BIG),
        "Qwen/Qwen2.5-72B qwen base",
    ),
    **_size(
        72_706_203_648,
        _llama(80, 64, 8192, 29568, num_key_value_heads=8, **_QWEN | _BIG),
        "Qwen/Qwen2-72B-Instruct tongyi-qianwen instruct",
        "Qwen/Qwen2.5-72B-Instruct qwen instruct",
    ),
    # Qwen 3, arXiv 2505.09388
    **_size(
        596_049_920,
        _llama(28, 16, 1024, 3072, **_QWEN_3 | _TIED),
        "Qwen/Qwen3-0.6B-Base apache-2.0 base",
    ),
    **_size(
        596_049_920,
        _llama(28, 16, 1024, 3072, **_QWEN_3 | _40K | _TIED),
        "Qwen/Qwen3-0.6B apache-2.0 instruct",
    ),
    **_size(
        1_720_574_976,
        _llama(28, 16, 2048, 6144, **_QWEN_3 | _TIED),
        "Qwen/Qwen3-1.7B-Base apache-2.0 base",
    ),
    **_size(
        1_720_574_976,
        _llama(28, 16, 2048, 6144, **_QWEN_3 | _40K | _TIED),
        "Qwen/Qwen3-1.7B apache-2.0 instruct",
    ),
    **_size(
        4_022_468_096,
        _llama(36, 32, 2560, 9728, **_QWEN_3 | _TIED),
        "Qwen/Qwen3-4B-Base apache-2.0 base",
    ),
    **_size(
        4_022_468_096,
        _llama(36, 32, 2560, 9728, **_QWEN_3 | _40K | _TIED),
        "Qwen/Qwen3-4B apache-2.0 instruct",
    ),
    **_size(
        8_190_735_360,
        _llama(36, 32, 4096, 12288, **_QWEN_3),
        "Qwen/Qwen3-8B-Base apache-2.0 base",
    ),
    **_size(
        8_190_735_360,
        _llama(36, 32, 4096, 12288, **_QWEN_3 | _40K),
        "Qwen/Qwen3-8B apache-2.0 instruct",
    ),
    **_size(
        14_768_307_200,
        _llama(40, 40, 5120, 17408, **_QWEN_3),
        "Qwen/Qwen3-14B-Base apache-2.0 base",
    ),
    **_size(
        14_768_307_200,
        _llama(40, 40, 5120, 17408, **_QWEN_3 | _40K),
        "Qwen/Qwen3-14B apache-2.0 instruct",
    ),
    **_size(
        32_762_123_264,
        _llama(64, 64, 5120, 25600, **_QWEN_3 | _40K),
        "Qwen/Qwen3-32B apache-2.0 instruct",
    ),
    **_size(
        30_532_122_624,
        _llama(48, 32, 2048, 6144, moe_intermediate_size=768, **_QWEN_3_MOE),
        "Qwen/Qwen3-30B-A3B-Base apache-2.0 base",
    ),
    **_size(
        30_532_122_624,
        _llama(48, 32, 2048, 6144, moe_intermediate_size=768, **_QWEN_3_MOE | _40K),
        "Qwen/Qwen3-30B-A3B apache-2.0 instruct",
    ),
    **_size(
        235_093_634_560,
        _llama(94, 64, 4096, 12288, moe_intermediate_size=1536, **_QWEN_3_MOE | _40K),
        "Qwen/Qwen3-235B-A22B apache-2.0 instruct",
    ),
    # Gemma, arXiv 2403.08295
    **_size(
        2_506_172_416,
        _llama(18, 8, 2048, 16384, num_key_value_heads=1, **_GEMMA),
        "google/gemma-2b gemma base gated",
        "google/gemma-2b-it gemma instruct gated",
        "google/gemma-1.1-2b-it gemma instruct gated",
    ),
    **_size(
        8_537_680_896,
        _llama(28, 16, 3072, 24576, num_key_value_heads=16, **_GEMMA),
        "google/gemma-7b gemma base gated",
        "google/gemma-7b-it gemma instruct gated",
        "google/gemma-1.1-7b-it gemma instruct gated",
    ),
    # Gemma 2, arXiv 2408.00118
    **_size(
        2_614_341_888,
        _llama(26, 8, 2304, 9216, num_key_value_heads=4, **_GEMMA_2),
        "google/gemma-2-2b gemma base gated",
        "google/gemma-2-2b-it gemma instruct gated",
    ),
    **_size(
        9_241_705_984,
        _llama(42, 16, 3584, 14336, num_key_value_heads=8, **_GEMMA_2),
        "google/gemma-2-9b gemma base gated",
        "google/gemma-2-9b-it gemma instruct gated",
    ),
    **_size(
        27_227_128_320,
        _llama(46, 32, 4608, 36864, **_GEMMA_2_27B),
        "google/gemma-2-27b gemma base gated",
        "google/gemma-2-27b-it gemma instruct gated",
    ),
    # Gemma 3, arXiv 2503.19786: from 4B on the language model in a checkpoint that reads images, too
    **_size(
        268_098_176,
        _llama(18, 4, 640, 2048, **_GEMMA_3),
        "google/gemma-3-270m gemma base gated",
        "google/gemma-3-270m-it gemma instruct gated",
    ),
    **_size(
        999_885_952,
        _llama(26, 4, 1152, 6912, **_GEMMA_3),
        "google/gemma-3-1b-pt gemma base gated",
        "google/gemma-3-1b-it gemma instruct gated",
    ),
    **_size(
        3_880_263_168,
        _llama(34, 8, 2560, 10240, **{**_GEMMA_3_LONG, "num_key_value_heads": 4}),
        "google/gemma-3-4b-pt gemma base gated",
        "google/gemma-3-4b-it gemma instruct gated",
    ),
    **_size(
        11_766_034_176,
        _llama(48, 16, 3840, 15360, **{**_GEMMA_3_LONG, "num_key_value_heads": 8}),
        "google/gemma-3-12b-pt gemma base gated",
        "google/gemma-3-12b-it gemma instruct gated",
    ),
    **_size(
        27_009_346_304,
        _llama(62, 32, 5376, 21504, **_GEMMA_3_27B),
        "google/gemma-3-27b-pt gemma base gated",
        "google/gemma-3-27b-it gemma instruct gated",
    ),
    # StableLM 3B and 2, arXiv 2402.17834
    **_size(
        2_795_443_200,
        _llama(32, 32, 2560, 6912, vocab_size=50304, **_STABLELM),
        "stabilityai/stablelm-3b-4e1t cc-by-sa-4.0 base",
        "stabilityai/stablelm-zephyr-3b other instruct",
    ),
    **_size(
        1_644_515_328,
        _llama(24, 32, 2048, 5632, vocab_size=100352, use_qkv_bias=True, **_STABLELM),
        "stabilityai/stablelm-2-1_6b other base",
        "stabilityai/stablelm-2-zephyr-1_6b other instruct",
    ),
    **_size(
        12_143_185_920,
        _llama(40, 32, 5120, 13824, num_key_value_heads=8, **_STABLELM_12B),
        "stabilityai/stablelm-2-12b other base",
        "stabilityai/stablelm-2-12b-chat other instruct",
    ),
    # OLMo, arXiv 2402.00838, and OLMo 2, arXiv 2501.00656
    **_size(1_176_764_416, _llama(16, 16, 2048, 8192, **{**_OLMO, **_TIED}), "allenai/OLMo-1B-hf apache-2.0 base"),
    **_size(
        6_888_095_744,
        _llama(*_7B, **_OLMO),
        "allenai/OLMo-7B-hf apache-2.0 base",
        "allenai/OLMo-7B-Instruct-hf apache-2.0 instruct",
    ),
    **_size(
        6_888_095_744,
        _llama(*_7B, **{**_OLMO, "max_position_embeddings": 4096, "clip_qkv": 8.0}),
        "allenai/OLMo-1.7-7B-hf apache-2.0 base",
        "allenai/OLMo-7B-0424-hf apache-2.0 base",
    ),
    **_size(
        1_484_916_736,
        _llama(16, 16, 2048, 8192, **_OLMO_2),
        "allenai/OLMo-2-0425-1B apache-2.0 base",
        "allenai/OLMo-2-0425-1B-Instruct apache-2.0 instruct",
    ),
    **_size(
        7_298_617_344,
        _llama(*_7B, **_OLMO_2),
        "allenai/OLMo-2-1124-7B apache-2.0 base",
        "allenai/OLMo-2-1124-7B-Instruct apache-2.0 instruct",
    ),
    **_size(
        13_716_198_400,
        _llama(*_13B, **_OLMO_2),
        "allenai/OLMo-2-1124-13B apache-2.0 base",
        "allenai/OLMo-2-1124-13B-Instruct apache-2.0 instruct",
    ),
    **_size(
        32_234_279_936,
        _llama(64, 40, 5120, 27648, num_key_value_heads=8, **_OLMO_2),
        "allenai/OLMo-2-0325-32B apache-2.0 base",
        "allenai/OLMo-2-0325-32B-Instruct apache-2.0 instruct",
    ),
    # SmolLM3
    **_size(
        3_075_098_624,
        _llama(36, 16, 2048, 11008, **_SMOL_3),
        "HuggingFaceTB/SmolLM3-3B-Base apache-2.0 base",
        "HuggingFaceTB/SmolLM3-3B apache-2.0 instruct",
    ),
    # InternLM and InternLM 2, arXiv 2403.17297
    **_size(
        7_321_948_160,
        _llama(*_7B, bias=True, **_INTERNLM),
        "internlm/internlm-7b apache-2.0 allowed",
        "internlm/internlm-chat-7b apache-2.0 instruct",
    ),
    **_size(
        20_088_714_240,
        _llama(60, 40, 5120, 13824, bias=False, **{**_INTERNLM, "max_position_embeddings": 4096}),
        "internlm/internlm-20b apache-2.0 allowed",
        "internlm/internlm-chat-20b apache-2.0 instruct",
    ),
    **_size(
        7_737_708_544,
        _llama(32, 32, 4096, 14336, **_INTERNLM_2),
        "internlm/internlm2-7b other base",
    ),
    **_size(
        19_861_149_696,
        _llama(48, 48, 6144, 16384, **_INTERNLM_2),
        "internlm/internlm2-20b other base",
    ),
}
"""All rows, by `repo_id`."""
