"""Well-known checkpoints of the Hugging Face hub: one row each, so that sizes and licences are known offline.

The numbers are those of each repository's `config.json`. What the NeurIPS 2023 LLM Efficiency Challenge allows is its
list of 2023-10-07: base models of certain families.
"""

import difflib
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


def _pythia(size: str) -> tuple[str, str]:
    """Pythia was trained twice, on the Pile and on the Pile without its duplicates."""
    return f"EleutherAI/pythia-{size} apache-2.0 allowed", f"EleutherAI/pythia-{size}-deduped apache-2.0 allowed"


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
_GROUPED: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 8}

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
}
"""All rows, by `repo_id`."""
