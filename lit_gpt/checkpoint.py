"""Checkpoints of ours: a converted base model, and the small file that a finetuning run adds to it."""

import contextlib
import functools
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lit_gpt.archive import prove, write_archive
from lit_gpt.config import Config
from lit_gpt.families.litgpt import LORA as LITGPT_LORA
from lit_gpt.files import atomic, parts_of, read_json
from lit_gpt.litgpt_files import lora_of, read_litgpt
from lit_gpt.methods import Method, describe, restore, trainable_state
from lit_gpt.model import GPT, meta_gpt
from lit_gpt.peft_files import PROMPT_STYLE, is_peft, read_peft
from lit_gpt.prompts import Style, get_style
from lit_gpt.quantize import quantized
from lit_gpt.ranks import Rows, divided, joined
from lit_gpt.settings import UserError
from lit_gpt.template import model_template

DTYPES = {
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
    "32-true": torch.float32,
}
"""Lightning's names of precisions -> the type that the base's weights are stored in; "mixed" computes in 16 bits."""

CONVERT = "convert the checkpoint first (scripts/convert_hf_checkpoint.py)"
"""What to do about weights that cannot be read."""


def default_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_gpt(
    checkpoint_dir: str | Path,
    dtype: torch.dtype | None = None,
    *,
    finetuned: str | Path | None = None,
    merge: bool = False,
    quantize: str | None = None,
    device: torch.device | str = "cpu",
) -> GPT:
    """Loads a converted checkpoint, ready to use (evaluation mode).

    Weights are read from the file when they are used; on the CPU and in their stored type they are not even copied.

    Args:
        checkpoint_dir: folder with `lit_model.pth` and `lit_config.json`.
        dtype: type of the weights; None: as stored.
        finetuned: a file that `finetune/*.py` wrote, or the folder that it is in: the method that it names is attached
            and its weights are loaded.
        merge: fold the finetuned weights into the base; a quantised base is left as it is.
        quantize: one of `lit_gpt.quantize.KINDS`, or "none"; None: as the finetuned weights were trained.
        device: where the weights go.

    Raises:
        UserError: a file is missing or damaged, or `finetuned` belongs to another base.
    """
    folder = Path(checkpoint_dir)
    config = Config.from_checkpoint(folder)
    if quantize is None and finetuned is not None:
        quantize = read_finetuned(finetuned, folder).get("quantize")
    model = meta_gpt(config)
    prove_weights(folder)
    done = _quantize_blocks(model, folder, quantize, dtype, device) if quantize not in (None, "none") else set()
    state = {name: weight for name, weight in open_weights(folder).items() if name not in done}
    if config.tie_embeddings:
        state.setdefault("lm_head.weight", state.get("wte.weight"))
    for name in state:  # one at a time: the copy on the device is the only one
        state[name] = state[name].to(device=device, dtype=dtype)
    try:
        missing, unexpected = model.load_state_dict(state, assign=True, strict=False)
        different = sorted(unexpected) + sorted(n for n in missing if model.get_parameter(n).is_meta)
    except RuntimeError as error:
        different = [str(error)]
    if different:
        raise UserError(f"{folder / 'lit_model.pth'} does not fit lit_config.json: {different[0]}; convert again")
    model.tie()
    if finetuned is not None:
        method = apply_finetuned(model, finetuned, folder)
        if merge and not done:
            method.merge(model)
    return model.requires_grad_(False).eval()


def open_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a converted checkpoint, without reading them yet.

    Raises:
        UserError: `lit_model.pth` is missing or damaged.
    """
    path = folder / "lit_model.pth"
    with _readable(path, CONVERT):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def prove_weights(folder: Path) -> str:
    """Reads the weights of a converted checkpoint to see that they are as they were written; a process does so once.

    Returns:
        An identity of the file's content.

    Raises:
        UserError: they are missing or damaged.
    """
    path = folder / "lit_model.pth"
    with _readable(path, CONVERT):
        stat = path.stat()
        return _proved(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.cache
def _proved(path: Path, state: tuple[int, ...]) -> str:
    return prove(path)


def _quantize_blocks(
    model: GPT, folder: Path, kind: str, dtype: torch.dtype | None, device: torch.device | str
) -> set[str]:
    """Replaces the blocks' linear layers by quantised ones, reading one block at a time; returns the names it used.

    The file is opened anew for every block: a memory map that is let go gives back what was read through it.
    """
    used: set[str] = set()
    for index, block in enumerate(model.blocks):
        state = open_weights(folder)
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear):
                place = f"blocks.{index}.{name}"
                weight, bias = state.get(f"{place}.weight"), state.get(f"{place}.bias")
                if weight is None or (bias is None) != (module.bias is None) or weight.shape != module.weight.shape:
                    raise UserError(f"{folder / 'lit_model.pth'} does not fit lit_config.json: {place}; convert again")
                layer = quantized(weight, bias, kind, dtype or weight.dtype, device)
                block.set_submodule(name, layer)
                used |= {f"{place}.weight"} | ({f"{place}.bias"} if bias is not None else set())
    return used


def load_file(path: Path, hint: str, lazy: bool = False) -> Any:
    """Reads one of our archives, without executing anything in it. It may lie in parts, one of each rank.

    Args:
        lazy: for files that were proved: tensors are read when they are used, and those in parts are `Rows`.
            Otherwise they are proved here, and tensors are whole.

    Raises:
        UserError: a file is missing (then `hint` says what makes it) or is not as it was written.
    """
    trees = []
    for file in parts_of(path):
        if not lazy:
            prove_file(file, hint)
        with _readable(file, hint):
            trees.append(torch.load(file, map_location="cpu", weights_only=True, mmap=lazy or file != path))
    with _readable(file, hint):
        tree = joined(trees)
        return tree if lazy else tree_map(lambda v: v.take() if isinstance(v, Rows) else v, tree)


def prove_file(path: Path, hint: str) -> None:
    """Sees that one of our archives is as it was written.

    Raises:
        UserError: see `load_file`.
    """
    with _readable(path, hint):
        prove(path)


@contextlib.contextmanager
def _readable(path: Path, hint: str) -> Iterator[None]:
    """Turns whatever a reader of archives says about `path` into one line."""
    if not path.is_file():
        raise UserError(f"no file {path}; {hint}")
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except MemoryError:
        raise  # says nothing of the file
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and was not read: it may be an attack; {hint}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged or not a file of ours ({reason}); {hint}") from error


def save_finetuned(
    path: str | Path,
    model: GPT,
    method: Method,
    facts: dict[str, Any],
    weights: dict[str, Tensor] | None = None,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Writes what was trained, with everything that is needed to use it again.

    Args:
        path: `OUT/lit_model_<method>_finetuned.pth`.
        facts: plain values about the run, such as `prompt_style` and `base` (see `base_identity`).
        weights: what is written of the model's trained weights, if not all.
        tensors: the same, one after the other, if there must not be all at once.
    """
    weights = weights or trainable_state(model)
    layout = {name: torch.empty(weight.shape, dtype=weight.dtype, device="meta") for name, weight in weights.items()}
    with atomic(path) as temporary:
        value = {"method": describe(method), "weights": layout, **facts}
        write_archive(temporary, layout, tensors or weights.items(), value=value)


def finetuned_file(path: str | Path) -> Path:
    """`path` itself, or the finetuned weights in it if it is a folder; they may lie in parts (see `parts_of`).

    Raises:
        UserError: there are none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = sorted(path.glob("lit_model*_finetuned.pth")) or sorted(path.glob(LITGPT_LORA))
    found = found or [path / f"{p.name.partition('-')[0]}.pth" for p in path.glob("lit_model*-00001-of-?????.pth")]
    if len(found) != 1:
        raise UserError(f"{len(found)} files lit_model*_finetuned.pth in {path}, expected 1; name the file itself")
    return found[0]


def read_finetuned(path: str | Path, checkpoint_dir: str | Path | None = None, lazy: bool = False) -> dict[str, Any]:
    """What `save_finetuned` wrote: `method`, `weights`, and the facts of the run.

    Args:
        path: the file, or the folder that it is in; or with `checkpoint_dir` the folder of an adapter of PEFT, or what
            litgpt trained with LoRA.
        checkpoint_dir: the converted base.
        lazy: see `load_file`.

    Raises:
        UserError: the file is missing or damaged.
    """
    if checkpoint_dir is not None and is_peft(Path(path)):
        return read_peft(Path(path), Config.from_checkpoint(checkpoint_dir))
    path = finetuned_file(path)
    saved = load_file(path, "finetune first (finetune/lora.py) or check the path", lazy)
    if checkpoint_dir is not None and (state := lora_of(saved)):
        return read_litgpt(path, state, Config.from_checkpoint(checkpoint_dir))
    kinds = {"method": dict, "weights": dict, "prompt_style": str, "base": dict, "quantize": str | None, "run": dict}
    if not isinstance(saved, dict) or not all(
        isinstance(saved.get(key), kind) for key, kind in kinds.items() if key in {"method", "weights", *saved}
    ):
        raise UserError(f"{path} holds no finetuned weights; expected a file that finetune/*.py wrote")
    return saved


def style_of(checkpoint_dir: str | Path, finetuned: str | Path | None = None, named: str | None = None) -> Style | None:
    """The prompt style of a model: the one that is named, or that it was finetuned with, or its own chat template.

    Args:
        finetuned: see `read_finetuned`; an adapter of PEFT says it only if we wrote it.
        named: see `get_style`.

    Returns:
        None for a base model of which nothing is known.

    Raises:
        UserError: a file is missing or damaged, or there is no style of that name.
    """
    folder = Path(checkpoint_dir)
    if named is None and finetuned is not None:
        beside = Path(finetuned) / PROMPT_STYLE
        if not is_peft(Path(finetuned)):
            named = read_finetuned(finetuned)["prompt_style"]
        elif beside.is_file() and not isinstance(named := read_json(beside), str):
            raise UserError(f"{beside}: must hold the name of a prompt style or a template, in quotes")
    if named is None and (folder / "lit_config.json").is_file():
        merged = read_json(folder / "lit_config.json").get("merged")
        named = merged.get("prompt_style") if isinstance(merged, dict) else None
    named = named or model_template(folder)
    return get_style(named, folder) if named else None


def apply_finetuned(model: GPT, path: str | Path, checkpoint_dir: str | Path) -> Method:
    """Attaches the method that a finetuned file names to a loaded base and loads its weights.

    Raises:
        UserError: the file is missing or damaged, or was made from another base model.
    """
    saved = read_finetuned(path, checkpoint_dir)
    base, ours = saved.get("base", {}), base_identity(checkpoint_dir)
    if base is not None and base.get("weights_sha256") != ours["weights_sha256"]:  # PEFT does not know its base's
        raise UserError(
            f"{path} was finetuned from {base.get('checkpoint_dir')} (weights {str(base.get('weights_sha256'))[:12]}), "
            f"but {checkpoint_dir} holds other weights ({str(ours['weights_sha256'])[:12]}); use that base"
        )
    method = restore(saved["method"])
    method.attach(model)
    load_trainable(model, saved["weights"], path)
    return method


def begin_with(model: GPT, method: Method, path: str | Path, checkpoint_dir: str | Path) -> None:
    """Loads what was trained before into a model that the same method is attached to; dropout and rates may differ.

    Raises:
        UserError: it was trained by another method, or with other sizes, scales or layers.
    """
    saved, ours = read_finetuned(path, checkpoint_dir), describe(method)
    for key in sorted((saved["method"].keys() | ours.keys()) - {"lora_dropout", "lora_plus_ratio"}):
        if saved["method"].get(key) != ours.get(key):
            raise UserError(f"--init_from {path}: {key} is {saved['method'].get(key)} there, but {ours.get(key)} here")
    load_trainable(model, saved["weights"], path)


@torch.no_grad()
def load_trainable(model: GPT, weights: dict[str, Tensor], place: str | Path) -> None:
    """Copies saved weights into the trainable parameters; every one must be there, with its shape.

    Raises:
        UserError: names or shapes differ; `place` is named.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    different = sorted(parameters.keys() ^ weights.keys())
    different += [name for name, p in parameters.items() if name in weights and p.shape != weights[name].shape]
    if different:
        raise UserError(f"{place} does not fit the model: {', '.join(different[:3])} ({len(different)} in all)")
    for name, parameter in parameters.items():
        parameter.copy_(divided(weights[name], parameter))


def base_identity(checkpoint_dir: str | Path) -> dict[str, Any]:
    """Which base model this is: its folder and the digest of its weights that conversion wrote."""
    path = Path(checkpoint_dir) / "lit_config.json"
    digest = read_json(path).get("weights_sha256") if path.exists() else None
    return {"checkpoint_dir": str(checkpoint_dir), "weights_sha256": digest}
