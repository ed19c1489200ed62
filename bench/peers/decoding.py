"""What the workers of bench/generate.py share: the job, the clock, and the rate at which memory is read.

A worker runs in its peer's environment and imports nothing of this project.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def arguments(doc: str) -> argparse.Namespace:
    """The command line of a worker; `job` is what bench/generate.py wrote."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--job", type=lambda path: json.loads(Path(path).read_text()), required=True, help="what to do")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args()
    torch.manual_seed(args.job["seed"])
    return args


def read_rate(device: str) -> float:
    """Bytes per second at which all threads together read memory: the median of some sums of 1/2 GB (GPU: 8 GB).

    BENCH_READ_MB in the environment is another size, for a rehearsal.
    """
    megabytes = int(os.environ.get("BENCH_READ_MB", 8192 if device == "cuda" else 512))
    x = torch.ones(megabytes << 18, device=device)
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        x.sum()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return x.numel() * x.element_size() / statistics.median(seconds[2:])


def wait(device: str) -> None:
    """Until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    args: argparse.Namespace, generate: Callable[[int], list[list[int]]], weight_bytes: int, packages: list[str]
) -> None:
    """Times a generation of as many tokens as the job asks for and one of a single token, and writes what was found.

    Args:
        generate: continues the job's prompts by so many tokens; gives the new ones of each row.
        weight_bytes: what a step must read.
    """
    job, device = args.job, args.job["device"]
    result: dict[str, Any] = {"weight_bytes": weight_bytes, "prefill_seconds": [], "tokens_per_second": [], "rates": []}
    generate(4)
    wait(device)
    for _ in range(job["repeats"]):
        result["rates"].append(read_rate(device))
        seconds = []
        for count in (1, job["new_tokens"]):
            started = time.perf_counter()
            tokens = generate(count)
            wait(device)
            seconds.append(time.perf_counter() - started)
            assert [len(row) for row in tokens] == [count] * job["batch_size"], "it stopped early"
        result["prefill_seconds"].append(seconds[0])
        result["tokens_per_second"].append(job["batch_size"] * (job["new_tokens"] - 1) / (seconds[1] - seconds[0]))
        result["rates"].append(read_rate(device))
    result["tokens"] = tokens
    result["memory_gb"] = (
        torch.cuda.max_memory_allocated() / 1e9
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    )
    result["versions"] = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    args.out.write_text(json.dumps(result))
