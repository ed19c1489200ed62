"""Which samples a step trains on, and as which tensors.

The samples of step s are a function of the seed and of s alone, so that a run can be continued or repeated anywhere:
the data set is shuffled anew for every epoch and read without replacement, `batch_size` samples per step.

A step's loss is a sum over its supervised tokens, so its samples may be ordered, padded or packed in any way. Packed,
they stand one after the other in rows of about `pack_length` tokens without padding, and what samples of a pack have in
common at their beginning (a prompt template, and perhaps more) stands there once.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.encode import shortened
from lit_gpt.packs import Pack

if TYPE_CHECKING:
    from lit_gpt.data.dataset import TokenDataset

ROUND = 64
"""Packs are filled up to a multiple of this many tokens, and of targets that count nothing: a GPU's allocator should
see few sizes."""

CPU_ROUND = 16
"""The same on a CPU. There matrix products are compiled for their shapes, but in less time than more filling takes."""


@dataclass
class Batch:
    """The tokens of one forward pass and what is asked of it.

    A target is a pair of a place and the token that is to be predicted there; places count through the rows of
    `idx_BT`. Where samples share tokens, a pair that several of them have stands once with their number as weight.
    """

    idx_BT: Tensor
    pack: Pack | None
    """How the row is made up; None: every row is one sample, padded at its end."""
    places_N: Tensor
    labels_N: Tensor
    weights_N: Tensor | None
    """None: every target counts once."""
    targets: int
    """Supervised tokens: the sum of the weights."""
    tokens: int
    """Real tokens of the samples: no padding, all that is shared counted for each, the last one included."""
    samples: list[int]
    recompute: int = 0
    """How much of the blocks the backward pass computes again, for lack of memory; see `GPT.hidden`."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; on a GPU the copy does not wait."""

        def move(x: Tensor | None) -> Tensor | None:
            if x is None or device.type == "cpu":
                return x
            return x.pin_memory().to(device, non_blocking=True)

        pack = self.pack and Pack(self.pack.depths, device)
        tensors = (move(self.places_N), move(self.labels_N), move(self.weights_N))
        return Batch(move(self.idx_BT), pack, *tensors, self.targets, self.tokens, self.samples, self.recompute)


Sample = tuple[int, np.ndarray, np.ndarray]
"""Its index, its ids, and which of them are supervised."""


def read(dataset: "TokenDataset", samples: list[int], max_length: int) -> list[Sample]:
    """Reads samples; of one with more than `max_length` tokens an answer is cut, see `encode.shortened`.

    Where no answer fits, its first tokens are left, of which none is learnt.
    """

    def cut(ids: np.ndarray, on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(ids) <= max_length:
            return ids, on
        kept, marks = map(np.array, shortened(ids.tolist(), on.tolist(), max_length))
        return (kept, marks) if len(kept) else (ids[:max_length], np.zeros(max_length, dtype=bool))

    return [(i, *cut(dataset.ids(i).numpy(), dataset.supervised(i).numpy())) for i in samples]


def pad(samples: list[Sample]) -> Batch:
    """One sample per row, padded to the longest."""
    width = max(len(ids) for _, ids, _ in samples) - 1  # nothing follows the last token: it is a label only
    idx_BT = np.zeros((len(samples), width), dtype=np.int64)
    places, labels = [], []
    for row, (_, ids, on) in enumerate(samples):
        idx_BT[row, : len(ids) - 1] = ids[:-1]
        targets = np.flatnonzero(on[1:])
        places.append(row * width + targets)
        labels.append(ids[1:][targets])
    places_N, labels_N = (torch.from_numpy(np.concatenate(x)) for x in (places, labels))
    tokens = sum(len(ids) for _, ids, _ in samples)
    indices = [i for i, _, _ in samples]
    return Batch(torch.from_numpy(idx_BT), None, places_N, labels_N, None, len(labels_N), tokens, indices)


def pack(samples: list[Sample], share: bool = True, multiple: int = ROUND) -> Batch:
    """All samples in one row, filled up to a multiple of so many tokens.

    Args:
        samples: in an order in which those that begin alike are neighbours.
        share: what a sample has in common with the one before it is not laid out again.
    """
    row: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    width = 0

    def lay(ids: np.ndarray, known: int = 0) -> None:
        nonlocal width
        row.append(ids[known:])
        depths.append(np.arange(known, len(ids)))
        width += len(ids) - known

    way = np.zeros(max(len(ids) for _, ids, _ in samples), dtype=np.int64)  # where the last sample's tokens stand
    before = np.zeros(0)
    targets = []
    for _, ids, on in samples:
        own = ids[:-1]  # nothing follows the last token: it is a label only
        known = in_common(before, own) if share else 0
        way[known : len(own)] = np.arange(width, width + len(own) - known)
        lay(own, known)
        asked = np.flatnonzero(on[1:])
        targets.append(np.stack((way[asked], ids[asked + 1]), 1))
        before = own
    while width % multiple:  # in short pieces: learned positions do not go far
        lay(np.zeros(min(ROUND, multiple - width % multiple), dtype=np.int64))
    pairs, counts = np.unique(np.concatenate(targets), axis=0, return_counts=True)
    more = -len(pairs) % multiple if len(pairs) else multiple
    places_N, labels_N = torch.from_numpy(np.pad(pairs, ((0, more), (0, 0)))).T.contiguous()
    weights_N = torch.from_numpy(np.pad(counts, (0, more))).float()
    layout = Pack(np.concatenate(depths), torch.device("cpu"))
    tokens, indices = sum(len(ids) for _, ids, _ in samples), [i for i, _, _ in samples]
    idx_BT = torch.from_numpy(np.concatenate(row))[None]
    return Batch(idx_BT, layout, places_N, labels_N, weights_N, int(counts.sum()), tokens, indices)


def filler() -> Batch:
    """A batch that counts nothing, for a rank that has fewer batches than another."""
    idx_BT, zeros_N = torch.zeros(1, ROUND, dtype=torch.int64), torch.zeros(ROUND, dtype=torch.int64)
    return Batch(idx_BT, Pack(np.arange(ROUND), torch.device("cpu")), zeros_N, zeros_N, zeros_N.float(), 0, 0, [])


def in_common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens at their beginning two sequences have in common."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def fill_packs(samples: list[Sample], pack_length: int, share: bool = True) -> list[list[Sample]]:
    """Distributes samples over packs by first fit, the longest first; one that is longer has a pack of its own.

    A sample takes no room for what it has in common with a sample of the pack, if they are to share it. Of the packs
    that have room it goes to the one where it takes least. In a pack samples are in the order of their tokens, so
    that what any two have in common, all between them have.
    """
    packs: list[list[tuple[bytes, Sample]]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample[1])):
        own = sample[1][:-1]
        order = own.astype(">u4").tobytes()
        fits = []
        for p, held in enumerate(packs):
            place = bisect.bisect(held, order, key=lambda item: item[0])
            near = [ids[:-1] for _, (_, ids, _) in held[max(0, place - 1) : place + 1]] if share else []
            cost = len(own) - max((in_common(ids, own) for ids in near), default=0)
            if cost <= room[p]:
                fits.append((cost, p, place))
        if not fits:
            fits.append((len(own), len(packs), 0))
            packs.append([])
            room.append(pack_length)
        cost, p, place = min(fits)
        room[p] -= cost
        packs[p].insert(place, (order, sample))
    return [[sample for _, sample in held] for held in packs]


def share_out(dataset: "TokenDataset", samples: list[int], world: int) -> list[list[int]]:
    """Divides samples over ranks, so that all have about as many tokens: the longest first, each to the emptiest."""
    if world == 1:
        return [samples]
    shares: list[list[int]] = [[] for _ in range(world)]
    tokens = [0] * world
    for i in sorted(samples, key=lambda i: -int(dataset.lengths[i])):
        emptiest = tokens.index(min(tokens))
        shares[emptiest].append(i)
        tokens[emptiest] += int(dataset.lengths[i])
    return shares


@dataclass
class Layout:
    """How samples become batches."""

    micro_batch_size: int = 4
    """Samples of a padded batch."""
    pack_length: int = 0
    """Tokens of a packed row; 0: pad instead."""
    share: bool = True
    """Shared leading tokens stand once in a pack."""
    max_length: int = 1 << 30
    """Longer samples are cut; see `read`."""
    fixed: bool = False
    """All packs are filled up to `pack_length`, or a multiple of it where a sample is longer: one shape to compile."""
    recompute: Callable[[int], int] = lambda tokens: 0
    """`Batch.recompute` of a batch with so many tokens, padding included."""
    short_length: int | None = None
    """Samples longer than this share no batch with others; see `Config.short_length`."""
    multiple: int = ROUND
    """Packs are filled up to a multiple of so many tokens, unless they are `fixed`."""

    def batches(self, dataset: "TokenDataset", samples: list[int]) -> list[Batch]:
        """The samples as batches, the longest sample in the first: running out of memory shows at once."""
        ordered = sorted(samples, key=lambda i: -int(dataset.lengths[i]))
        batches = self._laid_out(read(dataset, ordered, self.max_length))
        for batch in batches:
            batch.recompute = self.recompute(batch.idx_BT.numel())
        return batches

    def _laid_out(self, rows: list[Sample]) -> list[Batch]:
        short = self.short_length or self.max_length
        kinds = [[row for row in rows if (len(row[1]) - 1 > short) is long] for long in (True, False)]
        if not self.pack_length:
            size = self.micro_batch_size
            return [pad(kind[first : first + size]) for kind in kinds for first in range(0, len(kind), size)]
        length = max(ROUND, self.pack_length // ROUND * ROUND)
        packs = [held for kind in kinds for held in fill_packs(kind, length, self.share)]
        return [pack(held, self.share, length if self.fixed else self.multiple) for held in packs]


class Batches:
    """The training samples as steps of batches.

    The first step holds the longest sample of all, so that running out of memory shows at once.

    Args:
        samples: indices into the data set to be used.
        batch_size: samples of one step.
        rank: the number of this process among `world` ones, which divide each step's samples among them.
    """

    def __init__(
        self,
        dataset: "TokenDataset",
        samples: list[int],
        batch_size: int,
        layout: Layout,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.samples, self.seed, self.rank, self.world = dataset, samples, seed, rank, world
        self.batch_size, self.layout = batch_size, layout
        self._order: tuple[int, list[int]] = (-1, [])

    def steps(self, epochs: int) -> int:
        """Steps that `epochs` passes over the samples take; the last one may be smaller."""
        return -(-epochs * len(self.samples) // self.batch_size)

    def step_samples(self, step: int, limit: int | None = None) -> list[int]:
        """The samples of a step; `limit` is the number of samples of the whole run."""
        first = step * self.batch_size
        last = min(first + self.batch_size, limit) if limit is not None else first + self.batch_size
        n = len(self.samples)
        return [self._shuffled(place // n)[place % n] for place in range(first, last)]

    def step(self, step: int, limit: int | None = None) -> list[Batch]:
        """The batches of a step, on this rank."""
        return self.layout.batches(self.dataset, self.shares(step, limit)[self.rank])

    def shares(self, step: int, limit: int | None = None) -> list[list[int]]:
        """The samples of a step, divided over the ranks; see `share_out`."""
        return share_out(self.dataset, self.step_samples(step, limit), self.world)

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = [self.samples[i] for i in torch.randperm(len(self.samples), generator=generator).tolist()]
            if epoch == 0:
                longest = max(range(len(order)), key=lambda place: int(self.dataset.lengths[order[place]]))
                order[0], order[longest] = order[longest], order[0]
            self._order = (epoch, order)
        return self._order[1]
