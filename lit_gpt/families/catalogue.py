"""Well-known checkpoints of the Hugging Face hub: one row each, so that sizes and licences are known offline.

The numbers are those of each repository's `config.json`. What the NeurIPS 2023 LLM Efficiency Challenge allows is its
list of 2023-10-07: base models of certain families.
"""

import difflib
import json
import struct
from collections.abc import Callable
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


def _gptj(layers: int, heads: int, width: int) -> dict[str, Any]:
    """A GPT-J of this size."""
    return {
        "model_type": "gptj",
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "n_positions": 2048,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    }


def _gpt_bigcode(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    """A GPTBigCode of this size; `other` says what is different from GPT-2."""
    return {**_gpt2(layers, heads, width, **other), "model_type": "gpt_bigcode", "multi_query": True}


def _opt(layers: int, heads: int, width: int, **other: Any) -> dict[str, Any]:
    """An OPT of this size; `other` says what is different."""
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
        **other,
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


_SHAPES: dict[str, Callable[..., dict[str, Any]]] = {
    "llama": _llama,
    "gpt_neox": _gpt_neox,
    "falcon": _falcon,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "phi": _phi,
}
"""The kinds of models in the table; what is like Llama but for some keys is a Llama with them."""

_NAMED = """
LLAMA_2       max_position_embeddings=4096 rms_norm_eps=1e-05
16K           max_sequence_length=16384 rope_scaling.type="linear" rope_scaling.factor=4.0
CONDENSED     max_sequence_length=16384 rope_scaling.type="linear" rope_scaling.factor=8.0
CODE          max_position_embeddings=16384 rms_norm_eps=1e-05 rope_theta=1000000
INCITE        rotary_pct=1.0 use_parallel_residual=false
CEREBRAS      n_positions=2048 activation_function="gelu"
GROUPED       new_decoder_architecture=true num_kv_heads=8
RW            multi_query=false parallel_attn=false bias=true alibi=true
LLAMA_3       vocab_size=128256 num_key_value_heads=8 max_position_embeddings=8192 rms_norm_eps=1e-05
              rope_theta=500000
LLAMA_3_1     LLAMA_3 max_position_embeddings=131072 rope_scaling.rope_type="llama3" rope_scaling.factor=8.0
              rope_scaling.low_freq_factor=1.0 rope_scaling.high_freq_factor=4.0
              rope_scaling.original_max_position_embeddings=8192
LLAMA_3_2     LLAMA_3_1 rope_scaling.factor=32.0 tie_word_embeddings=true
YI            vocab_size=64000 max_position_embeddings=4096 rms_norm_eps=1e-05 rope_theta=5000000
YI_1_5        YI rms_norm_eps=1e-06
SMOL          vocab_size=49152 max_position_embeddings=8192 rms_norm_eps=1e-05 rope_theta=100000
              tie_word_embeddings=true
MISTRAL       model_type="mistral" num_key_value_heads=8 max_position_embeddings=32768 sliding_window=null
              rms_norm_eps=1e-05 rope_theta=1000000
MISTRAL_1     MISTRAL sliding_window=4096 rope_theta=10000
MIXTRAL       MISTRAL model_type="mixtral" num_local_experts=8 num_experts_per_tok=2
PHI_3         model_type="phi3" vocab_size=32064 max_position_embeddings=4096 sliding_window=2047 rms_norm_eps=1e-05
PHI_3_5       PHI_3 max_position_embeddings=131072 original_max_position_embeddings=4096 sliding_window=262144
PHI_4         PHI_3 vocab_size=100352 num_key_value_heads=10 max_position_embeddings=16384 sliding_window=null
              rope_theta=250000
PHI_4_MINI    PHI_3_5 vocab_size=200064 num_key_value_heads=8 partial_rotary_factor=0.75 tie_word_embeddings=true
QWEN          model_type="qwen2" vocab_size=151936 max_position_embeddings=32768 use_sliding_window=false
              rope_theta=1000000
QWEN_MATH     QWEN max_position_embeddings=4096 rope_theta=10000
QWEN_3        QWEN model_type="qwen3" num_key_value_heads=8 head_dim=128
QWEN_3_MOE    QWEN_3 model_type="qwen3_moe" num_key_value_heads=4 num_experts=128 num_experts_per_tok=8
              norm_topk_prob=true
BIG           vocab_size=152064
LONG          max_position_embeddings=131072
40K           max_position_embeddings=40960
TIED          tie_word_embeddings=true
GEMMA         model_type="gemma" head_dim=256 vocab_size=256000 max_position_embeddings=8192
              hidden_act="gelu_pytorch_tanh" tie_word_embeddings=true
GEMMA_2       GEMMA model_type="gemma2" sliding_window=4096 query_pre_attn_scalar=256 attn_logit_softcapping=50.0
              final_logit_softcapping=30.0
GEMMA_2_27B   GEMMA_2 num_key_value_heads=16 head_dim=128 query_pre_attn_scalar=144
GEMMA_3       GEMMA model_type="gemma3_text" num_key_value_heads=1 vocab_size=262144 max_position_embeddings=32768
              sliding_window=512 query_pre_attn_scalar=256 rope_theta=1000000 rope_local_base_freq=10000
GEMMA_3_LONG  GEMMA_3 vocab_size=262208 max_position_embeddings=131072 sliding_window=1024
              rope_scaling.rope_type="linear" rope_scaling.factor=8.0
GEMMA_3_27B   GEMMA_3_LONG num_key_value_heads=16 head_dim=128 query_pre_attn_scalar=168
STABLELM      model_type="stablelm" max_position_embeddings=4096 layer_norm_eps=1e-05 partial_rotary_factor=0.25
STABLELM_12B  STABLELM vocab_size=100352 qk_layernorm=true use_parallel_residual=true
OLMO          model_type="olmo" vocab_size=50304
OLMO_2        model_type="olmo2" vocab_size=100352 max_position_embeddings=4096 rope_theta=500000
SMOL_3        model_type="smollm3" num_key_value_heads=4 vocab_size=128256 max_position_embeddings=65536
              rope_theta=5000000 tie_word_embeddings=true
INTERNLM      model_type="internlm" vocab_size=103168
INTERNLM_2    model_type="internlm2" vocab_size=92544 num_key_value_heads=8 max_position_embeddings=32768
              rms_norm_eps=1e-05 rope_theta=1000000 rope_scaling.type="dynamic" rope_scaling.factor=2.0 bias=false
"""
"""Settings with a name: another one that they begin with, keys, and values in JSON; indented lines go on."""

_TABLE = """
# Llama 2, arXiv 2307.09288
  6,738,415,616  llama 32 32 4096 11008 LLAMA_2
    meta-llama/Llama-2-7b-hf                       llama2                     allowed gated
    meta-llama/Llama-2-7b-chat-hf                  llama2                     instruct gated
    lmsys/vicuna-7b-v1.5                           llama2                     instruct
 13,015,864,320  llama 40 40 5120 13824 LLAMA_2
    meta-llama/Llama-2-13b-hf                      llama2                     allowed gated
    meta-llama/Llama-2-13b-chat-hf                 llama2                     instruct gated
    lmsys/vicuna-13b-v1.5                          llama2                     instruct
 68,976,648,192  llama 80 64 8192 28672 LLAMA_2 num_key_value_heads=8
    meta-llama/Llama-2-70b-hf                      llama2                     allowed gated
    meta-llama/Llama-2-70b-chat-hf                 llama2                     instruct gated
    stabilityai/FreeWilly2                         cc-by-nc-4.0               instruct
    stabilityai/StableBeluga2                      stable-beluga-nc           instruct
  6,738,415,616  llama 32 32 4096 11008 LLAMA_2 16K
    lmsys/vicuna-7b-v1.5-16k                       llama2                     instruct
 13,015,864,320  llama 40 40 5120 13824 LLAMA_2 16K
    lmsys/vicuna-13b-v1.5-16k                      llama2                     instruct
# Llama 1, arXiv 2302.13971; OpenLLaMA; Vicuna and LongChat, arXiv 2306.05685
  3,426,473,600  llama 26 32 3200 8640
    openlm-research/open_llama_3b                  apache-2.0                 allowed
    openlm-research/open_llama_3b_v2               apache-2.0                 allowed
  6,738,415,616  llama 32 32 4096 11008
    openlm-research/open_llama_7b                  apache-2.0                 allowed
    openlm-research/open_llama_7b_v2               apache-2.0                 allowed
    huggyllama/llama-7b                            llama                      allowed
    lmsys/vicuna-7b-v1.3                           llama                      instruct
 13,015,864,320  llama 40 40 5120 13824
    openlm-research/open_llama_13b                 apache-2.0                 allowed
    huggyllama/llama-13b                           llama                      allowed
    lmsys/vicuna-13b-v1.3                          llama                      instruct
 32,528,943,616  llama 60 52 6656 17920
    huggyllama/llama-30b                           llama                      allowed
    lmsys/vicuna-33b-v1.3                          llama                      instruct
 65,285,660,672  llama 80 64 8192 22016 rms_norm_eps=1e-05
    huggyllama/llama-65b                           llama                      allowed
  6,738,415,616  llama 32 32 4096 11008 CONDENSED
    lmsys/longchat-7b-16k                          llama                      instruct
 13,015,864,320  llama 40 40 5120 13824 CONDENSED
    lmsys/longchat-13b-16k                         llama                      instruct
# Code Llama, arXiv 2308.12950: those that can fill in the middle know 16 more pieces
  6,738,546,688  llama 32 32 4096 11008 CODE vocab_size=32016
    codellama/CodeLlama-7b-hf                      llama2                     base
    codellama/CodeLlama-7b-Instruct-hf             llama2                     instruct
 13,016,028,160  llama 40 40 5120 13824 CODE vocab_size=32016
    codellama/CodeLlama-13b-hf                     llama2                     base
    codellama/CodeLlama-13b-Instruct-hf            llama2                     instruct
  6,738,415,616  llama 32 32 4096 11008 CODE
    codellama/CodeLlama-7b-Python-hf               llama2                     base
 13,015,864,320  llama 40 40 5120 13824 CODE
    codellama/CodeLlama-13b-Python-hf              llama2                     base
 33,743,970,304  llama 48 64 8192 22016 CODE num_key_value_heads=8
    codellama/CodeLlama-34b-hf                     llama2                     base
    codellama/CodeLlama-34b-Python-hf              llama2                     base
    codellama/CodeLlama-34b-Instruct-hf            llama2                     instruct
# TinyLlama, arXiv 2401.02385
  1,100,048,384  llama 22 32 2048 5632 num_key_value_heads=4 rms_norm_eps=1e-05
    TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T apache-2.0                 base
    TinyLlama/TinyLlama-1.1B-Chat-v1.0             apache-2.0                 instruct
# Pythia, arXiv 2304.01373, and GPT-NeoX-20B, arXiv 2204.06745
     14,067,712  gpt_neox 6 4 128 50304
    EleutherAI/pythia-14m                          apache-2.0                 allowed
    EleutherAI/pythia-14m-deduped                  apache-2.0                 allowed
     30,494,720  gpt_neox 6 8 256 50304
    EleutherAI/pythia-31m                          apache-2.0                 allowed
    EleutherAI/pythia-31m-deduped                  apache-2.0                 allowed
     70,426,624  gpt_neox 6 8 512 50304
    EleutherAI/pythia-70m                          apache-2.0                 allowed
    EleutherAI/pythia-70m-deduped                  apache-2.0                 allowed
    162,322,944  gpt_neox 12 12 768 50304
    EleutherAI/pythia-160m                         apache-2.0                 allowed
    EleutherAI/pythia-160m-deduped                 apache-2.0                 allowed
    405,334,016  gpt_neox 24 16 1024 50304
    EleutherAI/pythia-410m                         apache-2.0                 allowed
    EleutherAI/pythia-410m-deduped                 apache-2.0                 allowed
  1,011,781,632  gpt_neox 16 8 2048 50304
    EleutherAI/pythia-1b                           apache-2.0                 allowed
    EleutherAI/pythia-1b-deduped                   apache-2.0                 allowed
  1,414,647,808  gpt_neox 24 16 2048 50304
    EleutherAI/pythia-1.4b                         apache-2.0                 allowed
    EleutherAI/pythia-1.4b-deduped                 apache-2.0                 allowed
  2,775,208,960  gpt_neox 32 32 2560 50304
    EleutherAI/pythia-2.8b                         apache-2.0                 allowed
    EleutherAI/pythia-2.8b-deduped                 apache-2.0                 allowed
  6,857,302,016  gpt_neox 32 32 4096 50432
    EleutherAI/pythia-6.9b                         apache-2.0                 allowed
    EleutherAI/pythia-6.9b-deduped                 apache-2.0                 allowed
 11,846,072,320  gpt_neox 36 40 5120 50688
    EleutherAI/pythia-12b                          apache-2.0                 allowed
    EleutherAI/pythia-12b-deduped                  apache-2.0                 allowed
 20,554,567,680  gpt_neox 44 64 6144 50432 hidden_act="gelu_fast"
    EleutherAI/gpt-neox-20b                        apache-2.0                 allowed
# RedPajama-INCITE
  2,775,864,320  gpt_neox 32 32 2560 50432 INCITE
    togethercomputer/RedPajama-INCITE-Base-3B-v1   apache-2.0                 allowed
    togethercomputer/RedPajama-INCITE-Chat-3B-v1   apache-2.0                 instruct
    togethercomputer/RedPajama-INCITE-Instruct-3B-v1 apache-2.0                 instruct
  6,857,302,016  gpt_neox 32 32 4096 50432 INCITE
    togethercomputer/RedPajama-INCITE-7B-Base      apache-2.0                 allowed
    togethercomputer/RedPajama-INCITE-7B-Chat      apache-2.0                 instruct
    togethercomputer/RedPajama-INCITE-7B-Instruct  apache-2.0                 instruct
# StableLM alpha. Its authors publish 3,638,525,952 and 7,869,358,080: these count the norms and the output biases
# once per GPU that a layer was split over (4 and 2)
  3,637,321,728  gpt_neox 16 32 4096 50688 max_position_embeddings=4096
    stabilityai/stablelm-base-alpha-3b             cc-by-sa-4.0               base
    stabilityai/stablelm-tuned-alpha-3b            cc-by-nc-sa-4.0            instruct
  7,868,755,968  gpt_neox 16 48 6144 50432 max_position_embeddings=4096
    stabilityai/stablelm-base-alpha-7b             cc-by-sa-4.0               base
    stabilityai/stablelm-tuned-alpha-7b            cc-by-nc-sa-4.0            instruct
# Dolly v2: Pythia without the unused rows of the vocabulary
  2,775,086,080  gpt_neox 32 32 2560 50280
    databricks/dolly-v2-3b                         mit                        instruct
  6,856,056,832  gpt_neox 32 32 4096 50280
    databricks/dolly-v2-7b                         mit                        instruct
 11,841,894,400  gpt_neox 36 40 5120 50280
    databricks/dolly-v2-12b                        mit                        instruct
# Falcon, arXiv 2311.16867
  1,311,625,216  falcon 24 32 2048 RW vocab_size=50304
    tiiuae/falcon-rw-1b                            apache-2.0                 allowed
  7,516,020,736  falcon 36 64 4096 RW
    tiiuae/falcon-rw-7b                            apache-2.0                 allowed
  6,921,720,704  falcon 32 71 4544
    tiiuae/falcon-7b                               apache-2.0                 allowed
    tiiuae/falcon-7b-instruct                      apache-2.0                 instruct
 41,303,293,952  falcon 60 128 8192 GROUPED
    tiiuae/falcon-40b                              apache-2.0                 allowed
    tiiuae/falcon-40b-instruct                     apache-2.0                 instruct
178,557,088,768  falcon 80 232 14848 GROUPED
    tiiuae/falcon-180B                             falcon-180b                allowed gated
    tiiuae/falcon-180B-chat                        falcon-180b                instruct gated
# GPT-2; Cerebras-GPT, arXiv 2304.03208
    124,439,808  gpt2 12 12 768
    openai-community/gpt2                          mit                        allowed
    354,823,168  gpt2 24 16 1024
    openai-community/gpt2-medium                   mit                        allowed
    774,030,080  gpt2 36 20 1280
    openai-community/gpt2-large                    mit                        allowed
  1,557,611,200  gpt2 48 25 1600
    openai-community/gpt2-xl                       mit                        allowed
    111,050,496  gpt2 10 12 768 CEREBRAS
    cerebras/Cerebras-GPT-111M                     apache-2.0                 allowed
    255,977,024  gpt2 14 17 1088 CEREBRAS
    cerebras/Cerebras-GPT-256M                     apache-2.0                 allowed
    590,310,912  gpt2 18 12 1536 CEREBRAS
    cerebras/Cerebras-GPT-590M                     apache-2.0                 allowed
  1,315,723,264  gpt2 24 16 2048 CEREBRAS
    cerebras/Cerebras-GPT-1.3B                     apache-2.0                 allowed
  2,651,553,280  gpt2 32 32 2560 CEREBRAS
    cerebras/Cerebras-GPT-2.7B                     apache-2.0                 allowed
  6,658,404,352  gpt2 32 32 4096 CEREBRAS
    cerebras/Cerebras-GPT-6.7B                     apache-2.0                 allowed
 12,853,386,240  gpt2 40 40 5120 CEREBRAS
    cerebras/Cerebras-GPT-13B                      apache-2.0                 allowed
# GPT-Neo
    125,198,592  gpt_neo 12 12 768
    EleutherAI/gpt-neo-125m                        mit                        allowed
  1,315,575,808  gpt_neo 24 16 2048
    EleutherAI/gpt-neo-1.3B                        mit                        allowed
  2,651,307,520  gpt_neo 32 20 2560
    EleutherAI/gpt-neo-2.7B                        mit                        allowed
# GPT-J. Its authors publish 6,053,381,344: that counts norms, output biases and a bias of the embedding, which the
# checkpoint lacks, once for each of the 8 parts that a layer was split into
  6,050,882,784  gptj 28 16 4096
    EleutherAI/gpt-j-6b                            apache-2.0                 allowed
# OPT, arXiv 2205.01068, under a licence for research only
    125,239,296  opt 12 12 768
    facebook/opt-125m                              opt-175b                   allowed
    331,196,416  opt 24 16 1024 do_layer_norm_before=false word_embed_proj_dim=512
    facebook/opt-350m                              opt-175b                   allowed
  1,315,758,080  opt 24 32 2048
    facebook/opt-1.3b                              opt-175b                   allowed
  2,651,596,800  opt 32 32 2560
    facebook/opt-2.7b                              opt-175b                   allowed
  6,658,473,984  opt 32 32 4096
    facebook/opt-6.7b                              opt-175b                   allowed
 12,853,473,280  opt 40 40 5120
    facebook/opt-13b                               opt-175b                   allowed
 29,974,540,288  opt 48 56 7168
    facebook/opt-30b                               opt-175b                   allowed
 65,719,701,504  opt 64 72 9216
    facebook/opt-66b                               opt-175b                   allowed
# BLOOM, arXiv 2211.05100, and BLOOMZ, arXiv 2211.01786
    559,214,592  bloom 24 16 1024
    bigscience/bloom-560m                          bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz-560m                         bigscience-bloom-rail-1.0  instruct
  1,065,314,304  bloom 24 16 1536
    bigscience/bloom-1b1                           bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz-1b1                          bigscience-bloom-rail-1.0  instruct
  1,722,408,960  bloom 24 16 2048
    bigscience/bloom-1b7                           bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz-1b7                          bigscience-bloom-rail-1.0  instruct
  3,002,557,440  bloom 30 32 2560
    bigscience/bloom-3b                            bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz-3b                           bigscience-bloom-rail-1.0  instruct
  7,069,016,064  bloom 30 32 4096
    bigscience/bloom-7b1                           bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz-7b1                          bigscience-bloom-rail-1.0  instruct
176,247,271,424  bloom 70 112 14336
    bigscience/bloom                               bigscience-bloom-rail-1.0  allowed
    bigscience/bloomz                              bigscience-bloom-rail-1.0  instruct
# MPT
  6,649,286,656  mpt 32 32 4096 2048
    mosaicml/mpt-7b                                apache-2.0                 allowed
    mosaicml/mpt-7b-chat                           cc-by-nc-sa-4.0            instruct
 29,957,200,896  mpt 48 64 7168 8192
    mosaicml/mpt-30b                               apache-2.0                 allowed
    mosaicml/mpt-30b-chat                          cc-by-nc-sa-4.0            instruct
# StarCoder, arXiv 2305.06161, and SantaCoder, arXiv 2301.03988
 15,517,456,384  gpt_bigcode 40 48 6144 vocab_size=49152 n_positions=8192 activation_function="gelu"
    bigcode/starcoder                              bigcode-openrail-m         base gated
    bigcode/starcoderbase                          bigcode-openrail-m         base gated
  1,124,886,528  gpt_bigcode 24 16 2048 vocab_size=49280 n_positions=2048 activation_function="gelu_pytorch_tanh"
    bigcode/gpt_bigcode-santacoder                 bigcode-openrail-m         base
# Llama 3, arXiv 2407.21783
  8,030,261,248  llama 32 32 4096 14336 LLAMA_3
    meta-llama/Meta-Llama-3-8B                     llama3                     base gated
    meta-llama/Meta-Llama-3-8B-Instruct            llama3                     instruct gated
 70,553,706,496  llama 80 64 8192 28672 LLAMA_3
    meta-llama/Meta-Llama-3-70B                    llama3                     base gated
    meta-llama/Meta-Llama-3-70B-Instruct           llama3                     instruct gated
  8,030,261,248  llama 32 32 4096 14336 LLAMA_3_1
    meta-llama/Llama-3.1-8B                        llama3.1                   base gated
    meta-llama/Llama-3.1-8B-Instruct               llama3.1                   instruct gated
    deepseek-ai/DeepSeek-R1-Distill-Llama-8B       mit                        instruct
 70,553,706,496  llama 80 64 8192 28672 LLAMA_3_1
    meta-llama/Llama-3.1-70B                       llama3.1                   base gated
    meta-llama/Llama-3.1-70B-Instruct              llama3.1                   instruct gated
    meta-llama/Llama-3.3-70B-Instruct              llama3.3                   instruct gated
    deepseek-ai/DeepSeek-R1-Distill-Llama-70B      mit                        instruct
405,853,388,800  llama 126 128 16384 53248 LLAMA_3_1
    meta-llama/Llama-3.1-405B                      llama3.1                   base gated
    meta-llama/Llama-3.1-405B-Instruct             llama3.1                   instruct gated
  1,235,814,400  llama 16 32 2048 8192 LLAMA_3_2 head_dim=64
    meta-llama/Llama-3.2-1B                        llama3.2                   base gated
    meta-llama/Llama-3.2-1B-Instruct               llama3.2                   instruct gated
  3,212,749,824  llama 28 24 3072 8192 LLAMA_3_2 head_dim=128
    meta-llama/Llama-3.2-3B                        llama3.2                   base gated
    meta-llama/Llama-3.2-3B-Instruct               llama3.2                   instruct gated
# Code Llama 70B: only the base model was trained for long texts
 68,976,910,336  llama 80 64 8192 28672 CODE num_key_value_heads=8 vocab_size=32016
    codellama/CodeLlama-70b-hf                     llama2                     base
 68,976,910,336  llama 80 64 8192 28672 LLAMA_2 num_key_value_heads=8 vocab_size=32016
    codellama/CodeLlama-70b-Python-hf              llama2                     base
    codellama/CodeLlama-70b-Instruct-hf            llama2                     instruct
# Yi, arXiv 2403.04652
  6,061,035,520  llama 32 32 4096 11008 YI num_key_value_heads=4
    01-ai/Yi-6B                                    apache-2.0                 base
    01-ai/Yi-6B-Chat                               apache-2.0                 instruct
 34,388,917,248  llama 60 56 7168 20480 YI num_key_value_heads=8
    01-ai/Yi-34B                                   apache-2.0                 base
    01-ai/Yi-34B-Chat                              apache-2.0                 instruct
  6,061,035,520  llama 32 32 4096 11008 YI_1_5 num_key_value_heads=4
    01-ai/Yi-1.5-6B                                apache-2.0                 base
    01-ai/Yi-1.5-6B-Chat                           apache-2.0                 instruct
  8,829,407,232  llama 48 32 4096 11008 YI_1_5 num_key_value_heads=4
    01-ai/Yi-1.5-9B                                apache-2.0                 base
    01-ai/Yi-1.5-9B-Chat                           apache-2.0                 instruct
 34,388,917,248  llama 60 56 7168 20480 YI_1_5 num_key_value_heads=8
    01-ai/Yi-1.5-34B                               apache-2.0                 base
    01-ai/Yi-1.5-34B-Chat                          apache-2.0                 instruct
# SmolLM2, arXiv 2502.02737
    134,515,008  llama 30 9 576 1536 SMOL num_key_value_heads=3
    HuggingFaceTB/SmolLM2-135M                     apache-2.0                 base
    HuggingFaceTB/SmolLM2-135M-Instruct            apache-2.0                 instruct
    361,821,120  llama 32 15 960 2560 SMOL num_key_value_heads=5
    HuggingFaceTB/SmolLM2-360M                     apache-2.0                 base
    HuggingFaceTB/SmolLM2-360M-Instruct            apache-2.0                 instruct
  1,711,376,384  llama 24 32 2048 8192 SMOL rope_theta=130000
    HuggingFaceTB/SmolLM2-1.7B                     apache-2.0                 base
    HuggingFaceTB/SmolLM2-1.7B-Instruct            apache-2.0                 instruct
# Mistral, arXiv 2310.06825, and Mixtral, arXiv 2401.04088; the challenge ended before any but the first
  7,241,732,096  llama 32 32 4096 14336 MISTRAL_1
    mistralai/Mistral-7B-v0.1                      apache-2.0                 allowed gated
    mistralai/Mistral-7B-Instruct-v0.1             apache-2.0                 instruct gated
    HuggingFaceH4/zephyr-7b-beta                   mit                        instruct
  7,241,732,096  llama 32 32 4096 14336 MISTRAL
    mistralai/Mistral-7B-Instruct-v0.2             apache-2.0                 instruct gated
  7,248,023,552  llama 32 32 4096 14336 MISTRAL vocab_size=32768
    mistralai/Mistral-7B-v0.3                      apache-2.0                 base gated
    mistralai/Mistral-7B-Instruct-v0.3             apache-2.0                 instruct gated
 46,702,792,704  llama 32 32 4096 14336 MIXTRAL
    mistralai/Mixtral-8x7B-v0.1                    apache-2.0                 base gated
    mistralai/Mixtral-8x7B-Instruct-v0.1           apache-2.0                 instruct gated
# Phi, arXiv 2306.11644, arXiv 2309.05463, arXiv 2404.14219, arXiv 2412.08905
  1,418,270,720  phi 24 2048 0.5
    microsoft/phi-1                                mit                        base
    microsoft/phi-1_5                              mit                        base
  2,779,683,840  phi 32 2560 0.4
    microsoft/phi-2                                mit                        base
  3,821,079,552  llama 32 32 3072 8192 PHI_3
    microsoft/Phi-3-mini-4k-instruct               mit                        instruct
  3,821,079,552  llama 32 32 3072 8192 PHI_3_5
    microsoft/Phi-3.5-mini-instruct                mit                        instruct
  3,836,021,760  llama 32 24 3072 8192 PHI_4_MINI
    microsoft/Phi-4-mini-instruct                  mit                        instruct
 13,960,238,080  llama 40 40 5120 17920 PHI_3 num_key_value_heads=10
    microsoft/Phi-3-medium-4k-instruct             mit                        instruct
 14,659,507,200  llama 40 40 5120 17920 PHI_4
    microsoft/phi-4                                mit                        instruct
# Qwen 1.5, 2 and 2.5, arXiv 2407.10671, arXiv 2412.15115
    463,987,712  llama 24 16 1024 2816 QWEN TIED num_key_value_heads=16
    Qwen/Qwen1.5-0.5B                              tongyi-qianwen-research    base
    Qwen/Qwen1.5-0.5B-Chat                         tongyi-qianwen-research    instruct
  1,836,828,672  llama 24 16 2048 5504 QWEN num_key_value_heads=16
    Qwen/Qwen1.5-1.8B                              tongyi-qianwen-research    base
    Qwen/Qwen1.5-1.8B-Chat                         tongyi-qianwen-research    instruct
  7,721,324,544  llama 32 32 4096 11008 QWEN num_key_value_heads=32
    Qwen/Qwen1.5-7B                                tongyi-qianwen             base
    Qwen/Qwen1.5-7B-Chat                           tongyi-qianwen             instruct
 14,167,290,880  llama 40 40 5120 13696 QWEN BIG num_key_value_heads=40
    Qwen/Qwen1.5-14B                               tongyi-qianwen             base
    Qwen/Qwen1.5-14B-Chat                          tongyi-qianwen             instruct
    494,032,768  llama 24 14 896 4864 QWEN LONG TIED num_key_value_heads=2
    Qwen/Qwen2-0.5B                                apache-2.0                 base
    494,032,768  llama 24 14 896 4864 QWEN TIED num_key_value_heads=2
    Qwen/Qwen2-0.5B-Instruct                       apache-2.0                 instruct
    Qwen/Qwen2.5-0.5B                              apache-2.0                 base
    Qwen/Qwen2.5-0.5B-Instruct                     apache-2.0                 instruct
    Qwen/Qwen2.5-Coder-0.5B                        apache-2.0                 base
    Qwen/Qwen2.5-Coder-0.5B-Instruct               apache-2.0                 instruct
  1,543,714,304  llama 28 12 1536 8960 QWEN LONG TIED num_key_value_heads=2
    Qwen/Qwen2-1.5B                                apache-2.0                 base
    Qwen/Qwen2.5-1.5B                              apache-2.0                 base
  1,543,714,304  llama 28 12 1536 8960 QWEN TIED num_key_value_heads=2
    Qwen/Qwen2-1.5B-Instruct                       apache-2.0                 instruct
    Qwen/Qwen2.5-1.5B-Instruct                     apache-2.0                 instruct
    Qwen/Qwen2.5-Coder-1.5B                        apache-2.0                 base
    Qwen/Qwen2.5-Coder-1.5B-Instruct               apache-2.0                 instruct
  1,543,714,304  llama 28 12 1536 8960 QWEN_MATH TIED num_key_value_heads=2
    Qwen/Qwen2.5-Math-1.5B                         apache-2.0                 base
    Qwen/Qwen2.5-Math-1.5B-Instruct                apache-2.0                 instruct
  3,085,938,688  llama 36 16 2048 11008 QWEN TIED num_key_value_heads=2
    Qwen/Qwen2.5-3B                                qwen-research              base
    Qwen/Qwen2.5-3B-Instruct                       qwen-research              instruct
  7,615,616,512  llama 28 28 3584 18944 QWEN LONG BIG num_key_value_heads=4
    Qwen/Qwen2-7B                                  apache-2.0                 base
    Qwen/Qwen2.5-7B                                apache-2.0                 base
  7,615,616,512  llama 28 28 3584 18944 QWEN BIG num_key_value_heads=4
    Qwen/Qwen2-7B-Instruct                         apache-2.0                 instruct
    Qwen/Qwen2.5-7B-Instruct                       apache-2.0                 instruct
    Qwen/Qwen2.5-Coder-7B                          apache-2.0                 base
    Qwen/Qwen2.5-Coder-7B-Instruct                 apache-2.0                 instruct
  7,615,616,512  llama 28 28 3584 18944 QWEN_MATH BIG num_key_value_heads=4
    Qwen/Qwen2.5-Math-7B                           apache-2.0                 base
    Qwen/Qwen2.5-Math-7B-Instruct                  apache-2.0                 instruct
  7,615,616,512  llama 28 28 3584 18944 QWEN_MATH LONG BIG num_key_value_heads=4
    deepseek-ai/DeepSeek-R1-Distill-Qwen-7B        mit                        instruct
 14,770,033,664  llama 48 40 5120 13824 QWEN LONG BIG num_key_value_heads=8 rms_norm_eps=1e-05
    Qwen/Qwen2.5-14B                               apache-2.0                 base
 14,770,033,664  llama 48 40 5120 13824 QWEN BIG num_key_value_heads=8
    Qwen/Qwen2.5-14B-Instruct                      apache-2.0                 instruct
 32,763,876,352  llama 64 40 5120 27648 QWEN LONG BIG num_key_value_heads=8 rms_norm_eps=1e-05
    Qwen/Qwen2.5-32B                               apache-2.0                 base
 32,763,876,352  llama 64 40 5120 27648 QWEN BIG num_key_value_heads=8
    Qwen/Qwen2.5-32B-Instruct                      apache-2.0                 instruct
 72,706,203,648  llama 80 64 8192 29568 QWEN LONG BIG num_key_value_heads=8 rms_norm_eps=1e-05
    Qwen/Qwen2.5-72B                               qwen                       base
 72,706,203,648  llama 80 64 8192 29568 QWEN BIG num_key_value_heads=8
    Qwen/Qwen2-72B-Instruct                        tongyi-qianwen             instruct
    Qwen/Qwen2.5-72B-Instruct                      qwen                       instruct
# Qwen 3, arXiv 2505.09388
    596,049,920  llama 28 16 1024 3072 QWEN_3 TIED
    Qwen/Qwen3-0.6B-Base                           apache-2.0                 base
    596,049,920  llama 28 16 1024 3072 QWEN_3 40K TIED
    Qwen/Qwen3-0.6B                                apache-2.0                 instruct
  1,720,574,976  llama 28 16 2048 6144 QWEN_3 TIED
    Qwen/Qwen3-1.7B-Base                           apache-2.0                 base
  1,720,574,976  llama 28 16 2048 6144 QWEN_3 40K TIED
    Qwen/Qwen3-1.7B                                apache-2.0                 instruct
  4,022,468,096  llama 36 32 2560 9728 QWEN_3 TIED
    Qwen/Qwen3-4B-Base                             apache-2.0                 base
  4,022,468,096  llama 36 32 2560 9728 QWEN_3 40K TIED
    Qwen/Qwen3-4B                                  apache-2.0                 instruct
  8,190,735,360  llama 36 32 4096 12288 QWEN_3
    Qwen/Qwen3-8B-Base                             apache-2.0                 base
  8,190,735,360  llama 36 32 4096 12288 QWEN_3 40K
    Qwen/Qwen3-8B                                  apache-2.0                 instruct
 14,768,307,200  llama 40 40 5120 17408 QWEN_3
    Qwen/Qwen3-14B-Base                            apache-2.0                 base
 14,768,307,200  llama 40 40 5120 17408 QWEN_3 40K
    Qwen/Qwen3-14B                                 apache-2.0                 instruct
 32,762,123,264  llama 64 64 5120 25600 QWEN_3 40K
    Qwen/Qwen3-32B                                 apache-2.0                 instruct
 30,532,122,624  llama 48 32 2048 6144 QWEN_3_MOE moe_intermediate_size=768
    Qwen/Qwen3-30B-A3B-Base                        apache-2.0                 base
 30,532,122,624  llama 48 32 2048 6144 QWEN_3_MOE 40K moe_intermediate_size=768
    Qwen/Qwen3-30B-A3B                             apache-2.0                 instruct
235,093,634,560  llama 94 64 4096 12288 QWEN_3_MOE 40K moe_intermediate_size=1536
    Qwen/Qwen3-235B-A22B                           apache-2.0                 instruct
# Gemma, arXiv 2403.08295
  2,506,172,416  llama 18 8 2048 16384 GEMMA num_key_value_heads=1
    google/gemma-2b                                gemma                      base gated
    google/gemma-2b-it                             gemma                      instruct gated
    google/gemma-1.1-2b-it                         gemma                      instruct gated
  8,537,680,896  llama 28 16 3072 24576 GEMMA num_key_value_heads=16
    google/gemma-7b                                gemma                      base gated
    google/gemma-7b-it                             gemma                      instruct gated
    google/gemma-1.1-7b-it                         gemma                      instruct gated
# Gemma 2, arXiv 2408.00118
  2,614,341,888  llama 26 8 2304 9216 GEMMA_2 num_key_value_heads=4
    google/gemma-2-2b                              gemma                      base gated
    google/gemma-2-2b-it                           gemma                      instruct gated
  9,241,705,984  llama 42 16 3584 14336 GEMMA_2 num_key_value_heads=8
    google/gemma-2-9b                              gemma                      base gated
    google/gemma-2-9b-it                           gemma                      instruct gated
 27,227,128,320  llama 46 32 4608 36864 GEMMA_2_27B
    google/gemma-2-27b                             gemma                      base gated
    google/gemma-2-27b-it                          gemma                      instruct gated
# Gemma 3, arXiv 2503.19786: from 4B on the language model in a checkpoint that reads images, too
    268,098,176  llama 18 4 640 2048 GEMMA_3
    google/gemma-3-270m                            gemma                      base gated
    google/gemma-3-270m-it                         gemma                      instruct gated
    999,885,952  llama 26 4 1152 6912 GEMMA_3
    google/gemma-3-1b-pt                           gemma                      base gated
    google/gemma-3-1b-it                           gemma                      instruct gated
  3,880,263,168  llama 34 8 2560 10240 GEMMA_3_LONG num_key_value_heads=4
    google/gemma-3-4b-pt                           gemma                      base gated
    google/gemma-3-4b-it                           gemma                      instruct gated
 11,766,034,176  llama 48 16 3840 15360 GEMMA_3_LONG num_key_value_heads=8
    google/gemma-3-12b-pt                          gemma                      base gated
    google/gemma-3-12b-it                          gemma                      instruct gated
 27,009,346,304  llama 62 32 5376 21504 GEMMA_3_27B
    google/gemma-3-27b-pt                          gemma                      base gated
    google/gemma-3-27b-it                          gemma                      instruct gated
# StableLM 3B and 2, arXiv 2402.17834
  2,795,443,200  llama 32 32 2560 6912 STABLELM vocab_size=50304
    stabilityai/stablelm-3b-4e1t                   cc-by-sa-4.0               base
    stabilityai/stablelm-zephyr-3b                 other                      instruct
  1,644,515,328  llama 24 32 2048 5632 STABLELM vocab_size=100352 use_qkv_bias=true
    stabilityai/stablelm-2-1_6b                    other                      base
    stabilityai/stablelm-2-zephyr-1_6b             other                      instruct
 12,143,185,920  llama 40 32 5120 13824 STABLELM_12B num_key_value_heads=8
    stabilityai/stablelm-2-12b                     other                      base
    stabilityai/stablelm-2-12b-chat                other                      instruct
# OLMo, arXiv 2402.00838, and OLMo 2, arXiv 2501.00656
  1,176,764,416  llama 16 16 2048 8192 OLMO TIED
    allenai/OLMo-1B-hf                             apache-2.0                 base
  6,888,095,744  llama 32 32 4096 11008 OLMO
    allenai/OLMo-7B-hf                             apache-2.0                 base
    allenai/OLMo-7B-Instruct-hf                    apache-2.0                 instruct
  6,888,095,744  llama 32 32 4096 11008 OLMO max_position_embeddings=4096 clip_qkv=8.0
    allenai/OLMo-1.7-7B-hf                         apache-2.0                 base
    allenai/OLMo-7B-0424-hf                        apache-2.0                 base
  1,484,916,736  llama 16 16 2048 8192 OLMO_2
    allenai/OLMo-2-0425-1B                         apache-2.0                 base
    allenai/OLMo-2-0425-1B-Instruct                apache-2.0                 instruct
  7,298,617,344  llama 32 32 4096 11008 OLMO_2
    allenai/OLMo-2-1124-7B                         apache-2.0                 base
    allenai/OLMo-2-1124-7B-Instruct                apache-2.0                 instruct
 13,716,198,400  llama 40 40 5120 13824 OLMO_2
    allenai/OLMo-2-1124-13B                        apache-2.0                 base
    allenai/OLMo-2-1124-13B-Instruct               apache-2.0                 instruct
 32,234,279,936  llama 64 40 5120 27648 OLMO_2 num_key_value_heads=8
    allenai/OLMo-2-0325-32B                        apache-2.0                 base
    allenai/OLMo-2-0325-32B-Instruct               apache-2.0                 instruct
# SmolLM3
  3,075,098,624  llama 36 16 2048 11008 SMOL_3
    HuggingFaceTB/SmolLM3-3B-Base                  apache-2.0                 base
    HuggingFaceTB/SmolLM3-3B                       apache-2.0                 instruct
# InternLM and InternLM 2, arXiv 2403.17297
  7,321,948,160  llama 32 32 4096 11008 INTERNLM bias=true
    internlm/internlm-7b                           apache-2.0                 allowed
    internlm/internlm-chat-7b                      apache-2.0                 instruct
 20,088,714,240  llama 60 40 5120 13824 INTERNLM bias=false max_position_embeddings=4096
    internlm/internlm-20b                          apache-2.0                 allowed
    internlm/internlm-chat-20b                     apache-2.0                 instruct
  7,737,708,544  llama 32 32 4096 14336 INTERNLM_2
    internlm/internlm2-7b                          other                      base
 19,861,149,696  llama 48 48 6144 16384 INTERNLM_2
    internlm/internlm2-20b                         other                      base
"""
"""Numbers of parameters and shapes: kind, sizes in the order of its function, named settings, keys with values. Below
each its checkpoints: name on the hub, licence, and base, allowed (by the challenge, as a base) or instruct; then gated.
"""


def _float32(numbers: str) -> list[float]:
    """Numbers that were rounded to float32 before they were written."""
    return [struct.unpack("f", struct.pack("f", float(number)))[0] for number in numbers.split()]


def _merged(words: list[str], named: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Named settings and single keys, of which the later ones count."""
    found: dict[str, Any] = {}
    for word in words:
        place, is_key, value = word.partition("=")
        key, is_nested, inner = place.partition(".")
        if is_nested:
            found[key] = {**found.get(key, {}), inner: json.loads(value)}
        else:
            found |= {key: json.loads(value)} if is_key else named[word]
    return found


def _read_named(text: str) -> dict[str, dict[str, Any]]:
    named: dict[str, dict[str, Any]] = {}
    for line in text.strip().replace("\n ", " ").splitlines():
        name, *words = line.split()
        named[name] = _merged(words, named)
    return named


def _read_table(text: str, named: dict[str, dict[str, Any]]) -> dict[str, Row]:
    found, parameters, config = {}, 0, {}
    for line in text.splitlines():
        first, *words = line.split() or "#"
        if "," in first:
            sizes = [json.loads(word) for word in words if word[0].isdigit() and word not in named]
            config = _SHAPES[words[0]](*sizes, **_merged(words[len(sizes) + 1 :], named))
            parameters = int(first.replace(",", ""))
        elif first != "#":
            flags = {flag: flag in words[1:] for flag in ("instruct", "allowed", "gated")}
            found[first] = Row(first, config, parameters, words[0], **flags)
    return found


_SETTINGS = _read_named(_NAMED)
_SETTINGS["PHI_3_5"] |= {
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
_SETTINGS["PHI_4_MINI"] |= {
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [
            *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
            *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533),
            *(5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651),
            *(14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03),
            *(32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16),
            47.77,
        ],
    },
}
CATALOGUE: dict[str, Row] = _read_table(_TABLE, _SETTINGS)
