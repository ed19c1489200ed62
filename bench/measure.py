"""What the benchmarks share: processes that are watched, the machine in words, Markdown tables and where they go."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lit_gpt.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def run(command: list[Any], device: str, log: Path, extra: dict[str, str] | None = None) -> dict[str, float]:
    """Runs a command; gives the peak of its resident memory in GB, and the others' share of the processors meanwhile.

    Raises:
        RuntimeError: it failed; ends with what it said last.
    """
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    for name, path in (extra or {}).items():  # in front of what is there
        environment[name] = os.pathsep.join([path, *filter(None, [os.environ.get(name)])])
    started, busy = time.perf_counter(), busy_seconds()
    with open(log, "w") as output:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text().strip().splitlines() or ["it said nothing"]
        say("\n".join(lines[-20:]))
        raise RuntimeError(f"exit code {process.returncode}: {lines[-1]}")
    others = busy_seconds() - busy - usage.ru_utime - usage.ru_stime
    share = others / (time.perf_counter() - started) / os.cpu_count()
    return {"memory_gb": usage.ru_maxrss * 1024 / 1e9, "others": max(0.0, share)}


def busy_seconds() -> float:
    """Seconds that all processors together have worked, for whomever, since the machine started (Linux)."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def hardware(device: str) -> str:
    """The device in words; of a processor also whether it multiplies 16-bit matrices in hardware (AMX)."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        known = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in known.items()}
        name = known["model name"] + ("" if "amx_bf16" not in known["flags"].split() else " with AMX")
    except (OSError, KeyError):
        name = platform.processor() or platform.machine()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{name}, {os.cpu_count()} cores{f', ONEDNN_MAX_CPU_ISA={limit}' if limit else ''}"


def commit() -> str:
    """This code's commit, marked if files were changed since; of a copy without history, what COMMIT says."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or os.environ.get("COMMIT", "unknown")


def markdown(heads: list[Any], rows: list[list[str]]) -> str:
    """A table: the first column to the left, numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_section(path: Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- NAME --> and <!-- /NAME --> in a file."""
    before, opening, rest = path.read_text().partition(f"<!-- {name} -->")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        sys.exit(f"error: {path} has no <!-- {name} --> ... <!-- /{name} -->; add the two lines")
    write_text(path, f"{before}{opening}\n{text}\n{closing}{after}")


def litgpt_checkpoint(python: str, checkpoint_dir: Path, name: str, scratch: Path) -> Path:
    """The checkpoint in litgpt's own format, converted by litgpt from links to the files."""
    folder = scratch / name
    folder.mkdir()
    for file in checkpoint_dir.resolve().iterdir():
        if not file.name.startswith("lit_"):
            (folder / file.name).symlink_to(file)
    command = [python, "-m", "litgpt", "convert_to_litgpt", folder, "--model_name", name]
    run(command, "cpu", scratch / "convert.log")
    return folder
