"""Who may look at whom: causal attention, packs of several samples, and a cache of earlier tokens.

An `Attend` is what the model calls in every layer with its rotated queries and keys. Letters as in `lit_gpt.model`.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHTD, k_BGTD, v_BGTD) -> y_BHTD."""


def sdpa(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention in which each of the G key and value heads serves H / G query heads."""
    gqa = q_BHTD.size(1) != k_BGSD.size(1)
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


def causal(layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
    """Every token attends to itself and to all before it."""
    return sdpa(q_BHTD, k_BGTD, v_BGTD, causal=True)


class Pack:
    """Several sequences in one row, none of which sees another; a sequence may continue one that stands before it.

    The row consists of pieces. A piece attends causally to itself and, if it has a parent, to all of the parent: that
    is how samples with a common beginning share the work on it. Parents have no parents.

    Args:
        lengths: tokens of each piece, in their order in the row.
        parents: for each piece the index of the piece that it continues, or None.
        device: where the attention will run.
    """

    def __init__(self, lengths: list[int], parents: list[int | None], device: torch.device) -> None:
        self.lengths, self.parents, self.device = lengths, parents, device

    @cached_property
    def positions_1T(self) -> Tensor:
        """Place of every token in its sequence."""
        before = [0 if parent is None else self.lengths[parent] for parent in self.parents]
        places = [torch.arange(start, start + length) for start, length in zip(before, self.lengths, strict=True)]
        return torch.cat(places)[None].to(self.device, non_blocking=True)

    def attend(self, layer: int, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor) -> Tensor:
        """See `Attend`. One kernel for the whole row where there is one (GPU, 16 bits), otherwise piece by piece."""
        if q_1HTD.is_cuda and q_1HTD.dtype in (torch.bfloat16, torch.float16):
            return self._varlen(q_1HTD, k_1GTD, v_1GTD)
        return _Pieces.apply(q_1HTD, k_1GTD, v_1GTD, self)

    @cached_property
    def pieces(self) -> list[tuple[slice, slice | None]]:
        """For each piece its place in the row, and that of its parent."""
        ends = list(itertools.accumulate(self.lengths))
        places = [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]
        return [
            (own, None if parent is None else places[parent]) for own, parent in zip(places, self.parents, strict=True)
        ]

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, int, int, Tensor | None]:
        """Ends of the queries and keys of each piece, the longest of both, and where the keys lie in the row.

        Built once per batch on the host and copied without waiting: the forward pass never waits for the device.
        """
        row = torch.arange(sum(self.lengths))
        keys = [row[own] if parent is None else torch.cat((row[parent], row[own])) for own, parent in self.pieces]
        key_lengths = [len(piece) for piece in keys]
        cu_q = torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        cu_k = (
            torch.tensor([0, *key_lengths], dtype=torch.int32)
            .cumsum(0, dtype=torch.int32)
            .to(self.device, non_blocking=True)
        )
        shared = any(parent is not None for parent in self.parents)
        where = torch.cat(keys).to(self.device, non_blocking=True) if shared else None
        return cu_q.to(self.device, non_blocking=True), cu_k, max(self.lengths), max(key_lengths), where

    def _varlen(self, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        cu_q, cu_k, longest_q, longest_k, where = self._ends
        q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (q_1HTD, k_1GTD, v_1GTD))
        if where is not None:
            k_TGD, v_TGD = k_TGD.index_select(0, where), v_TGD.index_select(0, where)
        known = inspect.signature(varlen_attn).parameters
        options = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}  # torch 2.10
        if q_THD.size(1) != k_TGD.size(1):
            if "enable_gqa" in known:
                options["enable_gqa"] = True
            else:  # torch 2.10 and 2.11
                repeats = q_THD.size(1) // k_TGD.size(1)
                k_TGD, v_TGD = k_TGD.repeat_interleave(repeats, 1), v_TGD.repeat_interleave(repeats, 1)
        y_THD = varlen_attn(q_THD, k_TGD, v_TGD, cu_q, cu_k, longest_q, longest_k, **options)
        return y_THD.transpose(0, 1)[None]


ROWS = 256
"""Queries of a piece that are computed at once: scores of more would be large, and half of them masked."""


class _Pieces(torch.autograd.Function):
    """The attention of a `Pack`, piece by piece in float32 matrix products; keeps query, key and value only.

    At the lengths of instruction samples this takes a fraction of the time of PyTorch's fused CPU kernel.
    """

    @staticmethod
    def forward(ctx: Any, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, pack: Pack) -> Tensor:
        ctx.save_for_backward(q_1HTD, k_1GTD, v_1GTD)
        ctx.pack = pack
        q, k, v = _Pieces.widen(q_1HTD, k_1GTD, v_1GTD)
        y = torch.empty_like(q)
        for piece in pack.pieces:
            for rows, prob, _, values in _Pieces.blocks(q, k, v, piece):
                y[:, :, rows] = (prob @ values).view_as(y[:, :, rows])
        return _Pieces.narrow(y, q_1HTD)

    @staticmethod
    def backward(ctx: Any, dy_1HTD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        q, k, v = _Pieces.widen(*saved)
        (dy,) = _Pieces.widen(dy_1HTD, groups=k.size(0))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for own, parent in ctx.pack.pieces:
            shared = 0 if parent is None else parent.stop - parent.start
            dkeys = k.new_zeros(k.size(0), shared + own.stop - own.start, k.size(2))
            dvalues = torch.zeros_like(dkeys)
            for rows, prob, keys, values in _Pieces.blocks(q, k, v, (own, parent)):
                up = dy[:, :, rows].flatten(1, 2)
                seen = slice(keys.size(1))
                dvalues[:, seen] += prob.mT @ up
                dscores = torch.ops.aten._softmax_backward_data(up @ values.mT, prob, -1, prob.dtype)
                dq[:, :, rows] = (dscores @ keys).view_as(dq[:, :, rows])
                dkeys[:, seen] += dscores.mT @ q[:, :, rows].flatten(1, 2)
            for total, part in ((dk, dkeys), (dv, dvalues)):
                total[:, own] += part[:, shared:]
                if parent is not None:
                    total[:, parent] += part[:, :shared]
        dq *= q.size(-1) ** -0.5
        return *(_Pieces.narrow(d, x) for d, x in zip((dq, dk, dv), saved, strict=True)), None

    @staticmethod
    def widen(x_1HTD: Tensor, *others: Tensor, groups: int | None = None) -> list[Tensor]:
        """The first argument as (G, H / G, T, D), scaled if it is a query; keys and values as (G, T, D); float32."""
        wide = torch.promote_types(x_1HTD.dtype, torch.float32)
        first = x_1HTD[0].to(wide, memory_format=torch.contiguous_format)
        groups = groups or others[0].size(1)
        if others:
            first = first * x_1HTD.size(-1) ** -0.5
        return [first.unflatten(0, (groups, -1)).contiguous(), *(x[0].to(wide).contiguous() for x in others)]

    @staticmethod
    def narrow(x: Tensor, like_1HTD: Tensor) -> Tensor:
        """Back to the shape and type of the model's tensors, in memory as (T, H, D), where the next layer reads it."""
        x_HTD = x.flatten(0, 1) if x.dim() == 4 else x
        return x_HTD.transpose(0, 1).to(like_1HTD.dtype).contiguous().transpose(0, 1)[None]

    @staticmethod
    def blocks(
        q: Tensor, k: Tensor, v: Tensor, piece: tuple[slice, slice | None]
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Blocks of a piece's queries: their rows, probabilities (G, H / G * rows, S), and the S keys and values."""
        own, parent = piece
        keys, values = k[:, own], v[:, own]
        if parent is not None:
            keys, values = torch.cat((k[:, parent], keys), 1), torch.cat((v[:, parent], values), 1)
        for start in range(own.start, own.stop, ROWS):
            rows = slice(start, min(start + ROWS, own.stop))
            n = rows.stop - rows.start
            seen = keys.size(1) - (own.stop - rows.stop)
            scores = q[:, :, rows].flatten(1, 2) @ keys[:, :seen].mT
            future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
            scores.unflatten(1, (-1, n))[..., -n:].masked_fill_(future, -torch.inf)
            yield rows, scores.softmax(-1), keys[:, :seen], values[:, :seen]


class KVCache:
    """Keys and values of the tokens so far, one allocation of exactly the size that is asked for.

    Rows of a batch may have different lengths: a row's slot is its token's position, and a query sees the slots up to
    its own position, so what lies behind (padding of a shorter prompt) is never seen before it is overwritten.

    Args:
        length: slots per row, in tokens: prompt and everything to be generated.
    """

    def __init__(
        self, config: Config, batch_size: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (2, config.n_layer, batch_size, config.n_query_groups, length, config.head_size)
        self.k_LBGSD, self.v_LBGSD = torch.zeros(shape, device=device, dtype=dtype)
        self.used = 0
        """Slots that are filled in every row, while all rows move together."""
        self.positions_BT: Tensor | None = None

    def begin(self, idx_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Prepares a call of the model with these tokens; returns the positions that they take."""
        self.start, self.positions_BT = self.used, positions_BT
        self.used += idx_BT.size(1)
        if positions_BT is None:
            return torch.arange(self.start, self.used, device=idx_BT.device)[None]
        return positions_BT

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        """Stores this call's keys and values and attends to all that are visible. See `Attend`."""
        keys, values = self.k_LBGSD[layer], self.v_LBGSD[layer]
        if self.positions_BT is not None:
            rows = torch.arange(keys.size(0), device=keys.device)[:, None]
            keys[rows, :, self.positions_BT] = k_BGTD.transpose(1, 2).to(keys.dtype)
            values[rows, :, self.positions_BT] = v_BGTD.transpose(1, 2).to(values.dtype)
            visible = torch.arange(keys.size(2), device=keys.device) <= self.positions_BT[:, None, :, None]
            return sdpa(q_BHTD, keys, values, mask=visible)
        end = self.start + q_BHTD.size(2)
        keys[:, :, self.start : end], values[:, :, self.start : end] = k_BGTD, v_BGTD
        if self.start == 0:
            return causal(layer, q_BHTD, k_BGTD, v_BGTD)
        visible = None
        if q_BHTD.size(2) > 1:
            places = torch.arange(end, device=keys.device)
            visible = places <= places[self.start :, None]
        return sdpa(q_BHTD, keys[:, :, :end], values[:, :, :end], mask=visible)
