"""The attention of packs by the GPU's flash kernels (arXiv 2307.08691).

Every run of a pack looks at itself in one call of the kernel. What runs see of those that they continue is a second
call, in which neighbours that see the same look at it together and nothing is hidden (as in arXiv 2402.05099); the two
softmaxes are joined by their sums. The backward pass calls the kernel's own for both, each with the output and the sums
of the whole, which makes the gradients those of the joint softmax. Letters as in `lit_gpt.model`; K keys of the second
call. There may be more keys than queries: those of known tokens, which come first.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Call(NamedTuple):
    """Which queries of a row see which keys: sequence by sequence. Ends are (number + 1,) int32, from 0 on."""

    ends_q: Tensor
    ends_k: Tensor
    most_q: int
    """Queries of the longest sequence."""
    most_k: int
    causal: bool


class Above(NamedTuple):
    """The second call: neighbours that continue the same tokens, and between them those that continue nothing."""

    call: Call
    rows_K: Tensor
    """Where its keys stand: the continued tokens."""
    alone_T: Tensor
    """bool: the token continues nothing."""


Calls = tuple[Call, Above | None]


def find_calls(lengths: list[int], seen: list[np.ndarray], device: torch.device) -> Calls:
    """The calls for a row of runs of tokens; made on the host and copied without waiting.

    Args:
        lengths: tokens of each run.
        seen: where the keys stand that a run sees besides its own.
    """

    def on_device(x: Tensor) -> Tensor:
        return x.to(device, non_blocking=True)

    def ends(sizes: list[int]) -> Tensor:
        return on_device(torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32))

    own = Call(ends(lengths), ends(lengths), max(lengths), max(lengths), causal=True)
    if not any(map(len, seen)):
        return own, None
    groups: list[tuple[np.ndarray, int]] = []
    """Neighbours that see the same: what, and their tokens."""
    for length, rows in zip(lengths, seen, strict=True):
        before = groups.pop()[1] if groups and np.array_equal(groups[-1][0], rows) else 0
        groups.append((rows, before + length))
    queries, keys = [n for _, n in groups], [len(rows) for rows, _ in groups]
    rows_K = torch.from_numpy(np.concatenate([rows for rows, _ in groups]))
    alone = torch.tensor([n == 0 for n in keys]).repeat_interleave(torch.tensor(queries))
    call = Call(ends(queries), ends(keys), max(queries), max(keys), causal=False)
    return own, Above(call, on_device(rows_K), on_device(alone))


@functools.cache
def has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the kernels take this: Ampere or newer, 16 bits, heads of at most 256 channels."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and head_size % 8 == 0 and head_size <= 256


def flash(q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, calls: Calls, scale: float) -> Tensor:
    """What the heads of a pack take from each other's tokens, (1, H, T, D); keeps its inputs, its output and the sums.

    Args:
        scale: of the products of queries and keys.
    """
    return _Flash.apply(q_1HTD, k_1GTD, v_1GTD, calls, scale)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, calls: Calls, scale: float) -> Tensor:
        q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (q_1HTD, k_1GTD, v_1GTD))
        own, above = calls
        known = len(k_TGD) - len(q_THD)
        y_THD, sums_HT = _forward(q_THD, k_TGD[known:], v_TGD[known:], own, scale)
        if above is not None:
            k_KGD, v_KGD = (x.index_select(0, above.rows_K) for x in (k_TGD, v_TGD))
            other_THD, other_HT = _forward(q_THD, k_KGD, v_KGD, above.call, scale)
            other_HT.masked_fill_(above.alone_T, -torch.inf)
            total_HT = torch.logaddexp(sums_HT, other_HT)
            share_HT = other_HT.sub_(total_HT).exp_()
            y_THD, sums_HT = torch.lerp(y_THD, other_THD, share_HT.t()[..., None].to(y_THD.dtype)), total_HT
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, y_THD, sums_HT)
        ctx.calls, ctx.scale = calls, scale
        return y_THD.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, dy_1HTD: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_TGD, v_TGD, y_THD, sums_HT = ctx.saved_tensors
        dy_THD, (own, above) = dy_1HTD[0].transpose(0, 1), ctx.calls
        dq, dk, dv = _backward(dy_THD, q_THD, k_TGD, v_TGD, y_THD, sums_HT, own, ctx.scale)
        if above is not None:
            k_KGD, v_KGD = (x.index_select(0, above.rows_K) for x in (k_TGD, v_TGD))
            more = _backward(dy_THD, q_THD, k_KGD, v_KGD, y_THD, sums_HT, above.call, ctx.scale)
            dq += more[0]
            dk.index_add_(0, above.rows_K, more[1])
            dv.index_add_(0, above.rows_K, more[2])
        return *(x.transpose(0, 1)[None] for x in (dq, dk, dv)), None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """The kernel: output (T, H, D), and the logarithms of the softmax's sums (H, T) in float32."""
    shape = (call.ends_q, call.ends_k, call.most_q, call.most_k, 0.0, call.causal, False)
    return torch.ops.aten._flash_attention_forward(q, k, v, *shape, scale=scale)[:2]


def _backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, call: Call, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward pass: gradients of q, k and v. It also asks for the state of the random numbers of its dropout."""
    unused = _unused(q.device)
    shape = (call.ends_q, call.ends_k, call.most_q, call.most_k, 0.0, call.causal, unused, unused)
    return torch.ops.aten._flash_attention_backward(dy, q, k, v, y, sums, *shape, scale=scale)


@functools.cache
def _unused(device: torch.device) -> Tensor:
    return torch.zeros(2, dtype=torch.uint64, device=device)
