"""What the peers' workers share: the job, the same samples in the same order, padded, and the loop around a step.

A worker runs in its peer's environment and imports nothing of this project.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is not to be predicted."""

Part = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(ids_BT, labels_BT, mask_BT, targets of the step) -> the batch's share of the step's mean loss, backward done."""


def arguments(doc: str) -> argparse.Namespace:
    """The command line of a worker; `job` is what bench/train.py wrote."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--checkpoint_dir", type=Path, required=True, help="the model, as the peer wants it")
    parser.add_argument("--job", type=lambda path: json.loads(Path(path).read_text()), required=True, help="what to do")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args()
    args.dtype = {"bf16-true": torch.bfloat16, "32-true": torch.float32}[args.job["precision"]]
    torch.manual_seed(args.job["seed"])
    return args


def padded(samples: list[dict[str, list[int]]], size: int, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Micro-batches of `size` samples in their order, each padded to its longest: ids, labels and mask, (B, T)."""
    for first in range(0, len(samples), size):
        chunk = samples[first : first + size]
        width = max(len(sample["ids"]) for sample in chunk)
        ids, labels = torch.zeros(len(chunk), width, dtype=torch.long), torch.full((len(chunk), width), IGNORED)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(chunk):
            length = len(sample["ids"])
            ids[row, :length], labels[row, :length] = torch.tensor(sample["ids"]), torch.tensor(sample["labels"])
            mask[row, :length] = 1
        yield ids.to(device), labels.to(device), mask.to(device)


def train(args: argparse.Namespace, optimizer: Any, parameters: list[Tensor], part: Part, packages: list[str]) -> None:
    """Trains as the job says and writes seconds and loss of every step, peak GPU memory and versions.

    The loss of a step is the mean over its supervised tokens, as in this project, whatever the peer's own script does.
    """
    job, seconds, losses = args.job, [], []
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for samples, rate in zip(job["steps"], job["learning_rates"], strict=True):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate
        targets = sum(label != IGNORED for sample in samples for label in sample["labels"][1:])
        batches = padded(samples, job["micro_batch_size"], job["device"])
        loss = sum(part(*batch, targets).detach() for batch in batches)
        torch.nn.utils.clip_grad_norm_(trained, job["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - started)
        print(f"step {len(losses)}: loss {losses[-1]:.4f}, {seconds[-1]:.3f} s", flush=True)
    result = {
        "seconds": seconds,
        "losses": losses,
        "trainable": sum(parameter.numel() for parameter in trained),
        "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if job["device"] == "cuda" else None,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *packages)},
    }
    args.out.write_text(json.dumps(result))
