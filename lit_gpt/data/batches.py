"""Which samples a step trains on, and as which tensors.

The samples of step s are a function of the seed and of s alone, so that a run can be continued or repeated anywhere:
the data set is shuffled anew for every epoch and read without replacement, `batch_size` samples per step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lit_gpt.data.dataset import TokenDataset

IGNORE = -1
"""Label of a position that no loss is asked of."""


@dataclass
class MicroBatch:
    """Samples of one forward pass, padded at the end to the longest.

    idx_BT: token ids; labels_BT: the token that follows each, `IGNORE` where it is not supervised.
    """

    idx_BT: Tensor
    labels_BT: Tensor
    targets: int
    """Supervised positions."""
    tokens: int
    """Real tokens of the samples: no padding, the last one included."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device; the copy does not wait when the memory is pinned."""
        if device.type == "cuda":
            self.idx_BT, self.labels_BT = self.idx_BT.pin_memory(), self.labels_BT.pin_memory()
        move = {"device": device, "non_blocking": True}
        return MicroBatch(self.idx_BT.to(**move), self.labels_BT.to(**move), self.targets, self.tokens)


def collate(dataset: "TokenDataset", samples: list[int], max_length: int) -> MicroBatch:
    """Pads samples into one batch; one that is longer than `max_length` keeps its first tokens and its last (EOS)."""
    pairs = [(dataset.ids(i), dataset.supervised(i)) for i in samples]
    pairs = [(_cut(ids, max_length), _cut(on, max_length)) for ids, on in pairs]
    longest = max(len(ids) for ids, _ in pairs)
    idx_BT = torch.zeros(len(pairs), longest - 1, dtype=torch.int64)
    labels_BT = torch.full_like(idx_BT, IGNORE)
    for row, (ids, on) in enumerate(pairs):
        idx_BT[row, : len(ids) - 1] = ids[:-1]
        labels_BT[row, : len(ids) - 1] = torch.where(on[1:], ids[1:], IGNORE)
    tokens = sum(len(ids) for ids, _ in pairs)
    return MicroBatch(idx_BT, labels_BT, int((labels_BT != IGNORE).sum()), tokens)


def collate_all(dataset: "TokenDataset", samples: list[int], size: int, max_length: int) -> list[MicroBatch]:
    """Samples in the given order as micro-batches of `size`."""
    return [collate(dataset, samples[first : first + size], max_length) for first in range(0, len(samples), size)]


def _cut(x_T: Tensor, max_length: int) -> Tensor:
    return x_T if len(x_T) <= max_length else torch.cat((x_T[: max_length - 1], x_T[-1:]))


class Batches:
    """The training samples as steps of micro-batches.

    Within a step the samples are ordered by length, longest first: the step's loss is a sum over its tokens, so the
    order is free, and similar lengths need little padding. The first step holds the longest sample of all, so that
    running out of memory shows at once.

    Args:
        samples: indices into the data set to be used.
        batch_size: samples of one step.
        micro_batch_size: samples of one forward pass.
        max_length: tokens; see `collate`.
    """

    def __init__(
        self,
        dataset: "TokenDataset",
        samples: list[int],
        batch_size: int,
        micro_batch_size: int,
        max_length: int,
        seed: int,
    ) -> None:
        self.dataset, self.samples, self.seed = dataset, samples, seed
        self.batch_size, self.micro_batch_size, self.max_length = batch_size, micro_batch_size, max_length
        self._order: tuple[int, list[int]] = (-1, [])

    def steps(self, epochs: int) -> int:
        """Steps that `epochs` passes over the samples take; the last one may be smaller."""
        return -(-epochs * len(self.samples) // self.batch_size)

    def step_samples(self, step: int, limit: int | None = None) -> list[int]:
        """The samples of a step, longest first; `limit` is the number of samples of the whole run."""
        first = step * self.batch_size
        last = min(first + self.batch_size, limit) if limit is not None else first + self.batch_size
        n = len(self.samples)
        chosen = [self._shuffled(place // n)[place % n] for place in range(first, last)]
        return sorted(chosen, key=lambda i: -int(self.dataset.lengths[i]))

    def step(self, step: int, limit: int | None = None) -> list[MicroBatch]:
        """The micro-batches of a step."""
        return collate_all(self.dataset, self.step_samples(step, limit), self.micro_batch_size, self.max_length)

    def _shuffled(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = [self.samples[i] for i in torch.randperm(len(self.samples), generator=generator).tolist()]
            if epoch == 0:
                longest = max(range(len(order)), key=lambda place: int(self.dataset.lengths[order[place]]))
                order[0], order[longest] = order[longest], order[0]
            self._order = (epoch, order)
        return self._order[1]


def validation_batches(dataset: "TokenDataset", count: int, micro_batch_size: int, max_length: int) -> list[MicroBatch]:
    """The first `count` samples of a split as micro-batches of similar lengths: the same ones at every validation."""
    chosen = sorted(range(min(count, len(dataset))), key=lambda i: -int(dataset.lengths[i]))
    return collate_all(dataset, chosen, micro_batch_size, max_length)
