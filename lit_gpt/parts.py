"""A network part by part (embedding, blocks, norm, head): a part has its weights only while it is at work.

So a model of any size is merged, or run over a few tokens, in the memory of its largest part.

In a method's layer, the plain layer in whose place it stands is called `base`, and `merged()` gives a plain one with
what was trained folded in.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.checkpoint import default_device, open_weights
from lit_gpt.model import GPT
from lit_gpt.quantize import quantized

Weights = Callable[[], dict[str, Tensor]]
"""Gives all weights by name, without reading them. Files are opened anew at every call: a memory map that is let go
gives back what was read through it."""


def weights_of(folder: Path, model: GPT, trained: dict[str, Tensor] | None = None) -> Weights:
    """The weights in a checkpoint's folder that `model` is to have, and what was trained on them."""

    def weights() -> dict[str, Tensor]:
        state = {**open_weights(folder), **(trained or {})}
        if model.config.tie_embeddings:
            state.setdefault("lm_head.weight", state.get("wte.weight"))
        return state

    return weights


def parts(model: GPT) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model, in order, by name."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{index}", part) for index, part in child.named_children())
        else:
            yield name, child


def filled(part: nn.Module, name: str, weights: Weights) -> nn.Module:
    """A copy, with its weights, of a part that is on the meta device."""
    part, state = copy.deepcopy(part), weights()
    own = {key: state[f"{name}.{key}".replace(".base.", ".")] for key in part.state_dict()}
    part.load_state_dict(own, assign=True)
    return part


@torch.no_grad()
def merged(model: GPT, weights: Weights, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights of a model's plain layers, with what was trained folded in, one after the other.

    Args:
        model: on the meta device, with a method attached.
        names: those of the merged model's weights.
    """
    for name, part in parts(model):
        part = filled(part, name, weights)
        own = (full for full in names if full.startswith(f"{name}."))
        for place, group in groupby(own, key=lambda full: full.rpartition(".")[0]):
            layer: Any = part.get_submodule(place[len(name) + 1 :])
            if hasattr(layer, "merged"):
                layer = layer.merged()
            for full in group:
                yield full, getattr(layer, full.rpartition(".")[2])


@torch.no_grad()
def logits(model: GPT, weights: Weights, ids: list[int], quantize: str | None = None) -> Tensor:
    """What `load_gpt` in float32 would compute for these tokens: the logits (T, V), on the CPU.

    Args:
        model: on the meta device, with or without a method attached.
        quantize: see `load_gpt`.
    """
    device, model = default_device(), copy.deepcopy(model)

    def make(part: nn.Module, name: str) -> nn.Module:
        part = filled(part, name, weights).float()
        for place, layer in list(part.named_modules()):
            if quantize and name.startswith("blocks.") and isinstance(layer, nn.Linear):
                part.set_submodule(place, quantized(layer.weight, layer.bias, quantize, torch.float32, device))
        return part.to(device).eval()

    for name, part in list(parts(model)):
        model.set_submodule(name, _OnDemand(partial(make, part, name)))
    return model(torch.tensor([ids], device=device))[0].cpu()


class _OnDemand(nn.Module):
    """Stands for a part that comes into being when it is called, and is gone afterwards."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make

    def forward(self, *args: Any) -> Any:
        return self.make()(*args)
