"""Packs: several sequences in one row, as a tree of tokens. Letters as in `lit_gpt.model`."""

import itertools
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.attention import Look, output_like
from lit_gpt.flash import Calls, find_calls, flash, has_kernel


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
        y_1HTD = output_like(q_1HTD)
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
        dq_1HTD, dk_GTD, dv_GTD = output_like(q_1HTD), torch.zeros_like(k_GTD), torch.zeros_like(v_GTD)
        dq_GRTD = dq_1HTD[0].unflatten(0, (G, -1))
        with torch.autocast(q_1HTD.device.type, enabled=False):
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
        dk_1GTD, dv_1GTD = output_like(k_1GTD).copy_(dk_GTD), output_like(v_1GTD).copy_(dv_GTD)
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
