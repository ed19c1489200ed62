"""Keys and values of earlier tokens, for generation. Letters as in `lit_gpt.model`."""

import copy
import itertools
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lit_gpt.attention import Look, causal, output_like, sdpa
from lit_gpt.config import Config


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
        y_1HTD = output_like(q_1HTD).zero_()
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
