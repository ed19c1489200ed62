"""Model families: one file per architecture of the Hugging Face hub, named after its `model_type`.

A family file is a translation table, without torch:

- `MODEL_TYPES`: the `model_type` values of `config.json` that it reads.
- `fields(hf)`: the dict of a `config.json` -> the fields of `lit_gpt.config.Config`.
- `WEIGHTS`: name of a tensor in the checkpoint -> its name in `lit_gpt.model.GPT`; `{}` stands for the layer, `[]` for
  the expert or head. A `Stored` instead of a name says that the tensor is kept in another way: fused, turned or
  interleaved. Where exports of different years or sizes name a tensor differently, all names lead to the same target.
- `in_files(config)`, where that matters: which of them `transformers` writes into files for this model.
- `IGNORED`: regular expressions of tensors that old exports carry and that can be computed (masks, rotary tables).

Names, sizes and licences of well-known checkpoints are in `catalogue.py`.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from lit_gpt.settings import UserError

if TYPE_CHECKING:
    from lit_gpt.config import Config

NOT_FAMILIES = {"catalogue"}

ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu")
"""The nonlinearities that `lit_gpt.model` knows, by their Hugging Face names."""


def families() -> dict[str, ModuleType]:
    """All supported `model_type` values and the family module that reads each."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if found.name not in NOT_FAMILIES]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {model_type: module for module in modules for model_type in module.MODEL_TYPES}


def family(model_type: str) -> ModuleType:
    """The family module of a `model_type`.

    Raises:
        UserError: the architecture is not supported; lists those that are.
    """
    known = families()
    if model_type not in known:
        raise UserError(f"model_type '{model_type}' is not supported; supported are {', '.join(sorted(known))}")
    return known[model_type]


def in_files(config: "Config") -> list[str]:
    """The entries of the family's `WEIGHTS` that `transformers` writes where several lead to the same parameter."""
    module = importlib.import_module(f"{__name__}.{config.family}")
    return list(module.in_files(config)) if hasattr(module, "in_files") else []


def activation(hf: dict[str, Any], key: str, default: str) -> str:
    """The name of the MLP's nonlinearity, which `config.json` has under `key`.

    Raises:
        UserError: the model does not know it.
    """
    name = hf.get(key) or default
    if name not in ACTIVATIONS:
        raise UserError(f"{key} '{name}' is not supported; supported are {', '.join(ACTIVATIONS)}")
    return name


def rope_fields(hf: dict[str, Any], percentage: float | None = None) -> dict[str, Any]:
    """The fields about rotary embeddings: from `rope_theta`, `rope_scaling` or the newer `rope_parameters`.

    LongChat's first release said `rope_condense_ratio` for linear scaling.

    Args:
        hf: the dict of a `config.json`.
        percentage: share of a head that is rotated unless `rope_parameters` knows better. None: the family rotates
            whole heads.

    Raises:
        UserError: a kind of scaling that the model does not know, or a share in a family that has none.
    """
    rope = hf.get("rope_scaling") or {}
    if "rope_condense_ratio" in hf and not rope:
        rope = {"type": "linear", "factor": hf["rope_condense_ratio"]}
    if not isinstance(rope, dict):
        rope = {"type": rope}
    rope = {**rope, **(hf.get("rope_parameters") or {})}
    if nested := [key for key, value in rope.items() if isinstance(value, dict)]:
        raise UserError(f"rope_parameters for {nested[0]} alone are not supported in a {hf['model_type']} model")
    scaling = _scaling(rope, hf)
    share = rope.get("partial_rotary_factor", percentage or hf.get("partial_rotary_factor"))
    if percentage is None and share not in (None, 1):
        raise UserError(f"partial_rotary_factor {share} is not supported in a {hf['model_type']} model")
    return {
        "rope_base": float(rope.get("rope_theta") or hf.get("rotary_emb_base") or hf.get("rope_theta") or 10000),
        "rope_percentage": float(share or 1),
        **scaling,
    }


def _scaling(rope: dict[str, Any], hf: dict[str, Any]) -> dict[str, Any]:
    """The fields about scaled rotary embeddings, with what `transformers` assumes where a key is missing."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    known = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    if kind not in known or (kind == "yarn" and "short_factor" in rope):  # the first Phi 3's own, of the same name
        raise UserError(f"rope_scaling type '{kind}' is not supported; supported are {', '.join(known)}")
    if kind in ("default", "dynamic"):  # dynamic changes something beyond max_position_embeddings only
        return {"rope_scaling": None}
    if kind == "linear":
        return {"rope_scaling": {"factor": float(rope["factor"])}}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return {"rope_scaling": {name: float(rope[name]) for name in names}}
    key = "original_max_position_embeddings"
    original = hf.get(key) or rope.get(key) or hf["max_position_embeddings"]
    factor = float(rope.get("factor") or hf["max_position_embeddings"] / original)
    length = rope.get("attention_factor")
    if kind == "longrope":
        if not original > 1:
            raise UserError(f"{key} must be above 1, got {original}")
        if length is None:
            length = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1
        divisors = {name: [float(value) for value in rope[name]] for name in ("short_factor", "long_factor")}
        return {"rope_scaling": {**divisors, key: float(original), "attention_factor": float(length)}}
    if length is None:
        part, all_parts = rope.get("mscale"), rope.get("mscale_all_dim")
        both = (part, all_parts) if part and all_parts else (1, 0)
        length = math.prod(
            (0.1 * m * math.log(max(factor, 1)) + 1) ** sign for m, sign in zip(both, (1, -1), strict=True)
        )
    scaling = {"factor": factor, key: float(original), "attention_factor": float(length)}
    betas = {"beta_fast": float(rope.get("beta_fast") or 32), "beta_slow": float(rope.get("beta_slow") or 1)}
    return {"rope_scaling": {**scaling, **betas, "truncate": bool(rope.get("truncate", True))}}


@dataclass(frozen=True)
class Stored:
    """Parameters of ours that a checkpoint keeps in one tensor, or otherwise than we do."""

    names: tuple[str, ...]
    how: Literal["rows", "grouped", "turned", "interleaved"]
    """One below the other; group by group (`split_grouped`); the same turned by 90 degrees (GPT-2); pairs of rotated
    channels side by side instead of half a head apart (GPT-J)."""

    def take_apart(self, tensor: Any, sizes: list[int], config: "Config") -> tuple[Any, ...]:
        """The parameters in a checkpoint's tensor; `sizes` are their numbers of rows."""
        if self.how == "grouped":
            return split_grouped(tensor, config.n_head, config.n_query_groups)
        if self.how == "interleaved":
            return (_regroup(tensor, config, lambda x: x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)),)
        return (tensor.T if self.how == "turned" and tensor.ndim == 2 else tensor).split(sizes)

    def put_together(self, parts: list[Any], config: "Config") -> Any:
        """The inverse of `take_apart`."""
        if self.how == "grouped":
            return join_grouped(*parts, config.n_head, config.n_query_groups)
        if self.how == "interleaved":
            return _regroup(parts[0], config, lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
        joined = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
        start = 0
        for part in parts:
            joined[start : start + len(part)] = part
            start += len(part)
        return joined.T if self.how == "turned" and joined.ndim == 2 else joined

    @property
    def plain(self) -> bool:
        """Whether the tensor is the parameter as it is."""
        return len(self.names) == 1 and self.how == "rows"

    def joined(self, parts: list[Any], config: "Config") -> Any:
        """As `put_together`, of matrices that have rows like the parameters but other columns: never turned."""
        return replace(self, how="rows" if self.how == "turned" else self.how).put_together(parts, config)

    def shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor, given those of the parameters."""
        joined = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return joined[::-1] if self.how == "turned" else joined


def stored(value: "str | Stored") -> Stored:
    """What stands in `WEIGHTS`, a plain name too, as a `Stored`."""
    return Stored((value,), "rows") if isinstance(value, str) else value


def grouped(*names: str) -> Stored:
    """See `Stored`."""
    return Stored(names, "grouped")


def rows(*names: str) -> Stored:
    """See `Stored`."""
    return Stored(names, "rows")


def turned(*names: str) -> Stored:
    """See `Stored`."""
    return Stored(names, "turned")


def interleaved(name: str) -> Stored:
    """See `Stored`."""
    return Stored((name,), "interleaved")


def _regroup(tensor: Any, config: "Config", change: Callable[[Any], Any]) -> Any:
    """Changes the order of the rotated channels in every head of a projection."""
    rotated = int(config.head_size * config.rope_percentage)
    heads = tensor.clone().unflatten(0, (-1, config.head_size))
    heads[:, :rotated] = change(heads[:, :rotated])
    return heads.flatten(0, 1)


def split_grouped(fused: Any, n_head: int, n_query_groups: int) -> tuple[Any, Any, Any]:
    """Takes a fused projection (rows: for each group its queries, one key, one value) apart into query, key and value.

    `fused` is a weight (rows, C) or bias (rows,) tensor; each result has its heads in their usual order.
    GPT-NeoX stores one query per group; Falcon stores `n_head / n_query_groups` queries per group.
    """
    per_group = n_head // n_query_groups
    rest = fused.shape[1:]
    grouped = fused.reshape(n_query_groups, per_group + 2, -1, *rest)
    q, k, v = grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1]
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)


def join_grouped(q: Any, k: Any, v: Any, n_head: int, n_query_groups: int) -> Any:
    """The inverse of `split_grouped`."""
    per_group, rest = n_head // n_query_groups, q.shape[1:]
    head = q.shape[0] // n_head
    fused = q.new_empty(n_query_groups, per_group + 2, head, *rest)
    fused[:, :per_group] = q.reshape(n_query_groups, per_group, head, *rest)
    fused[:, per_group] = k.reshape(n_query_groups, head, *rest)
    fused[:, per_group + 1] = v.reshape(n_query_groups, head, *rest)
    return fused.reshape(-1, *rest)
