"""Time and peak memory of a conversion, ours and litgpt's in turn, each as its own process on the same checkpoint.

    python bench/convert.py --checkpoint_dir checkpoints/TinyLlama/TinyLlama-1.1B --litgpt_name tiny-llama-1.1b \
        --litgpt_python ../litgpt/bin/python

The first round warms the disk cache and is not counted. Ours includes waiting for the disk (fsync), litgpt's does not.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def measure(command: list[str], checkpoint: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU and peak memory in GB of a command that converts a fresh copy (links) of `checkpoint`."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        for file in checkpoint.iterdir():
            if not file.name.startswith(("lit_", "model_config")):
                (Path(folder) / file.name).symlink_to(file)
        started = time.perf_counter()
        process = subprocess.Popen(
            [word.replace("FOLDER", folder) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status or not (Path(folder) / "lit_model.pth").exists():
            sys.exit(f"{' '.join(command)} failed:\n{output.decode()}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Prints a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_dir", type=Path, required=True, help="checkpoint in Hugging Face layout")
    parser.add_argument("--litgpt_python", help="Python of an environment with litgpt [ours only]")
    parser.add_argument("--litgpt_name", default="tiny-llama-1.1b", help="litgpt's name of the model")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours = [sys.executable, str(ROOT / "scripts" / "convert_hf_checkpoint.py"), "--checkpoint_dir", "FOLDER"]
    commands = {"lit_gpt": ours}
    if args.litgpt_python:
        litgpt = [args.litgpt_python, "-m", "litgpt", "convert_to_litgpt", "FOLDER", "--model_name", args.litgpt_name]
        commands["litgpt"] = litgpt
    results = {name: [] for name in commands}
    for number in range(args.rounds + 1):
        for name, command in commands.items():
            measured = measure(command, args.checkpoint_dir.resolve())
            if number:
                results[name].append(measured)
            print(f"round {number}: {name} {measured[0]:.2f} s, {measured[2]:.2f} GB", file=sys.stderr)
    size = sum(file.stat().st_size for file in args.checkpoint_dir.glob("*.safetensors"))
    print(f"{args.checkpoint_dir.name}, {size / 1e9:.2f} GB, {os.cpu_count()} cores, {platform.platform()}")
    print(f"{'':10}{'seconds':>10}{'(min-max)':>16}{'CPU s':>10}{'peak GB':>10}")
    medians = {}
    for name, rows in results.items():
        medians[name] = [statistics.median(column) for column in zip(*rows, strict=True)]
        seconds = [row[0] for row in rows]
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(f"{name:10}{medians[name][0]:10.2f}{spread:>16}{medians[name][1]:10.2f}{medians[name][2]:10.2f}")
    if len(medians) == 2:
        time_ratio, cpu_ratio, memory_ratio = (a / b for a, b in zip(*medians.values(), strict=True))
        print(f"{'ratio':10}{time_ratio:10.2f}{'':16}{cpu_ratio:10.2f}{memory_ratio:10.2f}")


if __name__ == "__main__":
    main()
