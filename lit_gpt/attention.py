"""Who may look at whom: causal attention, packs of several samples, and a cache of earlier tokens.

An `Attend` is what the model calls in every layer with its rotated queries and keys. Letters as in `lit_gpt.model`.
"""

import copy
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.flash import Calls, find_calls, flash, has_kernel


@dataclass(frozen=True)
class Look:
    """How the queries of a layer look at keys, besides "only at their own token and those before it"."""

    scale: float
    """Of the products of queries and keys."""
    window: int | None = None
    """Only the last so many tokens are seen, the own one among them (arXiv 2310.06825)."""
    softcap: float | None = None
    """c: a score x becomes c tanh(x / c) (arXiv 2408.00118)."""
    alibi_heads: int | None = None
    """ALiBi (arXiv 2108.12409): something is taken from a score per token of distance, for each of so many heads."""
    alibi_rounded: bool = False
    """As Falcon has it: slope times place of a key, in bfloat16, is added to a score before that is scaled. Rounding
    makes it depend on more than the distance."""

    def plain(self, length: int) -> bool:
        """Whether among so many tokens nothing but the scale matters."""
        return self.softcap is None and self.alibi_heads is None and (self.window is None or self.window >= length)

    def bias(self, query_T1: Tensor, key_S: Tensor) -> Tensor:
        """What is added to the scores of queries and keys at these places: (T, S), or (H, T, S) with ALiBi."""
        distance_TS = query_T1 - key_S
        hidden = distance_TS < 0
        if self.window is not None:
            hidden = hidden | (distance_TS >= self.window)
        if self.alibi_heads is None:
            return torch.zeros(distance_TS.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        slopes = alibi_slopes(self.alibi_heads, hidden.device).view(-1, *[1] * hidden.ndim)
        if self.alibi_rounded:
            return ((slopes.bfloat16() * key_S).float() * self.scale).masked_fill(hidden, -torch.inf)
        return (-slopes * distance_TS).masked_fill_(hidden, -torch.inf)


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """ALiBi's slopes (H,), a geometric series; to a power of two heads every second of twice as many is added."""
    power = 1 << (heads.bit_length() - 1)
    head = torch.arange(heads, device=device)
    return torch.exp2(torch.where(head < power, -8 * (head + 1) / power, -4 * (2 * (head - power) + 1) / power))


Attend = Callable[[int, Tensor, Tensor, Tensor, Look], Tensor]
"""(layer, q_BHTD, k_BGTD, v_BGTD, how to look) -> y_BHTD."""


def sdpa(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, look: Look, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention in which each of the G key and value heads serves H / G query heads.

    Args:
        bias: added to the scores, to be broadcast to (B, H, T, S).
        causal: instead of a bias, for T = S.
    """
    if bias is not None:
        bias = bias.to(q_BHTD.dtype)
    if q_BHTD.size(2) == 1:
        return _one_query(q_BHTD, k_BGSD, v_BGSD, look, bias)
    gqa = q_BHTD.size(1) != k_BGSD.size(1)
    if look.softcap is None:
        options = {"attn_mask": bias, "is_causal": causal, "scale": look.scale, "enable_gqa": gqa}
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, **options)
    if gqa:
        k_BGSD, v_BGSD = (x.repeat_interleave(q_BHTD.size(1) // x.size(1), 1) for x in (k_BGSD, v_BGSD))
    return _softcapped(q_BHTD, k_BGSD, v_BGSD, look, bias)


def _one_query(q_BH1D: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, look: Look, bias: Tensor | None) -> Tensor:
    """As `sdpa`, for one token: the query heads that share a key head become queries of that one head.

    So keys are read once and never repeated: 16 times the speed of PyTorch's grouped kernel on the CPU (8 queries to
    a key, 2,048 tokens). That kernel is also 2.3 times as fast with two queries as with one in 16 bits.
    """
    B, H, _, D = q_BH1D.shape
    G = k_BGSD.size(1)
    q_BGRD = q_BH1D.reshape(B, G, H // G, D)
    if bias is not None and bias.ndim > 2 and bias.size(-3) == H:
        bias = bias.reshape(-1, G, H // G, bias.size(-1))
    if look.softcap is None and H == G and q_BH1D.dtype == torch.bfloat16 and not q_BH1D.is_cuda:
        q_BGRD = q_BGRD.expand(B, G, 2, D)
    if look.softcap is None:
        y_BGRD = F.scaled_dot_product_attention(q_BGRD, k_BGSD, v_BGSD, attn_mask=bias, scale=look.scale)
    else:
        y_BGRD = _softcapped(q_BGRD, k_BGSD, v_BGSD, look, bias)
    return y_BGRD[:, :, : H // G].reshape(B, H, 1, D)


def _softcapped(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, look: Look, bias: Tensor | None) -> Tensor:
    scores = look.softcap * torch.tanh(q_BHTD @ k_BHSD.mT * (look.scale / look.softcap))
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v_BHSD.dtype) @ v_BHSD


def causal(layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, look: Look) -> Tensor:
    """Every token attends to itself and to all before it, as far as the layer looks."""
    T = q_BHTD.size(2)
    if look.plain(T):
        return sdpa(q_BHTD, k_BGTD, v_BGTD, look, causal=True)
    places = torch.arange(T, device=q_BHTD.device)
    return sdpa(q_BHTD, k_BGTD, v_BGTD, look, look.bias(places[:, None], places))


class Pack:
    """Several sequences in one row, which have their common beginnings once: a tree of tokens in depth-first order.

    The place of a token in its sequence is its depth in the tree. It sees itself and all tokens on the way from the
    root: of those before it in the row, the latest of every smaller depth. So the depths say who sees whom.

    Args:
        depths: of the tokens, in the order of the row; where a sequence shares nothing they start again at 0.
        device: where the attention will run.
        known: so many of them, at the beginning, have their keys and values already: they are seen and do not look.
    """

    def __init__(self, depths: np.ndarray, device: torch.device, known: int = 0) -> None:
        self.depths, self.device, self.known = depths, device, known
        self._other_tiles: dict[Look, list[Tile]] = {}

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Where tokens of which each continues the one before it begin and end."""
        starts = np.flatnonzero(np.diff(self.depths, prepend=-2) != 1).tolist()
        return list(itertools.pairwise([*starts, len(self.depths)]))

    @cached_property
    def _tree(self) -> tuple[np.ndarray, np.ndarray]:
        """For each token the first one after it that does not see it, or the row's end; the way to the last token."""
        until, way, end = np.full(len(self.depths), len(self.depths)), np.zeros(self.longest, dtype=np.int64), 0
        for start, stop in self.runs:
            depth = self.depths[start]
            until[way[depth:end]] = start
            end = depth + stop - start
            way[depth:end] = np.arange(start, stop)
        return until, way[:end]

    @property
    def way(self) -> np.ndarray:
        """The tokens from the root to the last token: what a row that goes on after this one may see."""
        return self._tree[1]

    @cached_property
    def lengths_1T(self) -> Tensor:
        """Tokens of the longest of the sequences that share their first token with this one."""
        starts = np.flatnonzero(self.depths == 0)
        lengths = np.maximum.reduceat(self.depths, starts) + 1
        sizes = np.diff(starts, append=len(self.depths))
        return torch.from_numpy(lengths.repeat(sizes))[None].to(self.device)

    @cached_property
    def _depths(self) -> Tensor:
        return torch.from_numpy(self.depths).to(self.device, non_blocking=True)

    @property
    def positions_1T(self) -> Tensor:
        """Place of every token, from the first that is not known, in its sequence."""
        return self._depths[None, self.known :]

    def attend(self, layer: int, q_1HTD: Tensor, k_1GSD: Tensor, v_1GSD: Tensor, look: Look) -> Tensor:
        """See `Attend`. By the GPU's kernels where they can do it, otherwise in tiles."""
        if has_kernel(q_1HTD.device, q_1HTD.dtype, q_1HTD.size(-1)) and look.plain(self.longest):
            return flash(q_1HTD, k_1GSD, v_1GSD, self.calls, look.scale)
        return _Tiles.apply(q_1HTD, k_1GSD, v_1GSD, self._biased(look), look)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.depths.max()) + 1

    def _biased(self, look: Look) -> "list[Tile]":
        """The tiles as a layer sees them that looks in a certain way; layers that look alike share them."""
        if look.alibi_heads is None and (look.window is None or look.window >= self.longest):
            return self.tiles
        if look not in self._other_tiles:
            q, k = self._depths[self.known :, None], self._depths
            self._other_tiles[look] = [
                tile._replace(bias=tile.bias + look.bias(q[tile.rows], torch.cat([k[part] for part in tile.keys])))
                for tile in self.tiles
            ]
        return self._other_tiles[look]

    def _before(self, place: int) -> np.ndarray:
        """What a token sees before itself."""
        return np.flatnonzero(self._tree[0][:place] > place)

    def _cuts(self) -> list[int]:
        """Where the row is cut into tiles: so that their scores, and `TILE` for each tile, are as few as can be.

        A tile of n queries of which the first has depth d has n (d + n) scores.
        """
        places = {place for start, stop in self.runs for place in (*range(start, stop, ROWS), stop)}
        places = sorted({self.known, *(place for place in places if place > self.known)})
        best, previous = [0] * len(places), [0] * len(places)
        for j in range(1, len(places)):
            costs = []
            for i in range(j - 1, -1, -1):
                n = places[j] - places[i]
                if costs and n > MOST_ROWS:
                    break
                costs.append(best[i] + n * (int(self.depths[places[i]]) + n) + TILE)
            best[j] = min(costs)
            previous[j] = j - 1 - costs.index(best[j])
        cuts, j = [places[-1]], len(places) - 1
        while j > 0:
            j = previous[j]
            cuts.append(places[j])
        return cuts[::-1]

    @cached_property
    def tiles(self) -> "list[Tile]":
        """The row in stretches of queries, each with the keys that some of them see."""
        until, tiles, place = self._tree[0], [], np.arange(len(self.depths))
        for start, stop in itertools.pairwise(self._cuts()):
            q = place[start:stop]
            k = np.concatenate((self._before(start), q))
            hidden = ~((k <= q[:, None]) & (q[:, None] < until[k]))
            parts = np.split(k, np.flatnonzero(np.diff(k) != 1) + 1)
            tiles.append(
                Tile(
                    slice(start - self.known, start - self.known + len(q)),
                    [slice(int(part[0]), int(part[-1]) + 1) for part in parts],
                    torch.zeros(hidden.shape)
                    .masked_fill_(torch.from_numpy(hidden), -torch.inf)
                    .to(self.device, non_blocking=True),
                )
            )
        return tiles

    @cached_property
    def calls(self) -> Calls:
        """Of the GPU's kernels; made once per batch."""
        runs = [(max(start, self.known), stop) for start, stop in self.runs if stop > self.known]
        return find_calls(
            [stop - start for start, stop in runs], [self._before(start) for start, _ in runs], self.device
        )


class Trunk:
    """A tree of tokens that is computed row by row, in depth-first order.

    All that a row sees of those before it is the way from the root to its first token: the keys and values on that
    way are kept, and nothing else.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, depths: np.ndarray, following: int, device: torch.device) -> Tensor:
        """Prepares a call of the model with the next tokens of the tree; returns their positions (1, T).

        Args:
            depths: of the tokens, see `Pack`.
            following: depth of the token that comes after them; 0 at the end.
        """
        known = int(depths[0])
        self._pack = Pack(np.concatenate((np.arange(known), depths)), device, known)
        self._keep = torch.from_numpy(self._pack.way[:following]).to(device)
        return self._pack.positions_1T

    def attend(self, layer: int, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, look: Look) -> Tensor:
        """Attends to the way kept and to the row's own tokens. See `Attend`."""
        if self._pack.known:
            k_1GTD, v_1GTD = (torch.cat(x, 2) for x in zip(self._kept[layer], (k_1GTD, v_1GTD), strict=True))
        self._kept[layer] = k_1GTD.index_select(2, self._keep), v_1GTD.index_select(2, self._keep)
        return self._pack.attend(layer, q_1HTD, k_1GTD, v_1GTD, look)


ROWS = 32
"""A sequence is cut into tiles at multiples of so many tokens."""

MOST_ROWS = 256
"""Queries of a tile at most."""

TILE = 5000
"""What a tile costs by itself, in scores: more queries share one product, but more of its scores are hidden."""


class Tile(NamedTuple):
    """Consecutive queries of a row, and what they see."""

    rows: slice
    keys: list[slice]
    """Where the keys lie; together they are S."""
    bias: Tensor
    """(T, S), or (H, T, S): 0 for a key that a query sees, or less, minus infinity for one that it does not."""


class _Tiles(torch.autograd.Function):
    """The attention of a `Pack` in float32 matrix products, tile by tile; keeps query, key and value only.

    At the lengths of instruction samples this takes a fraction of the time of PyTorch's fused CPU kernel, which must be
    called for every sample. R is H / G, the number of queries that share a key.
    """

    @staticmethod
    def forward(ctx: Any, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, tiles: list[Tile], look: Look) -> Tensor:
        ctx.save_for_backward(q_1HTD, k_1GTD, v_1GTD)
        ctx.tiles, ctx.look = tiles, look
        G = k_1GTD.size(1)
        q_GRTD, k_GTD, v_GTD = _widen(q_1HTD, G), _widen(k_1GTD), _widen(v_1GTD)
        y_1HTD = _empty(q_1HTD)
        y_GRTD = y_1HTD[0].unflatten(0, (G, -1))
        with torch.autocast(q_1HTD.device.type, enabled=False):
            for tile in tiles:
                prob, _, values, _ = _probabilities(q_GRTD, k_GTD, v_GTD, tile, look)
                y = y_GRTD[:, :, tile.rows]
                y.copy_((prob @ values).view(y.shape))
        return y_1HTD

    @staticmethod
    def backward(ctx: Any, dy_1HTD: Tensor) -> tuple[Tensor | None, ...]:
        q_1HTD, k_1GTD, v_1GTD = ctx.saved_tensors
        G, look = k_1GTD.size(1), ctx.look
        q_GRTD, k_GTD, v_GTD, dy_GRTD = _widen(q_1HTD, G), _widen(k_1GTD), _widen(v_1GTD), _widen(dy_1HTD, G)
        dq_1HTD, dk_GTD, dv_GTD = _empty(q_1HTD), torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        dq_GRTD = dq_1HTD[0].unflatten(0, (G, -1))
        for tile in ctx.tiles:
            prob, keys, values, slope = _probabilities(q_GRTD, k_GTD, v_GTD, tile, look)
            q, dy = (x[:, :, tile.rows].flatten(1, 2) for x in (q_GRTD, dy_GRTD))
            dscores = torch.ops.aten._softmax_backward_data(dy @ values.mT, prob, -1, prob.dtype).mul_(look.scale)
            if slope is not None:
                dscores.mul_(slope)
            dq = dq_GRTD[:, :, tile.rows]
            dq.copy_((dscores @ keys).view(dq.shape))
            sizes = [part.stop - part.start for part in tile.keys]
            for total, found in ((dk_GTD, dscores.mT @ q), (dv_GTD, prob.mT @ dy)):
                for part, gradient in zip(tile.keys, found.split(sizes, 1), strict=True):
                    total[:, part] += gradient
        dk_1GTD, dv_1GTD = _empty(k_1GTD).copy_(dk_GTD), _empty(v_1GTD).copy_(dv_GTD)
        return dq_1HTD, dk_1GTD, dv_1GTD, None, None


def _probabilities(
    q_GRTD: Tensor, k_GTD: Tensor, v_GTD: Tensor, tile: Tile, look: Look
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A tile's probabilities (G, R * rows, S), the S keys and values, and with a softcap its slope at every score."""
    keys, values = (
        x[:, tile.keys[0]] if len(tile.keys) == 1 else torch.cat([x[:, part] for part in tile.keys], 1)
        for x in (k_GTD, v_GTD)
    )
    scores = q_GRTD[:, :, tile.rows].flatten(1, 2) @ keys.mT
    scores_GRTS = scores.unflatten(1, (q_GRTD.size(1), -1))
    bias = tile.bias if tile.bias.ndim == 2 else tile.bias.view(scores_GRTS.shape)
    if look.softcap is None:
        torch.add(bias, scores_GRTS, alpha=look.scale, out=scores_GRTS)
        return scores.softmax(-1), keys, values, None
    capped = scores_GRTS.mul_(look.scale / look.softcap).tanh_()
    slope = (1 - capped.square()).view_as(scores)
    return torch.add(bias, capped, alpha=look.softcap).view_as(scores).softmax(-1), keys, values, slope


def _widen(x_1HTD: Tensor, groups: int | None = None) -> Tensor:
    """As (H, T, D), or (G, R, T, D), in at least float32 and contiguous."""
    dtype = torch.promote_types(x_1HTD.dtype, torch.float32)
    x_HTD = torch.empty(x_1HTD.shape[1:], dtype=dtype, device=x_1HTD.device).copy_(x_1HTD[0])
    return x_HTD if groups is None else x_HTD.unflatten(0, (groups, -1))


def _empty(like_1HTD: Tensor) -> Tensor:
    """A tensor of the same shape and type, in memory as (T, H, D), where the next layer reads it."""
    return torch.empty_like(like_1HTD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


class KVCache:
    """Keys and values of the tokens so far, one allocation of exactly the size that is asked for.

    Rows of a batch may stand at positions of their own: a row's slot is its token's position, and a query sees the
    slots up to its own position, so what lies behind (padding of a shorter prompt, or the end of a text that a new one
    replaces) is never seen before it is overwritten. A call with positions depends on no number of the host: it can be
    replayed as a CUDA graph.

    Args:
        length: slots per row, in tokens: prompt and everything to be generated.
    """

    def __init__(
        self, config: Config, batch_size: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (2, config.n_layer, batch_size, config.n_query_groups, length, config.head_size)
        self.config = config
        self.kv_2LBGSD = torch.zeros(shape, device=device, dtype=dtype)
        self.k_LBGSD, self.v_LBGSD = self.kv_2LBGSD
        self.whole, self.number = self, 0
        """The cache of which it is a row, and which."""
        self.used = 0
        """Slots that are filled in every row, while all rows move together; less of them makes it forget the rest."""
        self.length = length
        self.reach = length
        """Slots that a call with positions looks at, as seen from slot 0: more than any of its positions."""
        self.stride = 1
        """A call without positions looks at a multiple of so many slots: kernels on a CPU are compiled for a size."""
        self.common: tuple[Hashable, int] | None = None
        """What stands in how many of the first slots, for `Ragged`: where it is the same, the bits are."""
        self.positions_BT: Tensor | None = None
        self.lengths_B1: Tensor | None = None
        """What `expect` was told, where it matters."""
        self._long: list[bool] = []
        self.expect([length] * batch_size)
        self._scratch: list[Tensor] = []
        """Room for the widened keys and values of a row; that of all rows by themselves."""

    def expect(self, lengths: Sequence[int]) -> None:
        """Says how many tokens each row is to have in the end, by default as many as there is room for.

        LongRoPE turns keys by that (`Config.short_length`). What was turned otherwise is forgotten.
        """
        if (short := self.config.short_length) is None:
            return
        long = [length > short for length in lengths]
        if long != self._long:
            self.used, self._long = 0, long
        self.lengths_B1 = torch.tensor(lengths, device=self.k_LBGSD.device)[:, None]

    def sibling(self, rows: Sequence[int], length: int) -> "KVCache":
        """An empty cache of another length for what is expected of some of the rows."""
        other = KVCache(self.config, len(rows), length, self.k_LBGSD.device, self.k_LBGSD.dtype)
        if self.lengths_B1 is not None:
            other.expect(self.lengths_B1[list(rows), 0].tolist())
        return other

    def row(self, number: int) -> "KVCache":
        """One row, in the same memory, that moves on alone."""
        row = copy.copy(self)
        row.k_LBGSD, row.v_LBGSD = row.kv_2LBGSD = self.kv_2LBGSD[:, :, number : number + 1]
        row.used, row.number = 0, number
        row.lengths_B1 = None if self.lengths_B1 is None else self.lengths_B1[number : number + 1]
        return row

    def fill(self, other: "KVCache", rows_B: Tensor) -> None:
        """Begins every row with the tokens of a row of another cache, (B,) saying which."""
        self.used = other.used
        self.k_LBGSD[..., : self.used, :] = other.k_LBGSD[:, rows_B, :, : self.used]
        self.v_LBGSD[..., : self.used, :] = other.v_LBGSD[:, rows_B, :, : self.used]
        self._long = other._long and [other._long[row] for row in rows_B.tolist()]

    def begin(self, idx_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Prepares a call of the model with these tokens; returns the positions that they take."""
        self.start, self.positions_BT, self._biases = self.used, positions_BT, {}
        if positions_BT is not None:
            self._rows_B1 = torch.arange(self.k_LBGSD.size(1), device=idx_BT.device)[:, None]
            return positions_BT
        self.used += idx_BT.size(1)
        return torch.arange(self.start, self.used, device=idx_BT.device)[None]

    def attend(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, look: Look) -> Tensor:
        """Stores this call's keys and values and attends to all that are visible. See `Attend`."""
        keys, values = self.k_LBGSD[layer], self.v_LBGSD[layer]
        if self.positions_BT is not None:
            end = self.reach
            keys[self._rows_B1, :, self.positions_BT] = k_BGTD.transpose(1, 2).to(keys.dtype)
            values[self._rows_B1, :, self.positions_BT] = v_BGTD.transpose(1, 2).to(values.dtype)
            bias = self._bias(look, self.positions_BT, end, q_BHTD.dtype)
        else:
            end = self.start + q_BHTD.size(2)
            keys[:, :, self.start : end], values[:, :, self.start : end] = k_BGTD, v_BGTD
            if self.start == 0:
                return causal(layer, q_BHTD, k_BGTD, v_BGTD, look)
            bias, used = None, end
            end = min(-(-end // self.stride) * self.stride, self.length)
            if end > self.start + 1 or not look.plain(end):
                positions_1T = torch.arange(self.start, used, device=keys.device)[None]
                bias = self._bias(look, positions_1T, end, q_BHTD.dtype)
        keys, values = keys[:, :, :end], values[:, :, :end]
        single = q_BHTD.size(2) == 1 == len(q_BHTD) and q_BHTD.size(1) == keys.size(1)
        if single and keys.element_size() == 2 and not keys.is_cuda and not torch.compiler.is_compiling():
            keys, values = self.widened(layer, 0, end)  # takes half the time of kernels that widen inside
        return sdpa(q_BHTD.to(keys.dtype), keys, values, look, bias).to(q_BHTD.dtype)

    def widened(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The keys and values of some slots of one row, (1, G, S, D) each, in float32, until the next call."""
        kv_21GSD = self.kv_2LBGSD[:, layer, :, :, start:end]
        if kv_21GSD.dtype != torch.float32:
            if not self._scratch:
                shape = (2, 1, kv_21GSD.size(2), self.length, kv_21GSD.size(4))
                self._scratch.append(torch.empty(shape, device=kv_21GSD.device))
            kv_21GSD = self._scratch[0][:, :, :, : end - start].copy_(kv_21GSD)
        return kv_21GSD.unbind()

    def _bias(self, look: Look, positions_BT: Tensor, end: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of the slots, (B, 1 or H, T, S); once per call for all layers that look alike."""
        if look not in self._biases:
            places = torch.arange(end, device=positions_BT.device)
            bias = look.bias(positions_BT[:, :, None], places)  # (B, T, S) or (H, B, T, S)
            self._biases[look] = (bias[:, None] if bias.ndim == 3 else bias.transpose(0, 1)).to(dtype)
        return self._biases[look]


class Ragged:
    """Tokens of several sequences behind each other in one row, each with a cache of its own.

    What a sequence's attention gives depends on nothing but the sequence, to the bit, whoever is beside it. On a CPU a
    single token looks at the beginning that its cache has in common with others, and at the rest, in two calls, in
    float32. Those who have the same `common` look at it together.

    Args:
        parts: the caches, and how many tokens in turn are theirs; what comes after them belongs to nobody.
        together: numbers of tokens, ascending, that may look together: with each of them one gets the same bits.
    """

    def __init__(self, parts: Sequence[tuple[KVCache, int]], together: Sequence[int] = (1,)) -> None:
        self.together = together
        starts = itertools.accumulate((size for _, size in parts), initial=0)
        self.parts = [(start, cache, size) for start, (cache, size) in zip(starts, parts, strict=False)]
        groups: dict[tuple[Hashable, int], list[tuple[int, KVCache]]] = {}
        for start, cache, size in self.parts:
            if size == 1 and cache.common is not None and not cache.k_LBGSD.is_cuda:
                groups.setdefault(cache.common, []).append((start, cache))
        self._whole = parts[0][0].whole
        self._groups = sorted(groups.items(), key=lambda item: item[0][1])
        single = [row for _, group in self._groups for row in group]
        self._places_N, self._rows_N, self._slots_N = (
            torch.tensor([(start, cache.number, cache.used) for start, cache in single], dtype=torch.int64)
            .view(-1, 3)
            .t()
        )

    @property
    def lengths_B1(self) -> Tensor | None:
        """What is expected of the caches, which are rows of one: the same of all."""
        return self.parts[0][1].lengths_B1

    def begin(self, idx_1T: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """See `KVCache.begin`; (1, T)."""
        own = [cache.begin(idx_1T[:, start : start + size], None) for start, cache, size in self.parts]
        more = idx_1T.size(1) - sum(size for _, _, size in self.parts)
        return torch.cat([*own, idx_1T.new_zeros(1, more)], 1)

    def attend(self, layer: int, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, look: Look) -> Tensor:
        """See `Attend`."""
        y_1HTD = _empty(q_1HTD).zero_()
        apart = bool(self._groups) and look.plain(self.parts[0][1].length)
        for start, cache, size in self.parts:
            if not (apart and size == 1 and cache.common is not None):
                part = (slice(None), slice(None), slice(start, start + size))
                y_1HTD[part] = cache.attend(layer, q_1HTD[part], k_1GTD[part], v_1GTD[part], look)
        if apart:
            y_NHD = self._apart(layer, q_1HTD, k_1GTD, v_1GTD, look.scale)
            y_1HTD[0].index_copy_(1, self._places_N, y_NHD.transpose(0, 1).to(y_1HTD.dtype))
        return y_1HTD

    def _apart(self, layer: int, q_1HTD: Tensor, k_1GTD: Tensor, v_1GTD: Tensor, scale: float) -> Tensor:
        """What the N single tokens see, (N, H, D): beginnings and rests, weighed by the sums of their exponentials."""
        N, (H, D), G = len(self._places_N), q_1HTD.shape[1::2], k_1GTD.size(1)
        whole = self._whole
        for x_LBGSD, x_1GTD in ((whole.k_LBGSD, k_1GTD), (whole.v_LBGSD, v_1GTD)):
            x_LBGSD[layer, self._rows_N, :, self._slots_N] = (
                x_1GTD[0, :, self._places_N].transpose(0, 1).to(x_LBGSD.dtype)
            )
        room = -(-(N + self.together[-1]) // 32) * 32  # with a multiple no element is the rest of a kernel's loop
        q_NHD = q_1HTD.new_zeros(room, H, D, dtype=torch.float32)
        q_NHD[:N] = q_1HTD[0, :, self._places_N].transpose(0, 1)
        q_N1GRD = q_NHD.view(room, 1, G, H // G, D)
        rests, first_NHD, first_NH, n = [], torch.zeros_like(q_NHD), q_NHD.new_full((room, H), -torch.inf), 0
        for (_, known), group in self._groups:
            for m, (_, cache) in enumerate(group, n):
                rests.append(weighed(q_N1GRD[m], *cache.widened(layer, known, cache.used), scale))
            end = n + len(group)
            if known:
                keys, values = group[0][1].widened(layer, 0, known)
            while known and n < end:  # what goes beyond the end is overwritten, as those without a beginning come first
                few = next((few for few in self.together if few >= end - n), self.together[-1])
                q_1GMD = q_N1GRD[n : n + few, 0].transpose(0, 1).reshape(1, G, -1, D)
                y_1GMD, sums_1GM = weighed(q_1GMD, keys, values, scale)
                first_NHD[n : n + few] = y_1GMD.view(G, few, -1, D).transpose(0, 1).flatten(1, 2)
                first_NH[n : n + few] = sums_1GM.view(G, few, -1).transpose(0, 1).flatten(1, 2)
                n += few
            n = end
        rest_NHD, rest_NH = torch.zeros_like(first_NHD), torch.zeros_like(first_NH)
        torch.cat([y for y, _ in rests], out=rest_NHD[:N].view(N, G, -1, D))
        torch.cat([sums for _, sums in rests], out=rest_NH[:N].view(N, G, -1))
        return torch.lerp(rest_NHD, first_NHD, torch.sigmoid(first_NH - rest_NH)[..., None])[:N]


def weighed(q_1GMD: Tensor, k_1GSD: Tensor, v_1GSD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of M queries on a CPU, and the logarithms of the sums of their scores' exponentials, (1, G, M)."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q_1GMD, k_1GSD, v_1GSD, 0.0, False, scale=scale)
