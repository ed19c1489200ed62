"""From a checkpoint of ours to one that others open: transformers, PEFT, llama.cpp, Ollama."""

import contextlib
import copy
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.config import Config
from lit_gpt.convert import copy_small_files
from lit_gpt.files import atomic, read_json, results_folder, size_text, write_json, write_text
from lit_gpt.methods import Adapter, LoRA
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_gpt.families import Stored


CONVERTER = "LLAMA_CPP_CONVERTER"
"""Environment variable with the command of llama.cpp's converter, if it is not on the PATH or needs another Python."""


@dataclass
class Export:
    """What to write for whom."""

    checkpoint_dir: Path
    """Folder of the converted model."""
    output_dir: Path
    """Folder for the result."""
    lora_path: Path | None = None
    """File that finetune/lora.py or finetune/full.py wrote, or its folder: it is folded into the weights, or with
    --format peft written on its own; unset: the model as it is."""
    format: Literal["hf", "peft", "gguf"] = "hf"
    """A folder for transformers, an adapter for PEFT, or a file for llama.cpp and Ollama."""
    shard_gb: float = 5.0
    """Largest weight file in GB."""

    def __post_init__(self) -> None:
        if self.format == "peft" and self.lora_path is None:
            raise UserError("--format peft writes what was trained; give it with --lora_path")
        if not self.shard_gb > 0:
            raise UserError(f"--shard_gb: must be positive, got {self.shard_gb}")


def export(settings: Export) -> None:
    """Writes a model for transformers, what was trained for PEFT, or a file for llama.cpp and Ollama.

    Raises:
        UserError: a file is missing or damaged, what was trained does not belong to the model or cannot be expressed
            in the format, or the folder cannot be written or holds another model.
    """
    folder, out = settings.checkpoint_dir, settings.output_dir
    if out.resolve() == folder.resolve():
        raise UserError(f"--output_dir {out} is the model itself (--checkpoint_dir); choose another folder")
    config = Config.from_checkpoint(folder)
    if config.family == "litgpt":
        origin = read_json(folder / "lit_config.json").get("litgpt")
        raise UserError(
            f"{folder} does not say which architecture of the hub it is; put the original model's config.json into "
            f"{origin} and convert it again (scripts/convert_litgpt_checkpoint.py)"
        )
    if any(out.glob("lit_*")):  # a converted or finetuned model, or a run
        raise UserError(f"--output_dir {out} holds another model; choose another folder")
    positions = (config.positions, config.rope_base, config.rope_scaling)
    if settings.format == "gguf" and config.family == "falcon" and positions != ("rope", 10000, None):
        raise UserError(
            "--format gguf: llama.cpp gives every Falcon unscaled rotary positions with rope_theta 10000, and this one "
            "has others; use --format hf"
        )
    results_folder(out, "--output_dir")
    if settings.format == "peft":
        write_peft(folder, settings.lora_path, out)
        return
    dtype = write_hf(folder, settings.lora_path, out, settings.shard_gb * 1e9)
    if settings.format == "gguf":
        write_gguf(folder, settings.lora_path, out, dtype)


def write_hf(folder: Path, finetuned: Path | None, out: Path, shard_size: float) -> "torch.dtype":
    """Writes a folder that `from_pretrained` opens; memory: that of the largest part, a block or the head.

    Returns:
        The type of its weights.
    """
    from lit_gpt.checkpoint import apply_finetuned, prove_weights, read_finetuned
    from lit_gpt.model import meta_gpt
    from lit_gpt.parts import merged, weights_of

    base = meta_gpt(Config.from_checkpoint(folder))
    prove_weights(folder)
    trained, saved = base, {}
    if finetuned is not None:
        method, saved = (
            apply_finetuned(trained := copy.deepcopy(base), finetuned, folder),
            read_finetuned(finetuned, folder),
        )
        if isinstance(method, Adapter):
            raise UserError(f"{finetuned} holds an adapter, which cannot be folded into weights; only ours can use it")
        method.merge(plain := copy.deepcopy(trained))
    else:
        plain = base
    weights = weights_of(folder, base, saved.get("weights"))
    hf = read_json(folder / "config.json")
    images = "text_config" in hf  # then only the language model was converted, and is written as one
    names = chosen_names(plain.config, None if images else read_json(folder / "lit_config.json").get("stored_as"))
    shapes = {name: parameter.to("meta") for name, parameter in plain.named_parameters()}
    dtype = max(weights().values(), key=lambda tensor: tensor.numel()).dtype
    layout = {}
    for theirs, here in names.items():
        shape = here.shape([tuple(shapes[name].shape) for name in here.names])
        layout[theirs] = shapes[here.names[0]].new_empty(shape, dtype=dtype)
    with contextlib.ExitStack() as files:
        copy_small_files(folder, out, base.config.tie_embeddings and not plain.config.tie_embeddings, files)
        source = merged(trained, weights, list(shapes))
        write_shards(out, layout, _together(source, names, plain.config), shard_size, files)
    if images:
        text = {**hf["text_config"], "architectures": [f"{hf['model_type'].capitalize()}ForCausalLM"]}
        write_json(out / "config.json", text)
    total = sum(tensor.nbytes for tensor in layout.values())
    print(f"{size_text(total)} in {out}\nnext: AutoModelForCausalLM.from_pretrained('{out}')", file=sys.stderr)
    return dtype


def chosen_names(config: Config, stored_as: list[str] | None) -> "dict[str, Stored]":
    """Names of a checkpoint's tensors -> our parameters in them, each parameter once.

    Args:
        stored_as: the entries of the family's `WEIGHTS` that the checkpoint had that was converted; where several lead
            to the same parameter these come first. None: in the order of the table.
    """
    from lit_gpt.hf_weights import stored_names

    names, taken, chosen = stored_names(config), set(), {}
    known = stored_names(config, stored_as or [])
    for theirs, here in [*known.items(), *names.items()]:
        if not taken.intersection(here.names):
            taken.update(here.names)
            chosen[theirs] = here
    return chosen


def _together(
    tensors: "Iterable[tuple[str, Tensor]]", names: "dict[str, Stored]", config: Config
) -> "Iterator[tuple[str, Tensor]]":
    """Yields the checkpoint's tensors as soon as all of their parameters have come."""
    place = {name: theirs for theirs, here in names.items() for name in here.names}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        theirs = place[name]
        parts = waiting.setdefault(theirs, {})
        parts[name] = tensor
        if len(parts) == len(names[theirs].names):
            ordered = [waiting[theirs][part] for part in names[theirs].names]
            del waiting[theirs]
            yield theirs, ordered[0] if names[theirs].plain else names[theirs].put_together(ordered, config)


def write_shards(
    out: Path,
    layout: "dict[str, Tensor]",
    tensors: "Iterable[tuple[str, Tensor]]",
    size: float,
    files: contextlib.ExitStack,
    stem: str = "model",
) -> None:
    """Writes safetensors files of at most `size` bytes, or one tensor, and their index; they take their names together.

    The format (huggingface/safetensors): 8 bytes with the length of the header, the header in JSON with type, shape
    and place of every tensor, and their bytes.
    """
    import torch

    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in layout.items():
        if filled and filled + tensor.nbytes > size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.nbytes
    stems = [stem] if len(groups) == 1 else [f"{stem}-{i + 1:05d}-of-{len(groups):05d}" for i in range(len(groups))]
    if len(groups) > 1:
        weight_map = {name: f"{part}.safetensors" for part, group in zip(stems, groups, strict=True) for name in group}
        total = {"total_size": sum(tensor.nbytes for tensor in layout.values())}
        write_json(out / f"{stem}.safetensors.index.json", {"metadata": total, "weight_map": weight_map})
    places: dict[str, tuple[Any, int]] = {}
    for part, group in zip(stems, groups, strict=True):
        path = files.enter_context(atomic(out / f"{part}.safetensors"))
        file = files.enter_context(path.open("wb"))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in group:
            start, end = end, end + layout[name].nbytes
            kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
            header[name] = {"dtype": kind[layout[name].dtype], "shape": list(layout[name].shape)}
            header[name]["data_offsets"] = [start, end]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        places |= {name: (file, 8 + len(text) + header[name]["data_offsets"][0]) for name in group}
    for name, tensor in tensors:
        file, start = places.pop(name)
        file.seek(start)
        for piece in tensor.detach().reshape(-1).split(1 << 22):
            file.write(memoryview(piece.to(layout[name].dtype).contiguous().view(torch.uint8).numpy()))
    if places:
        raise ValueError(f"nothing came for {', '.join(places)}")


def write_peft(folder: Path, finetuned: Path, out: Path) -> None:
    """Writes what was trained with LoRA as an adapter that `PeftModel.from_pretrained` puts on the original model.

    Where the original keeps several of our layers in one tensor, their A stand one below the other, and each part of B
    has zeros for the A of the others: a higher rank, but the same sum.
    """
    import torch

    from lit_gpt.checkpoint import read_finetuned
    from lit_gpt.methods import restore
    from lit_gpt.peft_files import PROMPT_STYLE

    config, saved = Config.from_checkpoint(folder), read_finetuned(finetuned, folder)
    method, trained = restore(saved["method"]), saved["weights"]
    if not isinstance(method, LoRA):
        adapter = isinstance(method, Adapter)
        reason = ", as PEFT's adaption prompt has one gate for a layer, not one for every head" if adapter else ""
        raise UserError(f"{finetuned} was trained with {method.name}; --format peft is for LoRA{reason}")
    layers = {name.rpartition(".")[0] for name in trained}
    if config.n_expert and any(".experts." in name for name in layers):
        raise UserError(
            "--format peft: adapters of experts are kept differently by every version of PEFT; use --format hf"
        )
    sizes = {name: len(trained[f"{name}.lora_B"]) for name in layers}
    state, ranks, turned = {}, {}, False
    for theirs, here in chosen_names(config, None).items():  # modules of transformers, not tensors of files
        own = [name.removesuffix(".weight") for name in here.names]
        if not theirs.endswith(".weight") or not layers.intersection(own):
            continue
        adapted = [name for name in own if name in layers]
        if method.lora_dora and len(own) > 1:
            raise UserError(
                f"--format peft: {theirs} holds several layers of ours, which DoRA scales one by one; use hf"
            )
        rank = method.lora_r * len(adapted)
        parts = []
        for name in own:
            rows = sizes.get(name) or _rows(config, name)
            part = torch.zeros(rows, rank)
            if name in layers:
                start = method.lora_r * adapted.index(name)
                part[:, start : start + method.lora_r] = trained[f"{name}.lora_B"]
            parts.append(part)
        B = parts[0] if here.plain else here.joined(parts, config)
        key = f"base_model.model.{theirs.removesuffix('.weight')}"
        state[f"{key}.lora_A.weight"] = torch.cat([trained[f"{name}.lora_A"] for name in adapted])
        state[f"{key}.lora_B.weight"] = B
        if method.lora_dora:
            state[f"{key}.lora_magnitude_vector"] = trained[f"{own[0]}.lora_magnitude"]
        ranks[theirs.removesuffix(".weight")] = rank
        turned = turned or here.how == "turned"
    repo = (read_json(folder / "lit_config.json").get("source") or {}).get("repo_id") or str(folder)
    rank = max(ranks.values())
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": repo,
        "r": rank,
        "lora_alpha": method.scale * rank,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: method.scale * r for name, r in ranks.items() if r != rank},
        "lora_dropout": method.lora_dropout,
        "target_modules": sorted(ranks),
        "use_dora": method.lora_dora,
        "fan_in_fan_out": turned,
        "bias": "none",
        "inference_mode": True,
    }
    layout = {name: tensor.to("meta") for name, tensor in state.items()}
    with contextlib.ExitStack() as files:
        write_shards(out, layout, state.items(), float("inf"), files, stem="adapter_model")
        write_json(out / "adapter_config.json", described)
        write_json(out / PROMPT_STYLE, saved["prompt_style"])  # PEFT does not look at it
    print(f"an adapter of {repo} in {out}\nnext: PeftModel.from_pretrained(model, '{out}')", file=sys.stderr)


def _rows(config: Config, name: str) -> int:
    """Outputs of a linear layer."""
    from lit_gpt.model import meta_gpt

    return meta_gpt(config).get_submodule(name).out_features


def write_gguf(folder: Path, finetuned: Path | None, out: Path, dtype: "torch.dtype") -> None:
    """Lets llama.cpp's converter work on the folder, or says how; writes an Ollama Modelfile beside it."""
    from lit_gpt.checkpoint import style_of
    from lit_gpt.prompts import Turn, get_style
    from lit_gpt.tokenizer import Tokenizer

    kind = {"bfloat16": "bf16", "float16": "f16"}.get(str(dtype).removeprefix("torch."), "f32")  # by itself it rounds
    command = ["convert_hf_to_gguf.py", str(out), "--outfile", str(out / "model.gguf"), "--outtype", kind]
    style, tokenizer = style_of(folder, finetuned) or get_style("plain"), Tokenizer(folder)
    stop_tokens = (tokenizer.token(i) for i in style.stop_ids(tokenizer) if i != tokenizer.eos_id)
    stops = "".join(f'PARAMETER stop "{token}"\n' for token in stop_tokens)
    template = style.prompt("{{ .Prompt }}", tokenizer=tokenizer)
    if style.encode_prompt(tokenizer, (Turn("user", "x"),))[0] == tokenizer.bos_id != tokenizer.encode("x")[0]:
        template = tokenizer.bos + template  # where the tokenizer puts it in front of any text, llama.cpp does
    write_text(out / "Modelfile", f'FROM ./model.gguf\nTEMPLATE """{template}"""\n{stops}')
    hf, groups = read_json(out / "config.json"), Config.from_checkpoint(folder).n_query_groups
    if hf.get("num_kv_heads", groups) != groups:  # transformers ignores it for a multi-query Falcon, and writes n_head
        write_json(out / "config.json", {**hf, "num_kv_heads": groups})
    program = shlex.split(os.environ.get(CONVERTER, command[0]))
    if shutil.which(program[0]) is None:
        print(
            f"llama.cpp's converter is not installed (github.com/ggml-org/llama.cpp), or give its command in "
            f"{CONVERTER}; with it: {shlex.join(command)}\nthen: ollama create my-model -f {out / 'Modelfile'}",
            file=sys.stderr,
        )
        return
    command = [*program, *command[1:]]
    if code := subprocess.run(command).returncode:
        raise UserError(
            f"{shlex.join(command)} failed with exit code {code}; does its Python have the packages of llama.cpp's "
            f"requirements.txt? The folder {out} is whole"
        )
    print(f"next: ollama create my-model -f {out / 'Modelfile'}", file=sys.stderr)
