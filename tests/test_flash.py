"""The two calls of the GPU's kernel, joined: what a pack's tiles compute. The kernel itself: tests/test_gpu.py."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_gpt import flash
from lit_gpt.attention import Look
from lit_gpt.flash import Call
from lit_gpt.packs import Pack, _Tiles


def spans(call: Call) -> list[tuple[slice, slice]]:
    """Queries and keys of every sequence."""
    q, k = (itertools.starmap(slice, itertools.pairwise(ends.tolist())) for ends in (call.ends_q, call.ends_k))
    return list(zip(q, k, strict=True))


def scores(q_HTD: Tensor, k_HSD: Tensor, call: Call, scale: float) -> Tensor:
    result = q_HTD @ k_HSD.mT * scale
    return result.masked_fill(torch.ones_like(result, dtype=torch.bool).triu(1), -torch.inf) if call.causal else result


def forward(q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """The kernel written out; where there are no keys, it gives zeros and the sum is infinity, as the real one's."""
    y, sums = torch.zeros_like(q), torch.full((q.size(1), q.size(0)), torch.inf, dtype=q.dtype)
    for rows, keys in spans(call):
        if keys.stop > keys.start and rows.stop > rows.start:
            found = scores(q[rows].transpose(0, 1), wide(k, q)[keys].transpose(0, 1), call, scale)
            sums[:, rows] = found.logsumexp(-1)
            y[rows] = (found.softmax(-1) @ wide(v, q)[keys].transpose(0, 1)).transpose(0, 1)
    return y, sums


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, sums: Tensor, call: Call, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward pass: probabilities by the sums that are given, their slope by the output that is given."""
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(wide(k, q)), torch.zeros_like(wide(v, q))
    for rows, keys in spans(call):
        q_s, k_s, v_s = (x.transpose(0, 1) for x in (q[rows], wide(k, q)[keys], wide(v, q)[keys]))
        dy_s, y_s = dy[rows].transpose(0, 1), y[rows].transpose(0, 1)
        p = (scores(q_s, k_s, call, scale) - sums[:, rows, None]).exp()
        slope = p * (dy_s @ v_s.mT - (dy_s * y_s).sum(-1, keepdim=True)) * scale
        dq[rows] = (slope @ k_s).transpose(0, 1)
        dk[keys], dv[keys] = (slope.mT @ q_s).transpose(0, 1), (p.mT @ dy_s).transpose(0, 1)
    groups = k.size(1)
    return dq, *(x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))


def wide(x_TGD: Tensor, q_THD: Tensor) -> Tensor:
    return x_TGD.repeat_interleave(q_THD.size(1) // x_TGD.size(1), 1)


PACKS = {
    "nothing shared": np.r_[:3, :1, :5],
    "one beginning": np.r_[:7, 4:9, 4:6],
    "two, and fillers": np.r_[:7, 4:9, :7, 6:8, 6:9, :3],
    "one that nothing continues first": np.r_[:5, :5, 2:3],
    "branches of branches": np.r_[:6, 4:9, 7:8, 7:10, 4:5, 2:6, 5:6, :2, 1:3],
}


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_joined_calls_are_the_tiles(name: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_forward", forward)
    monkeypatch.setattr(flash, "_backward", backward)
    torch.manual_seed(0)
    pack, look = Pack(PACKS[name], torch.device("cpu")), Look(0.4)
    inputs = [torch.randn(1, heads, len(pack.depths), 8).double().requires_grad_() for heads in (4, groups, groups)]
    found = flash.flash(*inputs, pack.calls, look.scale)
    expected = _Tiles.apply(*inputs, pack.tiles, look)
    assert torch.allclose(found, expected, rtol=1e-10)
    upstream = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, expected)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("known", [1, 4, 6])
def test_known_tokens_are_seen_and_do_not_look(known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that goes on after others: tiles and kernels give what the whole tree's have for the rest."""
    monkeypatch.setattr(flash, "_forward", forward)
    torch.manual_seed(0)
    depths, cpu, look = PACKS["branches of branches"][:18], torch.device("cpu"), Look(0.4)
    q, k, v = (torch.randn(1, heads, len(depths), 8).double() for heads in (4, 2, 2))
    whole = _Tiles.apply(q, k, v, Pack(depths, cpu).tiles, look)[:, :, known:]
    pack = Pack(depths, cpu, known)
    assert torch.allclose(_Tiles.apply(q[:, :, known:], k, v, pack.tiles, look), whole, rtol=1e-12)
    assert torch.allclose(flash.flash(q[:, :, known:], k, v, pack.calls, look.scale), whole, rtol=1e-10)


def test_no_kernel_on_a_cpu() -> None:
    assert not flash.has_kernel(torch.device("cpu"), torch.bfloat16, 64)
