"""Turns checkpoints of others into ours: `lit_model.pth`, and `lit_config.json` that describes it.

Those in Hugging Face layout become ours where they lie. Those of litgpt have a `lit_model.pth` of their own: the result
gets another folder, and the original stays as it is.
"""

import contextlib
import dataclasses
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.config import CONVERT_LITGPT, Config
from lit_gpt.families import in_files, litgpt
from lit_gpt.files import atomic, read_json, results_folder, sealed, size_text, write_json
from lit_gpt.hub import SMALL_FILES
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
    _finish(summary, started, folder)


@dataclass
class ConvertLitgpt:
    """Which checkpoint of litgpt to convert, to where and to what."""

    checkpoint_dir: Path
    """Folder with lit_model.pth and model_config.yaml (litgpt) or lit_config.json (Lit-GPT 2023); it is only read."""
    out_dir: Path
    """Folder for the converted model; config.json and the tokenizer's files are copied to it."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the converted weights; unset: as they are stored."""


def convert_litgpt(settings: ConvertLitgpt) -> None:
    """Converts a checkpoint of litgpt or of Lit-GPT 2023 into another folder, tensor by tensor.

    The logits stay those of litgpt: what it says of the architecture counts. `config.json` says under which names the
    weights are exported, and is compared.

    Raises:
        UserError: there is no checkpoint, it is damaged, hostile, or has parts that ours cannot express, the disk is
            too small, or the output folder holds another model.
    """
    started, folder, out = time.perf_counter(), settings.checkpoint_dir, settings.out_dir
    if not litgpt.is_litgpt(folder):
        lora = "; weights of LoRA are used as they are (--lora_path)" if (folder / litgpt.LORA).exists() else ""
        raise UserError(
            f"no checkpoint of litgpt in {folder}: expected lit_model.pth and model_config.yaml, or lit_config.json of "
            f"Lit-GPT 2023{lora}"
        )
    check_out_dir(out, folder, "litgpt")
    config, described = Config.from_litgpt(folder), litgpt.description(folder).name
    original = _original(folder)

    import torch

    from lit_gpt.checkpoint import prove_file
    from lit_gpt.hf_weights import check, one_shard, read, same_values

    prove_file(path := folder / "lit_model.pth", f"expected the weights of the model of {described}")
    shards = [one_shard(path)]
    layout = check(shards, config, getattr(torch, settings.dtype) if settings.dtype else None, described)
    pair = [(shards[0], name) for name in ("lm_head.weight", "transformer.wte.weight")]
    if (original is None or original.tie_embeddings) and same_values(*pair):  # litgpt always stores both
        config.tie_embeddings = True
        del layout["lm_head.weight"]
    about: dict[str, Any] = {"litgpt": str(folder), "source": _hub_name(folder)}
    final = config
    if original is not None:
        final = dataclasses.replace(config, family=original.family)
        about["stored_as"] = in_files(final)
        if different := _differences(config, original):
            print(
                f"note: the original's config.json differs from {described}, which counts: {different}", file=sys.stderr
            )
    results_folder(out)
    with contextlib.ExitStack() as files:  # they take their names together
        untied = original is not None and original.tie_embeddings and not config.tie_embeddings
        copy_small_files(folder, out, untied, files)
        summary = write_checkpoint(out, final, layout, read(shards, config), about)
    _finish(summary, started, out)


def _original(folder: Path) -> Config | None:
    """The model of the hub that a checkpoint of litgpt was made from, as far as that is known and supported."""
    name = _hub_name(folder)
    try:
        if (folder / "config.json").exists():
            return Config.from_hf(folder / "config.json")
        return Config.from_name(name["repo_id"]) if name else None
    except UserError:
        return None


def _hub_name(folder: Path) -> dict[str, Any] | None:
    """Where litgpt got a model from."""
    hub = litgpt.read_yaml(litgpt.description(folder)).get("hf_config")
    known = isinstance(hub, dict) and hub.get("org") and hub.get("name")
    return {"repo_id": f"{hub['org']}/{hub['name']}"} if known else None


def _differences(ours: Config, original: Config) -> str:
    """Fields in which two descriptions of a model differ so that its outputs would, in words."""

    def plain(config: Config) -> dict[str, Any]:
        same = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}
        windowed = config.sliding_window is not None and (config.windowed or [True] * config.n_layer)
        changes = {"activation": same.get(config.activation, config.activation), "windowed": windowed}
        return {**config.to_dict(), **changes, "attn_scale": config.attn_scale or config.head_size**-0.5}

    here, there = plain(ours), plain(original)
    names = [name for name in here if here[name] != there[name] and name not in ("family", "tie_embeddings")]
    return "; ".join(f"{name} {there[name]!r:.80} there, {here[name]!r:.80} here" for name in names)


def check_out_dir(out: Path, folder: Path, kind: str) -> None:
    """An earlier result of a `kind`, which its description names, may be replaced, any other model not."""
    if out.resolve() == folder.resolve():
        raise UserError(f"--out_dir {out} is the model itself (--checkpoint_dir); choose another folder")
    description = read_json(out / "lit_config.json") if (out / "lit_config.json").exists() else {}
    if kind not in description and any((out / name).exists() for name in ("config.json", "lit_model.pth")):
        raise UserError(f"--out_dir {out} holds another model; choose another folder")


def copy_small_files(folder: Path, out: Path, untied: bool, files: contextlib.ExitStack) -> None:
    """Configuration, tokenizer and licence; `untied`: the head is no longer the embedding."""
    for source in folder.iterdir():
        if SMALL_FILES.fullmatch(source.name):
            copied = files.enter_context(atomic(out / source.name))
            shutil.copyfile(source, copied)
            if untied and source.name == "config.json":
                write_json(copied, {**read_json(copied), "tie_word_embeddings": False})


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


def _finish(summary: str, started: float, folder: Path) -> None:
    """Says what was written, and what it took."""
    print(
        f"{summary} in {time.perf_counter() - started:.1f} s, peak memory {_peak_memory():.1f} GB "
        f"-> {folder / 'lit_model.pth'}\n"
        f'next: python generate/base.py --checkpoint_dir {folder} --prompt "Hello, my name is"',
        file=sys.stderr,
    )


def _read_config(folder: Path) -> Config:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; download a checkpoint first (scripts/download.py)")
    if not (folder / "config.json").exists():
        raise UserError(f"no config.json in {folder}; download a checkpoint first (scripts/download.py)")
    if litgpt.is_litgpt(folder):
        raise UserError(f"{folder} holds a lit_model.pth of litgpt; {CONVERT_LITGPT.format(folder)}")
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
