"""Compiled blocks: tried out at the start of a run, so that it can say what they cost and when they pay."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

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
            fabric.backward(loss_sum(model, batch.to(device)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        optimizer.zero_grad()
        return time.perf_counter() - start

    plain = min(seconds(loose) for _ in range(3))
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
