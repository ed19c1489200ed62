"""The one training loop.

The loss of a step is the sum of the cross-entropies of its supervised tokens divided by their number, however the
samples are spread over batches and devices: gradients of 8 x 1 equal those of 1 x 8, and packed ones equal padded ones.
"""

import contextlib
import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_gpt.data.batches import Batch, Batches, filler
from lit_gpt.model import GPT
from lit_gpt.ranks import Ranks
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ALONE = Ranks()
Guard = Callable[[Batch], contextlib.AbstractContextManager[None]]


def loss_sum(model: GPT, batch: Batch) -> Tensor:
    """Sum of the cross-entropies, in nats, of a batch's supervised tokens."""
    targets = (batch.places_N, batch.labels_N, batch.weights_N)
    return model.loss_sum(batch.idx_BT, batch.pack, *targets, recompute=batch.recompute)


def together(ranks: Ranks, parts: list[Batch]) -> tuple[list[Batch], int, int]:
    """This rank's batches, and the supervised and real tokens of all ranks' batches.

    Divided weights are put together by all ranks at once, so all make equally many passes: who has fewer batches gets
    some that count nothing.
    """
    rows = ranks.gather(len(parts), sum(batch.targets for batch in parts), sum(batch.tokens for batch in parts))
    passes, targets, tokens = zip(*rows, strict=True)
    missing = int(max(passes)) - len(parts) if ranks.sharded else 0
    return parts + [filler() for _ in range(missing)], int(sum(targets)), int(sum(tokens))


def learning_rate(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    """Linear warm-up to `peak` over the first `warmup` steps, then half a cosine down to `end` at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup + 1) / max(1, steps - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    fabric: "Fabric",
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    start: int = 0,
    steps: int,
    samples: int,
    seed: int,
    schedule: Callable[[int], float],
    max_norm: float | None,
    guard: Guard = lambda batch: contextlib.nullcontext(),
    after_batch: Callable[[], None] = lambda: None,
    after_step: Callable[[int, Tensor, int, float], bool],
    ranks: Ranks = ALONE,
) -> int:
    """Trains until `steps` are done or `after_step` says stop.

    Args:
        fabric: a launched `lightning.Fabric`; `model` and `optimizer` are set up with it.
        start: steps that are done.
        samples: samples of the whole run; the last step may be smaller than a batch.
        seed: with the step it decides what a step draws, so that a run can be continued anywhere.
        schedule: step -> learning rate.
        max_norm: gradients are scaled down to this norm; None: never.
        guard: the context in which a batch is computed.
        after_batch: called when a batch's gradients are there.
        after_step: called with (steps done, mean loss of the step, real tokens of the step, learning rate); the loss
            is a tensor, so that only who reads it waits for the device. True stops the run; on all ranks, or on none.
        ranks: the processes that share each step's samples; `batches` are those of this one.

    Returns:
        The steps done.
    """
    for step in range(start, steps):
        torch.manual_seed(zlib.crc32(f"{seed} {step}{f' {ranks.rank}' if ranks.rank else ''}".encode()))
        rate = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        parts, targets, tokens = together(ranks, batches.step(step, samples))
        if targets == 0:
            print(f"warning: step {step + 1} is skipped, none of its samples has a supervised token", flush=True)
            continue
        loss = torch.zeros((), device=fabric.device, dtype=torch.float64)
        for batch in parts:
            with guard(batch):
                with fabric.autocast():  # Fabric itself does it for a model's `forward` only
                    part = loss_sum(model, batch.to(fabric.device)) / targets
                fabric.backward(part)
            loss += part.detach()
            after_batch()
        ranks.add(loss)
        ranks.add_gradients(optimizer)
        if max_norm is not None:
            fabric.clip_gradients(model, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        if after_step(step + 1, loss, tokens, rate):
            return step + 1
    return steps


@torch.no_grad()
def validate(
    model: GPT,
    batches: list[Batch],
    device: torch.device,
    guard: Guard = lambda batch: contextlib.nullcontext(),
    ranks: Ranks = ALONE,
) -> float:
    """Mean cross-entropy, in nats, over the supervised tokens of the batches, in evaluation mode.

    `guard` and `ranks`: see `train`.

    Raises:
        UserError: none of the tokens is supervised.
    """
    training = model.training
    model.eval()
    total = torch.zeros((), device=device, dtype=torch.float64)
    parts, targets, _ = together(ranks, batches)
    for batch in parts:
        with guard(batch):
            total += loss_sum(model, batch.to(device))
    ranks.add(total)
    model.train(training)
    if targets == 0:
        raise UserError("the validation samples have no supervised token; prepare the data again")
    return total.item() / targets
