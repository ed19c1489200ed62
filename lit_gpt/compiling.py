"""Compiled blocks: tried out at the start of a run, so that it can say what they cost and when they pay."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop

from lit_gpt.data.batches import Batch
from lit_gpt.model import GPT
from lit_gpt.settings import UserError
from lit_gpt.train import loss_sum
from lit_gpt.workload import Workload

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def compile_blocks(
    fabric: "Fabric", model: GPT, gpt: GPT, optimizer: torch.optim.Optimizer, work: Workload, say: Callable[[str], None]
) -> None:
    """Compiles the blocks of `gpt`, tries them on some packs, and says what that took and when it pays.

    Args:
        model: `gpt` as Fabric set it up.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    say("Compiling the blocks ...")
    device = fabric.device
    fixed, loose = work.trial()

    def seconds(batches: list[Batch]) -> float:
        start = time.perf_counter()
        for batch in batches:
            with fabric.autocast():
                loss = loss_sum(model, batch.to(device))
            if torch.is_grad_enabled():
                fabric.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        optimizer.zero_grad()
        return time.perf_counter() - start

    def plain_seconds() -> float:
        """Keeps no more than a compiled step does: blocks are recomputed whole, and what that takes is taken off.

        A batch that is to be recomputed in part counts as one that is recomputed whole.
        """
        kept = [replace(batch, **_first_target(batch)) for batch in loose if not batch.recompute]
        whole = [replace(batch, recompute=2 * len(gpt.blocks)) for batch in loose]
        with set_checkpoint_early_stop(False):
            recomputed = min(seconds(whole) for _ in range(3))
        with torch.no_grad():
            return recomputed - min(seconds(kept) for _ in range(2))

    plain = plain_seconds()
    gpt.compile_blocks()
    try:
        first = seconds(fixed)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--compile: {type(error).__name__}: {reason}; it needs a C++ compiler such as g++ "
            "(and Triton on a GPU): install it, or leave --compile out"
        ) from error
    compiled = min(seconds(fixed) for _ in range(2))
    cost = first - compiled
    mean_fixed, mean_loose = work.step_tokens
    compiled *= mean_fixed / sum(batch.idx_BT.numel() for batch in fixed)
    plain *= mean_loose / sum(batch.idx_BT.numel() for batch in loose)
    saved = plain - compiled
    say(
        f"Compiled in {cost:.0f} s. A step takes about {compiled:.2f} s, without --compile {plain:.2f} s: "
        + (f"it pays after {cost / saved:,.0f} steps" if saved > 0 else "it does not pay here")
    )


def _first_target(batch: Batch) -> dict[str, Tensor | None]:
    """The batch's targets without all but one, so that its forward pass is that of the blocks."""
    weights_N = None if batch.weights_N is None else batch.weights_N[:1]
    return {"places_N": batch.places_N[:1], "labels_N": batch.labels_N[:1], "weights_N": weights_N}
