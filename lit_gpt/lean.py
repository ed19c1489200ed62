"""Layers' arithmetic with less kept for the backward pass than autograd keeps by itself; the results are the same."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def low_rank_add(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Adds scale * B A dropout(x) to y, in place.

    Keeps which elements are dropped, not the dropped copy of x, and of x what it was `made` of.

    Args:
        y: (..., out), x: (..., in), A: (r, in), B: (out, r); A and B may be of another type than x.
        dropout: share of x's elements that are zeroed; the others are scaled by 1 / (1 - dropout).
    """
    return _LowRankAdd.apply(y, x, A, B, scale, dropout, *_kept(x))


def _kept(x: Tensor) -> tuple[Maker | None, tuple[Tensor | None, ...]]:
    """What makes x again, and what one more of its readers keeps: what it was made of, or x itself."""
    maker, kept, version = getattr(x, "made", (None, (x,), 0))
    if maker is None or x._version != version:  # nobody said how it was made, or it was changed since
        return None, (x,)
    maker.readers += 1
    return maker, kept


def draw_dropped(x: Tensor, dropout: float) -> Tensor:
    """Which of x's elements are dropped, each with this probability and independently of the others; for `dropped`.

    Their places (int32) if they are few, otherwise a mask that is false for them. If a number of places is drawn from
    Poisson's distribution of mean a n, and that many of n are then chosen at random, again and again the same perhaps,
    each stays unchosen with the probability exp(-a), independently: 40,000 draws for 800,000 elements at 5 %.
    """
    if torch.compiler.is_compiling():
        return torch.rand(x.shape, device=x.device) >= dropout
    if dropout > MOST_PLACES:
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - dropout)
    number = int(torch.poisson(torch.tensor(-math.log1p(-dropout) * x.numel(), dtype=torch.float64)))
    step = 1 << max(0, number.bit_length() - 6)
    room = -(-number // step) * step  # tensors of few sizes: a freed one fits the next
    return torch.randint(max(1, x.numel()), (room,), dtype=torch.int32, device=x.device)[:number]


MOST_PLACES = 0.2
"""Share of dropped elements up to which their places take less memory than a mask of bytes."""


def dropped(x: Tensor, drawn: Tensor | None, own: bool = False) -> Tensor:
    """x with zeros where `draw_dropped` says; `own`: nobody else reads x, so it may be x itself."""
    if drawn is None:
        return x
    if drawn.dtype == torch.bool:
        return x.mul_(drawn) if own else x * drawn
    flat = x.flatten() if own else x.clone(memory_format=torch.contiguous_format).view(-1)
    return flat.index_fill_(0, drawn.long(), 0).view_as(x)


class _LowRankAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float,
        maker: Maker | None,
        kept: tuple[Tensor, ...],
    ) -> Tensor:
        drawn = draw_dropped(x, dropout) if dropout else None
        ctx.maker, ctx.scale = maker, scale / (1 - dropout)
        low = F.linear(dropped(x, drawn).flatten(0, -2), A.to(x.dtype))
        y.view(-1, y.size(-1)).addmm_(low.to(y.dtype), B.to(y.dtype).t(), alpha=ctx.scale)
        ctx.save_for_backward(drawn, low, A, B, *kept)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy, *_low_rank_backward(ctx, dy, *ctx.saved_tensors), None, None, None, None


def _low_rank_backward(
    ctx: Any, dy: Tensor, drawn: Tensor | None, low: Tensor, A: Tensor, B: Tensor, *kept: Tensor
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, A and B of scale * B A dropout(x), where low is A dropout(x) and x was made of `kept`."""
    x, own = (*kept, False) if ctx.maker is None else ctx.maker.again(kept)
    if drawn is not None and drawn.dtype != torch.bool:
        drawn = drawn.long()  # for both of its uses
    dy_2d = dy.flatten(0, -2).to(low.dtype)
    dB = _scaled(dy_2d.t(), low, ctx.scale)
    dlow = _scaled(dy_2d, B.to(low.dtype), ctx.scale)
    dx = dropped((dlow @ A.to(low.dtype)).view_as(x), drawn, own=True) if ctx.needs_input_grad[1] else None
    dA = dlow.t() @ dropped(x, drawn, own).flatten(0, -2).to(low.dtype)
    return None if dx is None else dx.to(x.dtype), dA.to(A.dtype), dB.to(B.dtype)


def dora_add(
    y: Tensor,
    x: Tensor,
    plain: Tensor,
    A: Tensor,
    B: Tensor,
    gain: tuple[Tensor, Tensor],
    scale: float,
    dropout: float,
    drawn: Tensor | None,
) -> Tensor:
    """Adds (g - 1) z + scale * B A dropout(x) to y, in place, where z = W dropout(x) + scale * B A dropout(x).

    Of what is as wide as y it keeps z only, and of x as little as `low_rank_add`. In 16 bits y is rounded once: most of
    what is added is less than its last digit, and added in two parts it would be lost twice (bench/NOTES.md).

    Args:
        plain: W dropped(x), not yet scaled by 1 / (1 - dropout); it may be y.
        gain: two factors (out,), of which g is the quotient; only the first gets a gradient.
        drawn: which elements of x are dropped, or None.
    """
    return _DoRAAdd.apply(y, x, plain, A, B, *gain, scale, dropout, drawn, *_kept(x))


class _DoRAAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        plain: Tensor,
        A: Tensor,
        B: Tensor,
        lengths: Tensor,
        norms: Tensor,
        scale: float,
        dropout: float,
        drawn: Tensor | None,
        maker: Maker | None,
        kept: tuple[Tensor | None, ...],
    ) -> Tensor:
        ctx.maker, ctx.left = maker, 1 - dropout
        ctx.scale = scale / ctx.left
        low = F.linear(dropped(x, drawn).flatten(0, -2), A.to(x.dtype))
        added = low.to(y.dtype), B.to(y.dtype).t()
        z = torch.addmm(plain.flatten(0, -2), *added, beta=1 / ctx.left, alpha=ctx.scale)
        more = z * (lengths / norms - 1).to(y.dtype)
        y.view(z.shape).add_(more.addmm_(*added, alpha=ctx.scale))
        ctx.save_for_backward(z, lengths, norms, drawn, low, A, B, *kept)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        z, lengths, norms, *rest = ctx.saved_tensors
        d_lengths = (dy.flatten(0, -2) * z).sum(0) / norms
        d_plain = dy * (lengths / norms - 1).to(dy.dtype)  # less than 0.4 % away from 1, 16 bits do not tell g from it
        dx, dA, dB = _low_rank_backward(ctx, dy + d_plain, *rest)
        return dy, dx, d_plain.div_(ctx.left), dA, dB, d_lengths, *[None] * 6


class Dropped(torch.autograd.Function):
    """`dropped`, of which only the places are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drawn: Tensor) -> Tensor:
        """See `dropped`."""
        ctx.save_for_backward(drawn)
        return dropped(x, drawn)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        """The gradient, dropped alike."""
        return dropped(dy, *ctx.saved_tensors), None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a b, by one kernel."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)


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
