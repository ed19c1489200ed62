"""AdamW over what a method trains, with float32 copies of weights that are kept in 16 bits."""

import inspect
from typing import Any

import torch
from torch import nn

from lit_gpt.methods import Method
from lit_gpt.model import GPT
from lit_gpt.quantize import bitsandbytes
from lit_gpt.ranks import divided

EIGHT_BIT = {"adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}
"""The setting -> bitsandbytes' class."""


class AdamW(torch.optim.AdamW):
    """PyTorch's, without what its methods tell a compiler: that brings in `torch._dynamo`, 0.07 GB and 0.9 s."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)


def build(model: GPT, method: Method, kind: str, rate: float, decay: float, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of a run.

    A weight in 16 bits gets a float32 copy, which is what the optimizer holds (see `Masters`): most updates are too
    small for 16 bits.

    Args:
        kind: "adamw" or one of `EIGHT_BIT`, which keep their moments in 8 bits (arXiv 2110.02861), in pages that a GPU
            can lend to the host, if it is to be so.
        rate: learning rate; a group's "scale" is its multiple of it.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    masters = Masters()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(method.rate(name), []).append(masters.of(parameter))
    shaped = [{"params": params, "scale": scale} for scale, params in groups.items()]
    if kind == "adamw":
        optimizer = AdamW(shaped, lr=rate, weight_decay=decay, fused=fused)
    else:
        optimizer = getattr(bitsandbytes().optim, EIGHT_BIT[kind])(shaped, lr=rate, weight_decay=decay)
    masters.serve(optimizer)
    return optimizer


class Masters:
    """Float32 copies of 16-bit weights: gradients are added up in them, and their values are rounded into the weights.

    A gradient goes into the copy as soon as it is complete, so that no 16-bit sums are formed over batches. The copies
    are saved with the optimizer's state, as what an update leaves behind the rounding must not be lost.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []

    def of(self, weight: nn.Parameter) -> nn.Parameter:
        """The weight itself if it is float32, otherwise a float32 copy that receives its gradients."""
        if weight.dtype not in (torch.bfloat16, torch.float16):
            return weight
        master = nn.Parameter(weight.detach().float())

        def take(weight: nn.Parameter) -> None:
            wide = weight.grad.float()
            master.grad = wide if master.grad is None else master.grad.add_(wide)
            weight.grad = None

        weight.register_post_accumulate_grad_hook(take)
        self._pairs.append((weight, master))
        return master

    def serve(self, optimizer: torch.optim.Optimizer) -> None:
        """Rounds the copies into the weights after every step, and keeps them in the optimizer's saved state."""
        if not self._pairs:
            return
        optimizer.register_step_post_hook(lambda *_: self._round())
        optimizer.register_state_dict_post_hook(self._add)
        optimizer.register_load_state_dict_pre_hook(self._take)

    @torch.no_grad()
    def _round(self) -> None:
        for weight, master in self._pairs:
            weight.copy_(master)

    def _add(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state["masters"] = [master.detach() for _, master in self._pairs]

    @torch.no_grad()
    def _take(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        for (_, master), saved in zip(self._pairs, state["masters"], strict=True):
            master.copy_(divided(saved, master))
        return {key: value for key, value in state.items() if key != "masters"}
