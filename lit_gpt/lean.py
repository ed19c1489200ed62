"""Layers' arithmetic with less kept for the backward pass than autograd keeps by itself; the results are the same."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; keeps both inputs and computes silu(gate) again, where autograd would keep it as a third."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    return _SiluProduct.apply(gate, up)


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


def low_rank_add(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Adds scale * B A dropout(x) to y, in place.

    Keeps x (which its other readers keep too) and a mask of one byte per element, on the CPU of one bit, not the
    dropped copy of x.

    Args:
        y: (..., out), x: (..., in), A: (r, in), B: (out, r); A and B may be of another type than x.
        dropout: share of x's elements that are zeroed; the others are scaled by 1 / (1 - dropout).
    """
    return _LowRankAdd.apply(y, x, A, B, scale, dropout)


def keep_mask(x: Tensor, dropout: float) -> tuple[Tensor, float]:
    """Which of x's elements to keep, at random, as 1 and 0 of one byte each, and the expected share of the others.

    On the CPU each element takes 16 random bits, four elements from one draw: a fifth of the time of drawing them one
    by one. So the share is `dropout` rounded to a multiple of 2^-16, but not to 0 or 1.
    """
    if x.is_cuda:
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - dropout), dropout
    level = min(max(round(dropout * 2**16), 1), 2**16 - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    keep = torch.empty(x.shape, dtype=torch.int16, device=x.device)
    torch.ge(draws.view(torch.int16)[: x.numel()].view(x.shape), level - 2**15, out=keep)
    return keep.to(torch.int8), level / 2**16


def kept_small(keep: Tensor | None) -> Tensor | None:
    """A mask as the backward pass is to keep it: on the CPU in bits; packing them would be launches more on a GPU."""
    return keep if keep is None or keep.is_cuda else torch.from_numpy(np.packbits(keep.numpy()))


def kept_whole(bits: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The mask of which `kept_small` made this."""
    if bits is None or bits.is_cuda:
        return bits
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel())).view(torch.int8).view(shape)


def dropped(x: Tensor, keep: Tensor | None) -> Tensor:
    """x with zeros where `keep` is 0; on a CPU as a product of whole numbers: a sixth of the time of `masked_fill`."""
    if keep is None:
        return x
    if x.is_cuda:
        return x * keep
    whole = _WHOLE[x.element_size()]
    return (x.view(whole) * keep.to(whole)).view(x.dtype)


_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> whole numbers of that size."""


class _LowRankAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float) -> Tensor:
        keep = None
        if dropout:
            keep, share = keep_mask(x, dropout)
            scale /= 1 - share
        short_A, short_B = A.to(x.dtype), B.to(y.dtype)
        low = F.linear(dropped(x, keep).flatten(0, -2), short_A)
        y.view(-1, y.size(-1)).addmm_(low.to(y.dtype), short_B.t(), alpha=scale)
        ctx.save_for_backward(x, kept_small(keep), low, short_A, short_B)
        ctx.scale, ctx.dtypes = scale, (A.dtype, B.dtype)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bits, low, A, B = ctx.saved_tensors
        keep = kept_whole(bits, x.shape)
        type_A, type_B = ctx.dtypes
        dy_2d = dy.flatten(0, -2).to(low.dtype)
        dB = (dy_2d.t() @ low) * ctx.scale
        dlow = (dy_2d @ B.to(low.dtype)).mul_(ctx.scale)
        dx = dropped((dlow @ A.to(low.dtype)).view_as(x), keep) if ctx.needs_input_grad[1] else None
        dA = dlow.t() @ dropped(x, keep).flatten(0, -2).to(low.dtype)
        return dy, None if dx is None else dx.to(x.dtype), dA.to(type_A), dB.to(type_B), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first R channels of every head, channel i together with channel i + R/2 (arXiv 2104.09864).

    The backward pass is the rotation back; autograd would take its slices and sums apart one by one.

    Args:
        x: (B, T, H, D); cos, sin: (B or 1, T, 1, R), without gradients, see `rope.rope_tables`.
    """
    if torch.is_grad_enabled():
        return _Rotate.apply(x, cos, sin)
    R, D = cos.size(-1), x.size(-1)
    turned = x if R == D else x.narrow(-1, 0, R)
    turned = torch.addcmul(turned * cos, turned.roll(R // 2, -1), sin)  # the same sums in half as many calls
    return turned if R == D else torch.cat((turned, x.narrow(-1, R, D - R)), -1)


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
    half = cos.size(-1) // 2
    cos, sin = cos[..., half:], sin[..., half:]
    first, second = x[..., :half], x[..., half : 2 * half]
    y = (x[..., : 2 * half].unflatten(-1, (2, half)) * cos.unsqueeze(-2)).flatten(-2)
    y[..., :half].addcmul_(second, sin, value=-sign)
    y[..., half:].addcmul_(first, sin, value=sign)
    return (y if 2 * half == x.size(-1) else torch.cat((y, x[..., 2 * half :]), -1)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32 inside (arXiv 1910.07467).

    PyTorch has one kernel for it on a GPU; on the CPU it is a dozen of calls, which for a single token take longer than
    their sums, and keeps a float32 copy of x for the backward pass.
    """
    if x.numel() == x.size(-1) and not (x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling()):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        row = wide.view(-1)
        return (wide * (torch.dot(row, row).item() / row.numel() + eps) ** -0.5).mul_(weight).to(x.dtype)
    if x.is_cuda or (not torch.is_grad_enabled() and x.dtype == weight.dtype):
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
