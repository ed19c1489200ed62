"""Who may look at whom: causal attention, packs of several samples, and a cache of earlier tokens.

An `Attend` is what the model calls in every layer with its rotated queries and keys. Letters as in `lit_gpt.model`.
"""

import inspect
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
        self._masks: dict[tuple[int, int], Tensor] = {}

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
        if torch.is_grad_enabled():  # keep the row once, not what each piece sees of it
            return checkpoint(self._by_piece, q_1HTD, k_1GTD, v_1GTD, use_reentrant=False, preserve_rng_state=False)
        return self._by_piece(q_1HTD, k_1GTD, v_1GTD)

    def _by_piece(self, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor) -> Tensor:
        pieces = [x.split(self.lengths, dim=2) for x in (q_1HTD, k_1GTD, v_1GTD)]
        out = []
        for q, k, v, parent in zip(*pieces, self.parents, strict=True):
            if parent is None:
                out.append(sdpa(q, k, v, causal=True))
            else:
                keys, values = (torch.cat((x[parent], own), dim=2) for x, own in zip(pieces[1:], (k, v), strict=True))
                out.append(sdpa(q, keys, values, mask=self._mask(q.size(2), keys.size(2))))
        return torch.cat(out, dim=2)

    def _mask(self, T: int, S: int) -> Tensor:
        """(T, S): the last T of S tokens look at all before them."""
        if (T, S) not in self._masks:
            self._masks[T, S] = torch.ones(T, S, dtype=torch.bool, device=self.device).tril(S - T)
        return self._masks[T, S]

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, int, int, Tensor | None]:
        """Ends of the queries and keys of each piece, the longest of both, and where the keys lie in the row.

        Built once per batch on the host and copied without waiting: the forward pass never waits for the device.
        """
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        own = [torch.arange(start, start + length) for start, length in zip(starts, self.lengths, strict=False)]
        keys = [
            piece if parent is None else torch.cat((own[parent], piece))
            for piece, parent in zip(own, self.parents, strict=True)
        ]
        key_lengths = [len(piece) for piece in keys]
        cu_q = torch.tensor(starts, dtype=torch.int32).to(self.device, non_blocking=True)
        cu_k = (
            torch.tensor([0, *key_lengths], dtype=torch.int32)
            .cumsum(0, dtype=torch.int32)
            .to(self.device, non_blocking=True)
        )
        shared = any(parent is not None for parent in self.parents)
        where = torch.cat(keys).to(self.device, non_blocking=True) if shared else None
        return cu_q, cu_k, max(self.lengths), max(key_lengths), where

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
