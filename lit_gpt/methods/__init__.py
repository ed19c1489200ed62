"""Finetuning methods: one dataclass of flags each, and a file of the same name that does the work.

A method changes the one GPT after it is loaded (and quantised): `attach(model)` freezes the base, adds or frees what is
trained, and leaves the outputs as they were, exactly. What is trained are the parameters that require gradients; only
they are saved (`trainable_state`). This module is torch-free, so that `--help` is.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lit_gpt.settings import UserError, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from lit_gpt.model import GPT


class Method(Protocol):
    """What finetuning, generation and evaluation ask of a method."""

    name: ClassVar[str]
    """Its name in files: `lit_model_<name>_finetuned.pth`."""

    def attach(self, model: "GPT") -> None:
        """Prepares the model for training with this method; its outputs stay exactly the same."""

    def merge(self, model: "GPT") -> None:
        """Folds what was trained into the base's weights: a plain GPT again, with the same outputs up to rounding."""


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

    def __post_init__(self) -> None:
        at_least(1, self, "lora_r", "lora_alpha")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout: must be in [0, 1), got {self.lora_dropout}")
        if not self.targets:
            raise UserError("LoRA adapts nothing: set at least one of --lora_query, --lora_value, ... to true")

    @property
    def targets(self) -> tuple[str, ...]:
        """Ends of the names of the adapted linear layers."""
        switches = {
            "attn.q": self.lora_query,
            "attn.k": self.lora_key,
            "attn.v": self.lora_value,
            "attn.o": self.lora_projection,
            "mlp.gate": self.lora_mlp,
            "mlp.up": self.lora_mlp,
            "mlp.down": self.lora_mlp,
            "lm_head": self.lora_head,
        }
        return tuple(name for name, on in switches.items() if on)

    def attach(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.lora import attach

        attach(model, self)

    def merge(self, model: "GPT") -> None:
        """See `Method`."""
        from lit_gpt.methods.lora import merge

        merge(model)


METHODS: dict[str, type] = {method.name: method for method in (LoRA,)}


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
