"""Finetuning methods: one dataclass of flags each, and a file of the same name that does the work.

A method changes the one GPT after it is loaded (and quantised): `attach(model)` freezes the base, adds or frees what is
trained, and leaves the outputs as they were, exactly. What is trained are the parameters that require gradients; only
they are saved (`trainable_state`). This module is torch-free, so that `--help` is.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lit_gpt.settings import UserError, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from lit_gpt.model import GPT


class Method(Protocol):
    """What finetuning, generation and evaluation ask of a method."""

    name: ClassVar[str]
    """Its name in files: `lit_model_<name>_finetuned.pth`."""
    targets: tuple[str, ...]
    """Ends of the names of the linear layers whose inputs the backward pass needs."""

    def rate(self, name: str) -> float:
        """Learning rate of a trained parameter, as a multiple of the run's."""

    def attach(self, model: "GPT") -> None:
        """Prepares the model for training with this method; its outputs stay exactly the same."""

    def merge(self, model: "GPT") -> None:
        """Folds what was trained into the base's weights, as far as that is possible; outputs stay up to rounding."""


SWITCHES = {
    "attn.q": "lora_query",
    "attn.k": "lora_key",
    "attn.v": "lora_value",
    "attn.o": "lora_projection",
    "mlp.gate": "lora_mlp",
    "mlp.up": "lora_mlp",
    "mlp.down": "lora_mlp",
    "lm_head": "lora_head",
}
"""Ends of the names of the linear layers -> the flag with which LoRA adapts them."""
LINEAR = tuple(name for name in SWITCHES if name != "lm_head")
"""Those of a block."""


@dataclass
class LoRA:
    """Low-rank adaptation, arXiv 2106.09685: W x + (lora_alpha / lora_r) B A x, where only A and B are trained."""

    name: ClassVar[str] = "lora"
    lora_r: int = 8
    """Rank of the update."""
    lora_alpha: int = 16
    """The update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Share of the update's inputs that are dropped in training."""
    lora_query: bool = True
    """Adapt the query projections."""
    lora_key: bool = False
    """Adapt the key projections."""
    lora_value: bool = True
    """Adapt the value projections."""
    lora_projection: bool = False
    """Adapt the attention's output projections."""
    lora_mlp: bool = False
    """Adapt every linear layer of the MLPs."""
    lora_head: bool = False
    """Adapt the output head."""
    lora_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead, for high ranks (arXiv 2312.03732)."""
    lora_dora: bool = False
    """Train the length of every row of a weight on its own (DoRA, arXiv 2402.09353)."""
    lora_plus_ratio: float = 1.0
    """Learning rate of B, as a multiple of A's (LoRA+, arXiv 2402.12354: 16)."""

    def __post_init__(self) -> None:
        at_least(1, self, "lora_r", "lora_alpha")
        if not self.lora_plus_ratio > 0:
            raise UserError(f"--lora_plus_ratio: must be positive, got {self.lora_plus_ratio}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout: must be in [0, 1), got {self.lora_dropout}")
        if not self.targets:
            raise UserError("LoRA adapts nothing: set at least one of --lora_query, --lora_value, ... to true")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.lora_alpha / (self.lora_r**0.5 if self.lora_rslora else self.lora_r)

    def rate(self, name: str) -> float:
        """See `Method`."""
        return self.lora_plus_ratio if name.endswith("lora_B") else 1.0

    @property
    def targets(self) -> tuple[str, ...]:
        """Ends of the names of the adapted linear layers."""
        return tuple(name for name, switch in SWITCHES.items() if getattr(self, switch))

    def attach(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.lora import attach

        attach(model, self)

    def merge(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.lora import merge

        merge(model)


@dataclass
class Full:
    """All weights are trained."""

    name: ClassVar[str] = "full"
    targets: ClassVar[tuple[str, ...]] = LINEAR

    def rate(self, name: str) -> float:
        """See `Method`."""
        return 1.0

    def attach(self, model: "GPT") -> None:
        """See `Method`."""
        model.requires_grad_(True)

    def merge(self, model: "GPT") -> None:
        """See `Method`: the weights are the base's own."""


@dataclass
class Adapter:
    """LLaMA-Adapter, arXiv 2303.16199: trained tokens that the upper layers see, through gates that start at zero."""

    name: ClassVar[str] = "adapter"
    targets: ClassVar[tuple[str, ...]] = ()
    adapter_prompt_length: int = 10
    """Trained tokens of every layer."""
    adapter_start_layer: int = 2
    """First layer that has some."""

    def __post_init__(self) -> None:
        at_least(1, self, "adapter_prompt_length")
        at_least(0, self, "adapter_start_layer")

    def rate(self, name: str) -> float:
        """See `Method`."""
        return 1.0

    def attach(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.adapter import attach

        if self.adapter_start_layer >= model.config.n_layer:
            raise UserError(
                f"--adapter_start_layer {self.adapter_start_layer}: the layers are 0 to {model.config.n_layer - 1}; "
                "no layer would have trained tokens"
            )
        attach(model, self)

    def merge(self, model: "GPT") -> None:
        """See `Method`: what depends on the queries cannot be folded into weights."""


@dataclass
class AdapterV2(Adapter):
    """LLaMA-Adapter V2, arXiv 2304.15010: besides, a scale and a bias for every output of a linear layer, and norms."""

    name: ClassVar[str] = "adapter_v2"
    targets: ClassVar[tuple[str, ...]] = LINEAR

    def attach(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.adapter_v2 import attach

        attach(model, self)


METHODS: dict[str, type] = {method.name: method for method in (LoRA, Full, Adapter, AdapterV2)}


def file_of(name: str) -> str:
    """The name of the file that a run of a method ends with."""
    return "lit_model_finetuned.pth" if name == Full.name else f"lit_model_{name}_finetuned.pth"


def path_flag(name: str) -> str:
    """The flag that takes that file."""
    return "finetuned_path" if name == Full.name else f"{name}_path"


@dataclass
class Trained:
    """The model that a command works with: a base, or what one of the methods made of it."""

    checkpoint_dir: Path
    """Folder of the converted model."""
    lora_path: Path | None = None
    """File that finetune/lora.py wrote, or its folder; unset: the base model."""
    adapter_path: Path | None = None
    """The same of finetune/adapter.py."""
    adapter_v2_path: Path | None = None
    """The same of finetune/adapter_v2.py."""
    finetuned_path: Path | None = None
    """The same of finetune/full.py."""

    def __post_init__(self) -> None:
        if len(given := [name for name in map(path_flag, METHODS) if getattr(self, name)]) > 1:
            flags = " and ".join(f"--{name}" for name in given)
            raise UserError(f"{flags}: a model is finetuned by one of them; give one")

    @property
    def finetuned(self) -> Path | None:
        """What was finetuned, by whatever method; the file itself says which."""
        return self.lora_path or self.adapter_path or self.adapter_v2_path or self.finetuned_path


def describe(method: Method) -> dict[str, Any]:
    """The method's name and settings as plain values, to be saved beside what it trained."""
    return {"name": method.name, **dataclasses.asdict(method)}


def restore(described: dict[str, Any]) -> Method:
    """The inverse of `describe`.

    Raises:
        UserError: the method is unknown to this version, or was saved with settings that it does not know.
    """
    settings = dict(described)
    name = settings.pop("name", None)
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown; known are {', '.join(METHODS)}")
    try:
        return METHODS[name](**settings)
    except TypeError as error:
        raise UserError(f"method '{name}': {error}; was the file written by a newer version?") from error


def trainable_state(model: "GPT") -> dict[str, "Tensor"]:
    """What is trained: the parameters that require gradients, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
