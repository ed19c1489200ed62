"""What `--dry_run` tries after the plan: whether the data are sound, the largest pack fits, and it can be saved."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lit_gpt import optim
from lit_gpt.checkpoint import save_finetuned
from lit_gpt.data.batches import Batch
from lit_gpt.data.checks import check
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.data.inspection import duration_text
from lit_gpt.memory import memory_error_explained
from lit_gpt.methods import Method, file_of
from lit_gpt.model import GPT
from lit_gpt.runlog import peak_memory_gb
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.train import train
from lit_gpt.workload import ENDLESS, LOOK_AHEAD, Workload

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from lit_gpt.finetune import Finetune

MEASURED = 8
"""Steps whose tokens are counted for the time of a step."""


def check_data(splits: dict[str, TokenDataset], tokenizer: Tokenizer, place: Path) -> None:
    """Prints what the data are like.

    Raises:
        UserError: they would spoil the run.
    """
    found = check(splits, tokenizer, None)  # what is too long was asked about before
    for label, text in found.lines().items():
        print(f"{label:11}{text}")
    if found.problems:
        raise UserError(f"{place} would spoil the run: {'; '.join(found.problems)}")


@dataclass
class _Same:
    """The same batch in every step."""

    batch: Batch

    def step(self, step: int, samples: int) -> list[Batch]:
        return [self.batch]


def rehearse(fabric: "Fabric", settings: "Finetune", method: Method, model: GPT, work: Workload) -> None:
    """Trains on the largest pack of the next steps, twice, saves what was trained and removes it again; prints what
    that takes, and when the run would be finished.

    Args:
        model: with the method attached, in training mode.
    """
    s, device = settings, fabric.device
    options = (s.optimizer, s.learning_rate, s.weight_decay, s.precision != "16-mixed")
    wrapped, optimizer = fabric.setup(model, optim.build(model, method, *options), move_to_device=False)
    steps = [work.batches.step(step, work.samples) for step in range(min(work.steps, LOOK_AHEAD))]
    largest = max((batch for batches in steps for batch in batches), key=lambda batch: batch.idx_BT.numel())
    tokens = largest.idx_BT.numel()
    ends = [time.monotonic()]

    def after_step(step: int, loss: Tensor, tokens: int, rate: float) -> bool:
        loss.item()  # waits for the device
        ends.append(time.monotonic())
        return False

    train(
        fabric,
        wrapped,
        optimizer,
        _Same(largest),
        steps=2,  # the first one prepares what the others find ready
        samples=work.samples,
        seed=s.seed,
        schedule=lambda step: s.learning_rate,
        max_norm=s.clip_norm,
        guard=lambda batch: memory_error_explained(lambda: f" in the largest pack; {work.advice(batch)}"),
        after_step=after_step,
    )
    seconds = ends[2] - ends[1]
    counted = steps[:MEASURED]
    per_step = seconds * sum(batch.idx_BT.numel() for step in counted for batch in step) / len(counted) / tokens
    home = next(folder for folder in (s.out_dir, *s.out_dir.absolute().parents) if folder.is_dir())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=home) as folder:
        path = Path(folder, file_of(method.name))
        save_finetuned(path, model, method, {})
        size = path.stat().st_size
    saving = time.monotonic() - began
    memory = peak_memory_gb(device)
    print(f"memory     {memory:.2f} GB with the largest pack, {tokens:,} tokens; planned {work.planned_gb:.2f} GB")
    print(f"step       about {per_step:.2f} s, by {seconds:.2f} s for that pack")
    print(f"save       {size / 1e6:.1f} MB in {saving:.2f} s, removed again")
    if work.steps == ENDLESS:
        print(f"end        after {s.max_time}, about {s.time_limit / per_step:,.0f} steps")
        return
    total = work.steps * per_step + work.steps // s.save_interval * saving
    at = time.strftime("%a %H:%M", time.localtime(time.time() + min(total, 1e9)))
    print(f"end        {work.steps:,} steps take about {duration_text(total)}, until {at}; validations come on top")
