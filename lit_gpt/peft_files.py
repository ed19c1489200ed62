"""Adapters of PEFT, read as if our own finetuning had written them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from lit_gpt.config import Config
from lit_gpt.files import read_json
from lit_gpt.hf_weights import stored_names
from lit_gpt.methods import SWITCHES, LoRA, describe
from lit_gpt.model import GPT, meta_gpt
from lit_gpt.settings import UserError

DORA = "lora_magnitude_vector"
"""PEFT's name of the trained lengths."""


PROMPT_STYLE = "prompt_style.json"
"""Beside an adapter that we wrote for PEFT: its prompt style."""


def is_peft(path: Path) -> bool:
    """Whether this is the folder of an adapter for PEFT, and not of a run of ours."""
    return (path / "adapter_config.json").is_file() and not any(path.glob("lit_model_*_finetuned.pth"))


def read_peft(folder: Path, config: Config) -> dict[str, Any]:
    """A LoRA adapter of PEFT as `checkpoint.read_finetuned` gives ours.

    A layer of the original that is several of ours gives its A to each of them, and to each its part of B.

    Raises:
        UserError: a file is missing or damaged, the adapter is of another kind or for another model.
    """
    settings, state = read_json(folder / "adapter_config.json"), _state(folder)
    _check(settings, folder)
    names, model, updates = stored_names(config), meta_gpt(config), {}
    for module, (A, B, scale, magnitude) in _pairs(state, settings, folder).items():
        if f"{module}.weight" not in names:
            raise UserError(f"{folder}: it adapts {module}, which the model has not; is it for another model?")
        here = names[f"{module}.weight"]
        here = replace(here, how="rows") if here.how == "turned" else here
        sizes = [model.get_parameter(name).shape[0] for name in here.names]
        if sum(sizes) != len(B) or model.get_parameter(here.names[0]).shape[1] != A.shape[1]:
            raise UserError(f"{folder}: {module} is of another size than the model's; is it for another model?")
        parts = here.take_apart(B, sizes, config)
        lengths = here.take_apart(magnitude[:, None], sizes, config) if magnitude is not None else [None] * len(sizes)
        for name, part, length in zip(here.names, parts, lengths, strict=True):
            lengths_of_rows = None if length is None else length[:, 0].clone()
            updates[name.removesuffix(".weight")] = Update(A, part, scale, lengths_of_rows)
    kind = {"lora_rslora": bool(settings.get("use_rslora")), "lora_dora": bool(settings.get("use_dora"))}
    return as_ours(updates, model, folder, **kind)


class Update(NamedTuple):
    """What LoRA adds to a layer of ours, scale B A; in float32."""

    A: Tensor
    """(r, in)"""
    B: Tensor
    """(out, r)"""
    scale: float
    lengths: Tensor | None = None
    """(out,), DoRA's lengths of rows."""


def as_ours(
    updates: dict[str, Update], model: GPT, place: Path, lora_rslora: bool = False, lora_dora: bool = False
) -> dict[str, Any]:
    """Updates of the layers of `model`, which is on the meta device, as `checkpoint.read_finetuned` gives ours.

    Where ranks or scales differ from layer to layer, A and B get rows and columns of zeros, and B is multiplied by the
    scale.

    Raises:
        UserError: a layer's update is missing that cannot be replaced by one of zeros.
    """
    ranks, scales = {len(update.A) for update in updates.values()}, {update.scale for update in updates.values()}
    rank = max(ranks)
    alpha = max(scales) * (rank**0.5 if lora_rslora else rank)
    alike = len(ranks) == len(scales) == 1 and alpha == int(alpha)
    weights = {}
    for layer, (A, B, scale, lengths) in updates.items():
        weights[f"{layer}.lora_A"] = nn.functional.pad(A, (0, 0, 0, rank - len(A)))
        weights[f"{layer}.lora_B"] = nn.functional.pad(B if alike else B * scale, (0, rank - len(A)))
        if lengths is not None:
            weights[f"{layer}.lora_magnitude"] = lengths
    switches = dict.fromkeys(SWITCHES.values(), False)
    switches |= {switch: True for end, switch in SWITCHES.items() if any(f"{end}.lora_A" in name for name in weights)}
    size = {"lora_r": rank, "lora_alpha": int(alpha) if alike else rank, "lora_rslora": lora_rslora and alike}
    method = LoRA(**size, **switches, lora_dora=lora_dora)
    _fill(weights, method, model, place)
    return {"method": describe(method), "weights": weights, "prompt_style": "plain", "base": None, "quantize": None}


def _check(settings: Any, folder: Path) -> None:
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise UserError(f"{folder}/adapter_config.json: peft_type {kind} is not supported; LORA is")
    for key in ("modules_to_save", "target_parameters", "trainable_token_indices", "megatron_config", "lora_bias"):
        if settings.get(key):
            raise UserError(f"{folder}/adapter_config.json: {key} is not supported")
    if settings.get("bias", "none") != "none":
        raise UserError(f"{folder}/adapter_config.json: bias {settings['bias']} is not supported; none is")


def _state(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    try:
        if path.is_file():
            return safetensors.torch.load_file(path)
        path = folder / "adapter_model.bin"
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"no adapter_model.safetensors or adapter_model.bin in {folder}") from error
    except Exception as error:  # whatever a reader says of a damaged or hostile file
        raise UserError(f"{path} is damaged or holds more than tensors and was not read; get it again") from error


def _pairs(state: dict[str, Tensor], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Module -> A (r, in), B (out, r), scale, and DoRA's lengths of rows, all in float32."""
    pairs: dict[str, Any] = {}
    left = dict(state)
    for name in [name for name in state if name.endswith(".lora_A.weight")]:
        stem = name.removesuffix(".lora_A.weight")
        module = stem.removeprefix("base_model.model.")
        A, B, magnitude = (left.pop(f"{stem}.{key}", None) for key in ("lora_A.weight", "lora_B.weight", DORA))
        if B is None or A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise UserError(f"{folder}: A and B of {module} do not fit together")
        alpha = _of(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
        scale = alpha / (len(A) ** 0.5 if settings.get("use_rslora") else len(A))
        pairs[module] = (A.float(), B.float(), scale, None if magnitude is None else magnitude.float().flatten())
    if left or not pairs:
        raise UserError(f"{folder}: {next(iter(left), 'no tensor')} is none that LoRA has; is it an adapter of PEFT?")
    return pairs


def _of(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """The value of the first key that is the end of the module's name, as PEFT's patterns have it."""
    return next((value for key, value in (pattern or {}).items() if f".{module}".endswith(f".{key}")), default)


def _fill(weights: dict[str, Tensor], method: LoRA, model: Any, folder: Path) -> None:
    """Gives the layers that the method adapts and PEFT's adapter does not an update of zero."""
    method.attach(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in weights:
            if method.lora_dora:
                raise UserError(f"{folder}: DoRA on some layers of a kind only is not supported; {name} is missing")
            weights[name] = torch.zeros(parameter.shape)
