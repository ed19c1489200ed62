"""LLaMA-Adapter V2 (arXiv 2304.15010): V1, a scale and a bias for every output of every linear layer, and the norms."""

import torch
from torch import Tensor, nn

from lit_gpt.methods import AdapterV2
from lit_gpt.methods.adapter import attach as attach_v1
from lit_gpt.model import GPT


class ScaledLinear(nn.Module):
    """scale * (base(x) + bias), both trained, in the place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.in_features, self.out_features = base, base.in_features, base.out_features
        where = {"device": base.weight.device, "dtype": torch.float32}
        self.adapter_scale = nn.Parameter(torch.ones(base.out_features, **where))
        self.adapter_bias = nn.Parameter(torch.zeros(base.out_features, **where))

    @property
    def weight(self) -> Tensor:
        """The base's."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.base(x)
        more, bias = (self.adapter_scale - 1).to(y.dtype), self.adapter_bias.to(y.dtype)
        return y + torch.addcmul(bias, y + bias, more)  # rounded once: 1.001 times a 16-bit number is that number


def attach(model: GPT, settings: AdapterV2) -> None:
    """Attaches V1, wraps all linear layers, and frees the norms. The outputs stay exactly the same."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, ScaledLinear(module))
    attach_v1(model, settings)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(("adapter_scale", "adapter_bias")):
            parameter.requires_grad_(True)
