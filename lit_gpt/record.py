"""What a run is and what it was made with: for `run.json`, and to know it again when it goes on."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_gpt.checkpoint import base_identity, prove_weights
from lit_gpt.config import Config
from lit_gpt.data.dataset import TokenDataset
from lit_gpt.methods import Method, describe
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lit_gpt.finetune import Finetune

ROUNDING = ("pack_length", "share_prefix", "memory_gb", "low_memory", "compile", "devices", "num_nodes", "shard")
"""Settings that may change when a run goes on: the mathematics stays, the order of sums and of random draws may not."""

FREE = ("checkpoint_dir", "data_dir", "out_dir", "resume", "keep_last", "save_interval", "log_interval", "loggers")
FREE += ("eval_prompt", "eval_max_new_tokens", "max_time", "early_stop_patience", "dry_run", "deterministic")
"""Settings that may change, too: what is trained does not depend on them, or (folders) their content is compared."""


def describe_run(
    settings: "Finetune", method: Method, config: Config, splits: dict[str, TokenDataset], device: torch.device
) -> dict[str, Any]:
    """What one needs to know to judge, repeat or continue a run, as plain values."""
    packages = ("torch", "lightning", "sentencepiece", "tokenizers", "bitsandbytes")
    meta = splits["train"].meta
    return {
        "command": command_line(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "method": describe(method),
        "base": base_identity(settings.checkpoint_dir)
        | {"content": prove_weights(settings.checkpoint_dir), "config": config.to_dict()},
        "data": {key: meta.get(key) for key in ("name", "tokenizer", "sources", "licence", "prompt_style")}
        | {f"{split}.pt": dataset.digest for split, dataset in splits.items()},
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
    }


def refuse_another(place: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the description that stands at `place` with that of the run that is to go on.

    Raises:
        UserError: it is another run; with the list of the differences.
    """
    if found := differences(identity(then), identity(now)):
        raise UserError(
            f"{place} is of another run: {'; '.join(found)}; go on with what it had, choose another --out_dir, or "
            "replace it with --resume never"
        )


def note_rounding(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Prints what differs between two descriptions of one run and is allowed to, but has its effect on the bits."""
    if found := differences(_numerics(then), _numerics(now)):
        print(f"note: {'; '.join(found)}: sums are rounded, and dropout is drawn, in another order", flush=True)


def differences(then: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """What differs between two dicts of plain values, as "learning_rate was 0.0003, is 0.0001"."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key} ")
        elif a != b:
            found.append(f"{path}{key} was {_short(a)}, is {_short(b)}")
    return found


def identity(told: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same, of a description."""
    settings = {k: v for k, v in told.get("settings", {}).items() if k not in FREE + ROUNDING}
    data = {f"data {k}": v for k, v in told.get("data", {}).items() if k.endswith(".pt")}
    method = {k: v for k, v in told.get("method", {}).items() if k != "name"}
    base = {f"base {k}": v for k, v in told.get("base", {}).items() if k != "checkpoint_dir"}
    return {**settings, **method, **data, **base, "method": told.get("method", {}).get("name")}


def _numerics(told: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs may differ in by rounding."""
    settings = {k: v for k, v in told.get("settings", {}).items() if k in ROUNDING}
    return {
        **settings,
        "torch": told.get("versions", {}).get("torch"),
        **{k: told.get(k) for k in ("hardware", "threads", "commit")},
    }


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def command_line(without: str = "") -> str:
    """The command that this process was started with, less a flag and its value."""
    program, *flags = sys.argv
    if without in flags:
        place = flags.index(without)
        del flags[place : place + 2]
    flags = [flag for flag in flags if not (without and flag.startswith(f"{without}="))]
    words = ["python", program] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*words, *flags])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this code, marked if files were changed since; None outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
