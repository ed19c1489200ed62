"""Folds what was trained into the base model's weights: a converted checkpoint that needs no finetuned file."""

import contextlib
import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gpt.config import Config
from lit_gpt.files import read_json, results_folder, sha256
from lit_gpt.methods import Adapter
from lit_gpt.settings import UserError
from lit_gpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from lit_gpt.model import GPT

TEXT = """\
A small boat left the harbour before the sun was up. Its owner, an old woman from the village, knew every rock of the \
coast and every mood of the wind, and she had promised her granddaughter to show her the seals. They rowed past the \
lighthouse, counted 14 gulls on the pier, and talked about the price of fish. "Why is the sea salt?" asked the girl. \
"Because rivers carry a little salt from the land, and only the water goes back up to the clouds," said her \
grandmother. At noon they shared bread, cheese and two apples. Then three grey heads rose from the waves, looked at \
them for a while, and were gone. The girl laughed, and wrote it all down that evening.\
"""
CHECKED = 128
"""Tokens of it that are looked at."""


@dataclass
class Merge:
    """What to merge into what."""

    checkpoint_dir: Path
    """Folder of the converted base model."""
    lora_path: Path
    """File that finetune/lora.py wrote, or its folder; knows its own settings."""
    out_dir: Path
    """Folder for the merged model."""
    check: bool = True
    """Compare the logits of the merged model with those of the network that was trained."""


def merge_lora(settings: Merge) -> None:
    """Folds what was trained with LoRA into its base: a converted model that every command uses like any other.

    Raises:
        UserError: a file is missing or damaged, the finetuned weights belong to another base, or the output folder is
            another model's or cannot be written.
    """
    import torch

    from lit_gpt.checkpoint import apply_finetuned, finetuned_file, prove_weights, read_finetuned
    from lit_gpt.convert import check_out_dir, copy_small_files, write_checkpoint
    from lit_gpt.model import meta_gpt
    from lit_gpt.parts import logits, merged, weights_of
    from lit_gpt.runlog import peak_memory_gb

    began, folder, out = time.perf_counter(), settings.checkpoint_dir, settings.out_dir
    check_out_dir(out, folder, "merged")
    base = meta_gpt(Config.from_checkpoint(folder))
    prove_weights(folder)
    method = apply_finetuned(trained := copy.deepcopy(base), settings.lora_path, folder)
    if isinstance(method, Adapter):
        raise UserError(
            f"{settings.lora_path} holds an adapter, which cannot be folded into weights; use it with "
            f"generate/{method.name}.py, or evaluate it with --{method.name}_path"
        )
    method.merge(plain := copy.deepcopy(trained))  # of all three, there are only shapes as yet
    saved = read_finetuned(settings.lora_path, folder)
    file = settings.lora_path if saved["base"] is None else finetuned_file(settings.lora_path)
    weights, kind = weights_of(folder, base, saved["weights"]), saved.get("quantize")
    layout = _layout(plain, weights(), folder)
    if settings.check:
        ids = Tokenizer(folder).encode(TEXT)[: min(CHECKED, base.config.block_size)]
    results_folder(out)
    _say(f"merging {file} into {folder / 'lit_model.pth'}")
    if kind:
        _say(
            f"note: trained over this base in {kind}, merged into it in full precision, so outputs change; "
            f"generate/{method.name}.py and the evaluation, given both files, keep to {kind}"
        )
    if settings.check:
        before = logits(trained, weights, ids, kind)
    with contextlib.ExitStack() as files:  # they take their names together
        untied = base.config.tie_embeddings and not plain.config.tie_embeddings
        copy_small_files(folder, out, untied, files)
        about = {
            "merged": _record(folder, file, saved),
            "stored_as": read_json(folder / "lit_config.json").get("stored_as"),
        }
        summary = write_checkpoint(out, plain.config, layout, merged(trained, weights, list(layout)), about)
    _say(f"{summary} -> {out / 'lit_model.pth'}")
    if settings.check:
        network = f"the network that was trained ({method.name} on {kind or 'the base'})"
        _say(f"against {network}: {_gap(before, logits(plain, weights_of(out, plain), ids))}")
    seconds, memory = time.perf_counter() - began, peak_memory_gb(torch.device("cpu"))
    _say(f"Merged in {seconds:.1f} s, peak memory {memory:.2f} GB")
    _say(f'next: python generate/base.py --checkpoint_dir {out} --prompt "Hello, my name is"')


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _layout(plain: "GPT", state: "dict[str, Tensor]", folder: Path) -> "dict[str, Tensor]":
    """Shape and type of each weight of the merged model: those of the base's file."""
    layout = {}
    for name, parameter in plain.named_parameters():
        tensor = state.get(name)
        if tensor is None or tensor.shape != parameter.shape:
            raise UserError(f"{folder / 'lit_model.pth'} does not fit lit_config.json: {name}; convert again")
        layout[name] = tensor.to("meta")
    return layout


def _record(folder: Path, file: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """What was merged into what; a base that was merged itself tells of its own."""
    from lit_gpt.checkpoint import base_identity

    description = read_json(folder / "lit_config.json")
    origin = {key: description[key] for key in ("source", "merged") if description.get(key)}
    return {
        "base": {**base_identity(folder), **origin},
        "finetuned": {"file": str(file), "sha256": sha256(file) if file.is_file() else None},
        **{key: saved.get(key) for key in ("method", "quantize", "prompt_style", "run")},
    }


def _gap(before: "Tensor", after: "Tensor") -> str:
    """How far two networks' logits (T, V) for the same tokens are apart, in words."""
    largest, average, agree, divergence = 0.0, 0.0, 0.0, 0.0
    for a, b in zip(before, after, strict=True):  # token by token: the vocabulary may be large
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        largest = max(largest, float((a - b).abs().max()))
        average += float((a - b).abs().mean()) / len(before)
        agree += float(a.argmax() == b.argmax()) / len(before)
        divergence += float((p.exp() * (p - q)).sum()) / len(before)
    return (
        f"logits differ by {largest:.3g} at most, {average:.3g} on average; the likeliest token is the same "
        f"at {agree:.1%} of {len(before)} tokens; KL divergence {divergence:.3g} nats"
    )
