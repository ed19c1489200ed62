"""Turns a checkpoint in Hugging Face layout into ours: `lit_model.pth`, and `lit_config.json` that describes it."""

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.config import Config
from lit_gpt.files import atomic, read_json, sealed, size_text
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Convert:
    """Which checkpoint to convert, and to what."""

    checkpoint_dir: Path
    """Folder with config.json and weights as downloaded; gets lit_model.pth and lit_config.json."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the converted weights; unset: as they are stored."""


def convert(settings: Convert) -> None:
    """Converts a downloaded checkpoint, tensor by tensor; an earlier conversion stays until the new one is whole.

    Raises:
        UserError: there is no checkpoint, or it is incomplete, damaged, hostile, or of an architecture that is not
            supported, or the disk is too small.
    """
    started, folder = time.perf_counter(), settings.checkpoint_dir
    config = _read_config(folder)

    import torch

    from lit_gpt.hf_weights import check, entries_of, find_shards, read

    shards = find_shards(folder)
    layout = check(shards, config, getattr(torch, settings.dtype) if settings.dtype else None)
    about = {"source": _source(folder), "stored_as": entries_of(shards, config)}
    summary = write_checkpoint(folder, config, layout, read(shards, config), about)
    print(
        f"{summary} in {time.perf_counter() - started:.1f} s, peak memory {_peak_memory():.1f} GB "
        f"-> {folder / 'lit_model.pth'}\n"
        f'next: python generate/base.py --checkpoint_dir {folder} --prompt "Hello, my name is"',
        file=sys.stderr,
    )


def write_checkpoint(
    folder: Path,
    config: Config,
    layout: "dict[str, Tensor]",
    tensors: "Iterable[tuple[str, Tensor]]",
    about: dict[str, Any],
) -> str:
    """Writes `lit_model.pth`, tensor by tensor, and `lit_config.json`; earlier ones stay until the new ones are whole.

    Args:
        layout: see `archive.write_archive`, as for `tensors`.
        about: what `lit_config.json` says besides `config`, the type of the weights and their digest.

    Returns:
        What was written, in words.

    Raises:
        UserError: the disk is too small.
    """
    import torch

    from lit_gpt.archive import write_archive

    dtype = str(max(layout.values(), key=torch.numel).dtype).removeprefix("torch.")
    size = sum(tensor.nbytes for tensor in layout.values())
    _check_space(folder, size)
    # The weights take their name when the description is written too, and the description takes its own last.
    with atomic(folder / "lit_config.json") as description, atomic(folder / "lit_model.pth") as archive:
        with _progress(size) as progress:
            digest = write_archive(archive, layout, tensors, progress)
        facts = sealed({**config.to_dict(), "dtype": dtype, "weights_sha256": digest, **about})
        description.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return f"{_short(sum(tensor.numel() for tensor in layout.values()))} parameters, {dtype}, {size_text(size)}"


def _read_config(folder: Path) -> Config:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; download a checkpoint first (scripts/download.py)")
    if not (folder / "config.json").exists():
        raise UserError(f"no config.json in {folder}; download a checkpoint first (scripts/download.py)")
    return Config.from_hf(folder / "config.json")


def _source(folder: Path) -> dict[str, Any] | None:
    """Where the download came from, if `download.json` tells."""
    record = read_json(folder / "download.json") if (folder / "download.json").exists() else None
    return {key: record.get(key) for key in ("repo_id", "revision", "commit")} if isinstance(record, dict) else None


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size * 1.01 > free:  # names and padding besides
        raise UserError(f"the model takes {size_text(size)}, {size_text(free)} free on {folder}; free some space")


@contextlib.contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("writing", *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=size)
        yield lambda step: bar.advance(task, step)


def _peak_memory() -> float:
    """The most that this process has had in memory, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"
