"""What LoRA and DoRA add to a layer's output, and their dropout, with little kept for the backward pass."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_gpt.lean import Maker


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
