"""Layers' arithmetic with less kept for the backward pass than autograd keeps by itself; the results are the same."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def own_backward() -> bool:
    """Whether the backward passes are those of this file. A compiler makes its own.

    PyTorch 2.11's would lose the gradient wherever a forward pass changes its own result in place, as those here do
    (pytorch/pytorch issue 180642).
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Maker:
    """Makes a tensor again, once for all that read it in the backward pass."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.readers, self.left = function, 0, 0
        self.x: Tensor | None = None

    def again(self, inputs: list[Tensor | None]) -> tuple[Tensor, bool]:
        """The tensor, and whether this was the last of its readers."""
        if self.x is None:
            with torch.enable_grad():  # some functions compute otherwise where no gradient is asked for
                self.x = self.function(*(each if each is None else each.detach() for each in inputs))
            self.left = self.readers
        x, self.left = self.x, self.left - 1
        if not self.left:
            self.x = None
        return x, not self.left


def made(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), with a note of how it was made.

    A layer that would keep it for its backward pass can keep the inputs instead, if others keep them anyway, and make
    it again: a norm or an activation takes little time.

    Args:
        function: gives a new tensor, and the same bits each time; all that it depends on is among the inputs.
    """
    x = function(*inputs)
    if own_backward():
        x.made = Maker(function), inputs, x._version
    return x


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; keeps both inputs and computes silu(gate) again, where autograd would keep it as a third."""
    if own_backward():
        return _SiluProduct.apply(gate, up)
    return F.silu(gate) * up if torch.is_grad_enabled() else F.silu(gate).mul_(up)


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate = dy * up
        torch.ops.aten.silu_backward.grad_input(dgate, gate, grad_input=dgate)
        return dgate, F.silu(gate).mul_(dy)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first R channels of every head, channel i together with channel i + R/2 (arXiv 2104.09864).

    The backward pass is the rotation back; autograd would take its slices and sums apart one by one.

    Args:
        x: (B, T, H, D); cos, sin: (B or 1, T, 1, R), without gradients, see `rope.rope_tables`.
    """
    return _Rotate.apply(x, cos, sin) if own_backward() else _rotated(x, cos, sin, 1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    R, D = cos.size(-1), x.size(-1)
    half, part = R // 2, x.narrow(-1, 0, R)
    y = part * cos
    if x.is_cuda:
        y[..., :half].addcmul_(part[..., half:], sin[..., :half], value=sign)
        y[..., half:].addcmul_(part[..., :half], sin[..., half:], value=sign)
    elif R == D:
        y.addcmul_(part.roll(half, -1), sin, value=sign)
    else:  # a few channels at a time that takes twice as long
        y.add_(part.roll(half, -1) * sin, alpha=sign)
    return (y if R == D else torch.cat((y, x.narrow(-1, R, D - R)), -1)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32 inside (arXiv 1910.07467).

    PyTorch has one kernel for it on a GPU; on the CPU it is a dozen of calls, which for a single token take longer than
    their sums, and keeps a float32 copy of x for the backward pass.
    """
    if x.numel() == x.size(-1) and not (x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling()):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        row = wide.view(-1)
        return (wide * (torch.dot(row, row).item() / row.numel() + eps) ** -0.5).mul_(weight).to(x.dtype)
    if x.is_cuda or torch.compiler.is_compiling() or (not torch.is_grad_enabled() and x.dtype == weight.dtype):
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        normed, wide = x * inverse, dy.to(inverse.dtype)
        d_weight = (wide * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        wide = wide * weight
        dx = (wide - normed * (wide * normed).mean(-1, keepdim=True)).mul_(inverse)
        return dx.to(x.dtype), d_weight, None
