"""Checkpoints of litgpt (Lightning AI), from Lit-GPT of 2023 to litgpt 0.5: one set of names for all its models.

The model is described by `model_config.yaml`, in 2023 by a `lit_config.json` that has other keys than ours. Queries,
keys and values are one tensor: `attn.qkv` block by block, up to litgpt 0.5.4 `attn.attn` group by group. Facts from
litgpt's own code: its `config.py` and `model.py`.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.families import grouped, rows
from lit_gpt.files import read_json
from lit_gpt.settings import UserError

MODEL_TYPES = ()

LORA = "lit_model.pth.lora"
"""File of the weights that `litgpt finetune_lora` trains."""

_KINDS = ("weight", "bias")

WEIGHTS = {
    "transformer.wte.weight": "wte.weight",
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (
            ("lm_head", "lm_head"),
            ("transformer.ln_f", "norm"),
            ("transformer.h.{}.norm_1", "blocks.{}.norm_1"),
            ("transformer.h.{}.norm_2", "blocks.{}.norm_2"),
            ("transformer.h.{}.post_attention_norm", "blocks.{}.post_1"),
            ("transformer.h.{}.post_mlp_norm", "blocks.{}.post_2"),
            ("transformer.h.{}.attn.norm_q", "blocks.{}.attn.q_norm"),
            ("transformer.h.{}.attn.norm_k", "blocks.{}.attn.k_norm"),
            ("transformer.h.{}.attn.proj", "blocks.{}.attn.o"),
            ("transformer.h.{}.mlp.fc", "blocks.{}.mlp.up"),
            ("transformer.h.{}.mlp.fc_1", "blocks.{}.mlp.gate"),
            ("transformer.h.{}.mlp.fc_2", "blocks.{}.mlp.up"),
            ("transformer.h.{}.mlp.proj", "blocks.{}.mlp.down"),
            ("transformer.h.{}.mlp.gate", "blocks.{}.mlp.router"),
            ("transformer.h.{}.mlp.experts.[].fc_1", "blocks.{}.mlp.experts.[].gate"),
            ("transformer.h.{}.mlp.experts.[].fc_2", "blocks.{}.mlp.experts.[].up"),
            ("transformer.h.{}.mlp.experts.[].proj", "blocks.{}.mlp.experts.[].down"),
        )
        for kind in _KINDS
    },
    **{
        f"transformer.h.{{}}.attn.{theirs}.{kind}": how(*(f"blocks.{{}}.attn.{part}.{kind}" for part in "qkv"))
        for theirs, how in (("qkv", rows), ("attn", grouped))
        for kind in _KINDS
    },
}

IGNORED = ()

_ONLY: dict[str, tuple[Any, ...]] = {
    "latent_attention": (None,),
    "rope_interleave": (False,),
    "n_expert_groups": (None,),
    "n_shared_expert": (None, 0),
    "first_k_dense_replace": (None, 0),
    "routed_scaling_factor": (1, None),
}
"""Key -> the values that ours can express: the others are DeepSeek V3's."""
_MLPS = {"GptNeoxMLP": "plain", "LLaMAMLP": "gated", "GemmaMLP": "gated", "LLaMAMoE": "gated"}
_NORMS = {"LayerNorm": "layer", "RMSNorm": "rms"}
_QK_NORMS = {"default": "head", "olmo2": "all"}
_GELUS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")


def is_litgpt(folder: Path) -> bool:
    """Whether this is the folder of a checkpoint of litgpt that was not converted to ours."""
    if (folder / "lit_config.json").exists():
        try:
            found = read_json(folder / "lit_config.json")
        except UserError:  # whoever needs what it says will complain
            return False
        return isinstance(found, dict) and "family" not in found and "n_layer" in found
    return (folder / "model_config.yaml").exists() and (folder / "lit_model.pth").exists()


def description(folder: Path) -> Path:
    """The file that describes the model."""
    return next(
        (folder / name for name in ("model_config.yaml", "lit_config.json") if (folder / name).exists()),
        folder / "model_config.yaml",
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML (or JSON) file.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    if path.suffix == ".json":
        found = read_json(path)
    else:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            raise UserError(f"{path}{'' if line is None else f':{line + 1}'}: not YAML that can be read") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected keys and values")
    return found


def fields(litgpt: dict[str, Any]) -> dict[str, Any]:
    """The description of a model of litgpt -> fields of `Config`.

    As in litgpt's own code, the name decides about two things: the norms of Gemma, and OLMo's, which has no weights.

    Raises:
        UserError: the model has parts that ours cannot express.
    """
    for key, values in _ONLY.items():
        if litgpt.get(key, values[0]) not in values:
            raise UserError(f"{key} {json.dumps(litgpt[key], default=str):.80} is not supported")
    name = str(litgpt.get("name") or (litgpt.get("hf_config") or {}).get("name") or "")
    mlp = _class(litgpt, "mlp", "GptNeoxMLP", _MLPS)
    norm = _NORMS[_class(litgpt, "norm", "LayerNorm", _NORMS)]
    if norm == "rms" and "Gemma" in name:
        norm = "rms+1"
    if norm == "layer" and "OLMo" in name:
        norm = "plain"
    gelu = litgpt.get("gelu_approximate", "none")
    if gelu not in _GELUS:
        raise UserError(f"gelu_approximate '{gelu}' is not supported; supported are {', '.join(_GELUS)}")
    bias, parallel = litgpt.get("bias", True), litgpt.get("parallel_residual", True)
    before, behind = (
        _both(litgpt, *names) for names in (("norm_1", "norm_2", True), ("post_attention_norm", "post_mlp_norm", False))
    )
    if parallel and behind:
        raise UserError("post_mlp_norm is not supported with parallel_residual")
    scalar = litgpt.get("attention_scores_scalar")
    width = litgpt.get("intermediate_size") or 4 * litgpt["n_embd"]
    experts = litgpt.get("n_expert", 0) if mlp == "LLaMAMoE" else 0
    return {
        "block_size": litgpt["block_size"],
        "padded_vocab_size": litgpt.get("padded_vocab_size") or _padded(litgpt),
        "n_layer": litgpt["n_layer"],
        "n_head": litgpt["n_head"],
        "n_embd": litgpt["n_embd"],
        "intermediate_size": (litgpt.get("moe_intermediate_size") or width) if experts else width,
        "head_size": litgpt.get("head_size"),
        "n_query_groups": litgpt.get("n_query_groups"),
        "norm": norm,
        "norm_eps": litgpt.get("norm_eps", 1e-5),
        "pre_norm": before,
        "post_norm": behind,
        "qk_norm": _QK_NORMS[litgpt.get("norm_qk_type", "default")] if litgpt.get("norm_qk") else None,
        "embed_scale": litgpt["n_embd"] ** 0.5 if litgpt.get("scale_embeddings") else None,
        "mlp": _MLPS[mlp],
        "activation": "silu" if mlp in ("LLaMAMLP", "LLaMAMoE") else _GELUS[gelu],
        "n_expert": experts,
        "n_expert_per_token": litgpt.get("n_expert_per_token", 0) if experts else 0,
        "parallel_residual": parallel,
        "shared_norm": litgpt.get("shared_attention_norm", False),
        "qkv_bias": bias or litgpt.get("attn_bias", False),
        "out_bias": bias,
        "mlp_bias": bias,
        "head_bias": litgpt.get("lm_head_bias", False),
        "attn_scale": scalar**-0.5 if scalar else None,
        "attn_softcap": litgpt.get("attention_logit_softcapping"),
        "logit_softcap": litgpt.get("final_logit_softcapping"),
        **_windows(litgpt),
        **_rope(litgpt),
    }


def _class(litgpt: dict[str, Any], what: str, default: str, known: dict[str, str]) -> str:
    """The name of a class, under its key of litgpt or of Lit-GPT 2023."""
    name = litgpt.get(f"{what}_class_name") or litgpt.get(f"_{what}_class") or default
    if name not in known:
        raise UserError(f"{what}_class_name '{name}' is not supported; supported are {', '.join(known)}")
    return name


def _both(litgpt: dict[str, Any], attention: str, mlp: str, default: bool) -> bool:
    """Whether norms stand in a place; of attention and MLP either both have one or none."""
    found = litgpt.get(attention, default), litgpt.get(mlp, default)
    if found[0] != found[1]:
        raise UserError(f"{attention} {found[0]} with {mlp} {found[1]} is not supported")
    return found[0]


def _padded(litgpt: dict[str, Any]) -> int:
    """The vocabulary filled up to the next multiple."""
    multiple = litgpt.get("padding_multiple", 512)
    return -(-litgpt["vocab_size"] // multiple) * multiple


def _windows(litgpt: dict[str, Any]) -> dict[str, Any]:
    """The fields about windows, up to 0.5.7 by `sliding_window_layer_placing`: 1 or "all", 2 or "interleaved"."""
    window, layers = litgpt.get("sliding_window_size"), litgpt["n_layer"]
    if window is None:
        return {}
    placing = litgpt.get("sliding_window_layer_placing")
    if placing not in (None, 1, 2, "all", "interleaved"):
        raise UserError(f"sliding_window_layer_placing {placing!r:.80} is not supported")
    every = 2 if placing in (2, "interleaved") else 1
    flags = litgpt.get("sliding_window_indices") or [layer % every == 0 for layer in range(layers)]
    return {"sliding_window": window, "windowed": [bool(flag) for flag in flags[:layers]]}


def _rope(litgpt: dict[str, Any]) -> dict[str, Any]:
    """The fields about rotary embeddings. Lit-GPT 2023 said `condense_ratio` at first."""
    condensed = litgpt.get("rope_condense_ratio") or litgpt.get("condense_ratio") or 1
    adjusted, local = litgpt.get("rope_adjustments") or {}, litgpt.get("rope_local_base_freq")
    scaling = {"factor": float(condensed)} if condensed != 1 else None
    if adjusted:
        if scaling or not set(adjusted) <= {*_LLAMA3, "original_max_seq_len"}:
            raise UserError(f"rope_adjustments {json.dumps(adjusted, default=str):.200} is not supported")
        scaling = {key: float(adjusted[key]) for key in (_LLAMA3 if len(adjusted) > 1 else ("factor",))}
        if len(adjusted) > 1:
            scaling["original_max_position_embeddings"] = float(adjusted["original_max_seq_len"])
    if local is not None:
        windowed = _windows(litgpt).get("windowed")
        chosen = [bool(flag) for flag in (litgpt.get("rope_indices") or [1] * litgpt["n_layer"])[: litgpt["n_layer"]]]
        if condensed != 1 or chosen != windowed:
            raise UserError("rope_local_base_freq is supported in the layers with a window, and in all of them, only")
    return {
        "rope_base": float(litgpt.get("rope_base", 10000)),
        "rope_local_base": None if local is None else float(local),
        "rope_percentage": litgpt.get("rotary_percentage", 0.25),
        "rope_scaling": scaling,
    }
