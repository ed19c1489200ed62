"""LoRA (arXiv 2106.09685) on any linear layer of the GPT, quantised or not."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.low_rank import Dropped, dora_add, draw_dropped, dropped, low_rank_add
from lit_gpt.methods import LoRA
from lit_gpt.model import GPT
from lit_gpt.quantize import dequantized, is_quantized


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank: base(x) + scale * B A dropout(x).

    A (r, in) starts like a linear layer's weight, B (out, r) starts at zero, so that the outputs start unchanged.
    Both are float32 whatever the base is: their updates are too small for half precision.

    Args:
        base: an `nn.Linear` or a subclass such as bitsandbytes' 4-bit layer.
    """

    def __init__(self, base: nn.Linear, settings: LoRA) -> None:
        super().__init__()
        self.base = base
        self.scale = settings.scale
        self.dropout = settings.lora_dropout
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(settings.lora_r, base.in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, settings.lora_r, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.base(x)
        dropout = self.dropout if self.training else 0.0
        add = traceable_add if torch.compiler.is_compiling() else low_rank_add
        return add(y, x, self.lora_A, self.lora_B, self.scale, dropout)

    def _finish(self, weight: Tensor) -> None:
        """What else is done with the updated weight, in place."""

    def merged(self) -> nn.Linear:
        """The base layer with the update folded into its weight, computed in float32 and rounded once."""
        weight = dequantized(self.base, torch.float32)
        weight = weight.clone() if weight is self.base.weight else weight
        weight.addmm_(self.lora_B, self.lora_A, alpha=self.scale)  # in place: a head's weight takes gigabytes
        self._finish(weight)
        dtype = self.base.compute_dtype if is_quantized(self.base) else self.base.weight.dtype
        linear = nn.Linear(self.base.in_features, self.base.out_features, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        linear.bias = self.base.bias
        return linear


class DoRALinear(LoRALinear):
    """Besides, the rows of the updated weight W + scale B A get trained lengths m (arXiv 2402.09353).

    y = m / |W + scale B A| (W + scale B A) x + bias, where the norms count as constants in the backward pass (its
    section 4.3). They are formed from W's own norms and two skinny products, without the updated weight. As in PEFT,
    dropout acts on what is added to the base's output.
    """

    def __init__(self, base: nn.Linear, settings: LoRA) -> None:
        super().__init__(base, settings)
        self.lora_magnitude = nn.Parameter(self.norms())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Lengths of the updated weight's rows, (out,), float32: |w + d|^2 = |w|^2 + 2 w d + |d|^2."""
        dtype = self.base.compute_dtype if is_quantized(self.base) else self.base.weight.dtype
        weight, A, B = dequantized(self.base, dtype), self.lora_A, self.scale * self.lora_B
        squares = []
        for w, b in zip(weight.split(ROWS), B.split(ROWS), strict=True):  # few rows at a time are widened
            wide = w.float()
            squares.append(wide.square().sum(1) + 2 * ((wide @ A.T) * b).sum(1) + ((b @ (A @ A.T)) * b).sum(1))
        return torch.cat(squares).clamp_(min=TINY).sqrt_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if torch.compiler.is_compiling():
            return self._traceable(x)
        y, drawn, dropout = self.base(x), None, self.dropout if self.training else 0.0
        plain = y
        if dropout:
            drawn = draw_dropped(x, dropout)
            plain = self.base(Dropped.apply(x, drawn))
        plain = plain if self.base.bias is None else plain - self.base.bias
        gain = self.lora_magnitude, self.norms()
        return dora_add(y, x, plain, self.lora_A, self.lora_B, gain, self.scale, dropout, drawn)

    def _traceable(self, x: Tensor) -> Tensor:
        """In terms that torch.compile understands; what is kept for the backward pass it decides itself."""
        y = self.base(x)
        plain = y if self.base.bias is None else y - self.base.bias
        if self.training and self.dropout:
            x = dropped(x, draw_dropped(x, self.dropout)) / (1 - self.dropout)
            plain = self.base(x) if self.base.bias is None else self.base(x) - self.base.bias
        more = (self.lora_magnitude / self.norms() - 1).to(y.dtype)
        update = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scale
        return y + (more * (plain + update) + update)

    def _finish(self, weight: Tensor) -> None:
        weight.mul_((self.lora_magnitude / self.norms())[:, None])


ROWS = 1024
"""Rows of a weight that are widened at once."""

TINY = torch.finfo(torch.float32).tiny
"""Instead of the square of a row's length where that is zero, as a vocabulary's unused rows are: 0 / 0 is no gain."""


def traceable_add(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float) -> Tensor:
    """`low_rank_add` in terms that torch.compile understands; what is kept for the backward pass it decides itself."""
    if dropout:
        x = dropped(x, draw_dropped(x, dropout))
        scale /= 1 - dropout
    low = F.linear(x.flatten(0, -2), A.to(x.dtype))
    return torch.addmm(y.flatten(0, -2), low.to(y.dtype), B.t().to(y.dtype), alpha=scale).view_as(y)


def attach(model: GPT, settings: LoRA) -> None:
    """Freezes the model and wraps the targeted linear layers. The outputs stay exactly the same."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.sub(r"experts\.\d+\.", "", name).endswith(settings.targets):
            model.set_submodule(name, (DoRALinear if settings.lora_dora else LoRALinear)(module, settings))


@torch.no_grad()
def merge(model: GPT) -> None:
    """Folds every update into its base weight; the model has its plain layers and names again.

    A head that shares the embedding's weight becomes a weight of its own.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())
            model.config.tie_embeddings = model.config.tie_embeddings and name != "lm_head"
