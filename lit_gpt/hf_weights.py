"""Weights in Hugging Face layout: finding the files, reading them tensor by tensor, translating them to our names.

Files are mapped and their bytes read when they are used, so the memory that this takes is about the largest tensor.
Nothing that a file contains is executed.
"""

import importlib
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from lit_gpt.archive import STORAGES
from lit_gpt.config import Config
from lit_gpt.families import Stored, stored
from lit_gpt.files import read_json
from lit_gpt.model import meta_gpt
from lit_gpt.settings import UserError

MAPPED = 1 << 25
"""Bytes that are read of a file before it is mapped anew: they count as our memory for as long as the map lives."""


class Shard(NamedTuple):
    """One of the files that make up a checkpoint."""

    name: str
    """What messages call it."""
    open: Callable[[], dict[str, Tensor]]
    """Gives all its tensors."""
    lazy: bool = True
    """Opening reads nothing yet."""


def state_dict_from_hf(hf_state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Translates the state dict of a `transformers` model into one for `lit_gpt.model.GPT`, without a tied head.

    Raises:
        UserError: as `check`.
    """
    shards = [Shard("the state dict", lambda: hf_state)]
    check(shards, config)
    return dict(read(shards, config))


def find_shards(folder: Path) -> list[Shard]:
    """The weight files of a checkpoint: safetensors if there are any, else PyTorch's; one file or those of the index.

    Raises:
        UserError: there are none, the index is broken, or a file that it names is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [one_shard(folder / name)]
        if (folder / f"{name}.index.json").exists():
            return [one_shard(path) for path in _indexed(folder / f"{name}.index.json")]
    raise UserError(
        f"no weights in {folder} (model.safetensors or pytorch_model.bin, or shards with their index); "
        "download the checkpoint first (scripts/download.py)"
    )


def check(
    shards: list[Shard], config: Config, dtype: torch.dtype | None = None, described: str = "config.json"
) -> dict[str, Tensor]:
    """Compares what the files contain with what the model needs, before anything is read or written.

    Args:
        described: the file that `config` is from, for messages.

    Returns:
        A tensor on the meta device for each of the model's parameters, in the model's order, of type `dtype` or
        of the file's.

    Raises:
        UserError: a tensor is unknown, missing, there twice, of the wrong shape or type, or the head differs from the
            embedding to which `config` ties it; or a file is damaged or holds something other than tensors.
    """
    names, needed, ignored = stored_names(config), _parameters(config), _ignored(config)
    found: dict[str, tuple[Shard, str, torch.dtype]] = {}
    heads, unknown = [], []
    for shard in shards:
        for name, tensor in shard.open().items():
            if name in names:
                here = names[name]
                wanted = here.shape([tuple(needed[ours].shape) for ours in here.names])
                _check_one(name, tensor, wanted, shard, described, here.names[0] in ("wte.weight", "lm_head.weight"))
                if twice := [ours for ours in here.names if ours in found]:
                    raise UserError(f"{shard.name}: {name} is there twice, also as {found[twice[0]][1]}")
                found |= dict.fromkeys(here.names, (shard, name, tensor.dtype))
            elif config.tie_embeddings and _family(config).WEIGHTS.get(name) == "lm_head.weight":
                heads.append((shard, name))
            elif not ignored(name):
                unknown.append(f"{name} in {shard.name}")
    if unknown:
        raise UserError(f"the model of {described} has no {_list(unknown)}; is it this checkpoint's own {described}?")
    if missing := needed.keys() - found.keys():
        theirs = [name for name, ours in names.items() if missing.intersection(ours.names)]
        raise UserError(f"{_list(theirs)} missing in {_list([s.name for s in shards])}; download the checkpoint again")
    for head in heads:
        _check_tied(head, found["wte.weight"][:2])
    return {
        name: torch.empty(tensor.shape, dtype=dtype or found[name][2], device="meta") for name, tensor in needed.items()
    }


def entries_of(shards: list[Shard], config: Config) -> list[str]:
    """The entries of the family's `WEIGHTS` under which the files keep their tensors, for writing them back."""
    found = {name for shard in shards for name in shard.open()}
    return [name for name in _family(config).WEIGHTS if name.replace("{}", "0").replace("[]", "0") in found]


def read(shards: list[Shard], config: Config) -> Iterator[tuple[str, Tensor]]:
    """Yields our name and the values of every parameter, in the order of the files, which `check` has accepted."""
    names, needed = stored_names(config), _parameters(config)
    for shard in shards:
        tensors, used = shard.open(), 0
        for name in [name for name in tensors if name in names]:
            if shard.lazy and used > MAPPED:
                tensors, used = shard.open(), 0
            tensor, here = tensors[name], names[name]
            used += tensor.nbytes
            yield from zip(
                here.names, here.take_apart(tensor, [len(needed[n]) for n in here.names], config), strict=True
            )


def stored_names(config: Config, entries: list[str] | None = None) -> dict[str, Stored]:
    """Names in files -> the parameters in them, for every layer and expert or head, as far as the model has them.

    `entries` are those of the family's `WEIGHTS` to look at; None: all.
    """
    needed, names, table = _parameters(config), {}, _family(config).WEIGHTS
    for theirs in table if entries is None else table.keys() & entries:
        ours = stored(table[theirs])
        for layer in range(config.n_layer) if "{}" in theirs else (0,):
            for member in range(max(config.n_expert, config.n_head)) if "[]" in theirs else (0,):

                def numbered(name: str, layer: int = layer, member: int = member) -> str:
                    return name.replace("{}", str(layer)).replace("[]", str(member))

                here = replace(ours, names=tuple(map(numbered, ours.names)))
                if needed.keys() >= set(here.names):
                    names[numbered(theirs)] = here
    return names


def _parameters(config: Config) -> dict[str, Tensor]:
    """The model's parameters, without memory; a tied head is none of its own."""
    return {name: parameter.detach() for name, parameter in meta_gpt(config).named_parameters()}


def _family(config: Config) -> ModuleType:
    return importlib.import_module(f"lit_gpt.families.{config.family}")


def _ignored(config: Config) -> Callable[[str], object]:
    return re.compile("|".join(_family(config).IGNORED) or "(?!)").fullmatch


def _check_one(
    name: str, tensor: Tensor, wanted: tuple[int, ...], shard: Shard, described: str, of_tokens: bool
) -> None:
    """Compares a tensor with the shape that it must have; some have a row for every token."""
    if tensor.dtype not in STORAGES:
        raise UserError(
            f"{shard.name}: {name} is {tensor.dtype}; weights that are quantised already are not supported: "
            "download the original model"
        )
    if tuple(tensor.shape) == wanted:
        return
    advice = f"is it this checkpoint's own {described}, or is the file damaged?"
    if of_tokens and tuple(tensor.shape[1:]) == wanted[1:]:
        key = "vocab_size" if described == "config.json" else "padded_vocab_size"
        advice = f"if tokens were added, set {key} to {tensor.shape[0]} in {described}"
    raise UserError(f"{shard.name}: {name} is {tuple(tensor.shape)}, by {described} it is {wanted}; {advice}")


def _check_tied(head: tuple[Shard, str], embedding: tuple[Shard, str]) -> None:
    """Refuses a head that is not the embedding."""
    (shard, name), (_, other_name) = head, embedding
    if not same_values(head, embedding):
        raise UserError(
            f"{shard.name}: {name} differs from {other_name}, though config.json ties them; "
            "set tie_word_embeddings to false in config.json"
        )


def same_values(one: tuple[Shard, str], another: tuple[Shard, str]) -> bool:
    """Whether two tensors are equal; looks at a few rows at a time."""
    (shard, name), (other, other_name) = one, another
    shape = shard.open()[name].shape
    rows = max(1, MAPPED // max(1, 4 * shape[-1])) if shard.lazy and other.lazy else shape[0]
    return shape == other.open()[other_name].shape and all(
        torch.equal(
            shard.open()[name][start : start + rows].float(), other.open()[other_name][start : start + rows].float()
        )
        for start in range(0, shape[0], rows)
    )


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, all of them there."""
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: no weight_map from tensors to files; download it again (scripts/download.py)")
    names = sorted(set(names.values()))
    if strange := [name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name)]:
        raise UserError(f"{index}: '{strange[0]}' is no weight file of this folder; do not trust this checkpoint")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(names)} weight files missing: {_list(missing)}; "
            "run scripts/download.py again"
        )
    return [index.parent / name for name in names]


def one_shard(path: Path) -> Shard:
    """A file of weights, to be read in part."""
    if path.suffix == ".safetensors":
        return Shard(str(path), partial(_open, path, safetensors.torch.load_file))
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\3\4"  # since torch 1.6; the format before cannot be mapped
    load = partial(torch.load, map_location="cpu", weights_only=True, mmap=archive)
    return Shard(str(path), partial(_open, path, load), lazy=archive)


def _open(path: Path, load: Callable[[Path], object]) -> dict[str, Tensor]:
    """The tensors of a file that may be damaged or hostile."""
    try:
        tensors = load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever a reader says about a file that is not what it should be
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise UserError(
                f"{path} holds more than tensors ({code[1]}) and was not read: it may be an attack; "
                "use the model's safetensors or another source"
            ) from error
        reason = re.split(r"\. |\n", str(error).strip() or type(error).__name__)[0][:120]
        raise UserError(f"{path} is damaged or cut off ({reason}); run scripts/download.py again") from error
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):  # a run of litgpt saved more than weights
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds something other than named tensors; is it a checkpoint of the hub?")
    return tensors


def _list(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
