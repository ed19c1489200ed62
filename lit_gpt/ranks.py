"""Several processes ("ranks") that train one model together, each on a device of its own.

Each rank computes the gradients of its share of a step's samples, and they are added up before the update: since the
loss of a step is a sum over its tokens, that is the same step on any number of devices. There are two forms.

- Every rank holds all weights. The gradients of what is trained are added up once a step.
- The weights are divided ("sharded", arXiv 2304.11277) where they would not fit otherwise, by Fabric's strategy for
  PyTorch's second FSDP, `fully_shard`: a block's weights are put together when it is computed, and let go again.
  Gradients and the optimizer's state are divided, too, if the base's weights are trained. If it is frozen, what is
  trained beside it is small, and stays whole.

The first FSDP, `FullyShardedDataParallel`, would not do: it joins a block's parameters into one tensor, which has to
have one type, while ours are 16-bit weights and float32 adapters.

What is divided is saved and read so, too (`parted`, `Rows`): no rank ever holds more than its part.

Numbers that lie on the host are exchanged there (gloo), so that the GPU is not waited for.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lit_gpt.model import GPT

BUCKET = 1 << 24
"""Elements of the gradients that are added up at once."""


@dataclass
class Ranks:
    """This process's place among those of a run. Alone, which is the default, it does nothing at all."""

    rank: int = 0
    world: int = 1
    sharded: bool = False
    """Whether the base's weights are divided over the ranks, from `parallelize` on."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that prints and writes files."""
        return self.rank == 0

    def gather(self, *numbers: float) -> list[list[float]]:
        """These numbers of every rank: one row each."""
        if self.world == 1:
            return [list(numbers)]
        rows = torch.empty(self.world, len(numbers), dtype=torch.float64)
        dist.all_gather(list(rows), torch.tensor(numbers, dtype=torch.float64))
        return rows.tolist()

    def wait(self) -> None:
        """Until all are here. (To exchange nothing, they do not wait for each other.)"""
        self.gather(0.0)

    def first(self, number: float) -> float:
        """Rank 0's number: a clock that all go by."""
        return self.gather(number)[0][0]

    def most(self, number: float) -> float:
        """The greatest of all ranks' numbers."""
        return max(row[0] for row in self.gather(number))

    def shared(self, value: Any = None) -> Any:
        """Rank 0's value, which can be anything that pickles."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """This value of every rank; it can be anything that pickles."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def leave(self) -> None:
        """Waits for all, and takes leave of them."""
        if self.world > 1:
            self.wait()
            dist.destroy_process_group()

    def add(self, tensor: Tensor) -> None:
        """Adds up a tensor over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Gives all ranks the values of rank 0: random numbers may differ between kinds of GPUs."""
        if self.world > 1:
            for tensor in tensors:
                if not is_divided(tensor):
                    dist.broadcast(tensor.detach(), 0)

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds up the gradients of the parameters that every rank holds whole; those of divided ones have been."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if not is_divided(p)):
            if parameter.grad is None:  # a rank that had no sample
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) > BUCKET:
                bucket = _add_up(bucket)
        _add_up(bucket)

    def parallelize(self, model: "GPT", mesh: "DeviceMesh") -> "GPT":
        """Divides a model's weights if they are to be: what Fabric's `ModelParallelStrategy` does to set it up."""
        if self.sharded:
            shard(model, mesh["data_parallel"])
        return model

    def share(self, tensors: Iterable[Tensor]) -> tuple[int, int]:
        """Which part of these tensors this rank saves, and of how many: (0, 1) if every rank holds them whole."""
        return (self.rank, self.world) if any(map(is_divided, tensors)) else (0, 1)


def _add_up(gradients: list[Tensor]) -> list[Tensor]:
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))
    return []


def shard(model: "GPT", mesh: "DeviceMesh") -> None:
    """Divides the weights of a model over the ranks; on a GPU there is never more than a block of them whole.

    Args:
        model: with a method attached, on the host.
        mesh: of all ranks; the shards go to their devices.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    trained = {p for p in model.parameters() if p.requires_grad}
    beside = trained if any(not p.requires_grad for p in model.parameters()) else set()
    for parameter in beside:
        parameter.data = parameter.data.to(mesh.device_type)
    for module in (*model.blocks, model):
        fully_shard(
            module, mesh=mesh, ignored_params=beside, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32)
        )
        module.set_gradient_divide_factor(1.0)  # gradients are sums, not means
        module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss_sum")


def is_divided(value: Any) -> bool:
    """Whether a rank holds only a part of it (a `DTensor`)."""
    return hasattr(value, "full_tensor")


def parted(values: Any) -> Any:
    """The values, in dicts and lists, with this rank's rows in place of divided tensors."""
    return tree_map(lambda value: value.to_local() if is_divided(value) else value, values)


def put_together(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors whole, one at a time; all ranks have to take them."""
    for name, tensor in tensors.items():
        yield name, tensor.full_tensor() if is_divided(tensor) else tensor


@dataclass(frozen=True)
class Rows:
    """A tensor whose rows lie in several, one below the other: what so many ranks saved of it."""

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """That of the whole."""
        return torch.Size((sum(map(len, self.parts)), *self.parts[0].shape[1:]))

    def take(self, start: int = 0, stop: int = sys.maxsize) -> Tensor:
        """A copy of the rows from `start` up to `stop`; no others are read."""
        taken = []
        for part in self.parts:
            taken.append(part[max(start, 0) : max(stop, 0)])
            start, stop = start - len(part), stop - len(part)
        return torch.cat(taken)


def joined(trees: list[Any]) -> Any:
    """What the ranks saved (see `parted`) as one, with `Rows`; what has no dimensions is the same in all of them.

    Raises:
        ValueError: they are not of one run.
    """

    def join(first: Any, *others: Any) -> Any:
        return Rows((first, *others)) if isinstance(first, Tensor) and first.dim() else first

    return tree_map(join, *trees) if len(trees) > 1 else trees[0]


def divided(saved: Any, like: Tensor) -> Any:
    """A copy of what was saved, divided as `like` is if it has the shape of that, too.

    Of tensors that are read when they are used, a rank reads its own rows only.
    """
    if not isinstance(saved, Tensor | Rows) or saved.shape != like.shape:
        return saved.clone() if isinstance(saved, Tensor) else saved
    saved = saved if isinstance(saved, Rows) else Rows((saved,))
    if not is_divided(like):
        return saved.take()
    from torch.distributed.tensor import DTensor

    mesh, rows = like.device_mesh, len(like)
    most = -(-rows // mesh.size())  # as `fully_shard` does it: the last ranks may have fewer, or none
    start = min(most * mesh.get_local_rank(), rows)
    own = saved.take(start, min(start + most, rows)).to(like.device)
    return DTensor.from_local(own, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def divide_state(state: dict[str, Any], parameters: list[nn.Parameter]) -> None:
    """Divides a saved optimizer state, in place, as its parameters are."""
    for index, values in state["state"].items():
        state["state"][index] = {key: divided(value, parameters[index]) for key, value in values.items()}
