"""The challenge's two cards, and what finetuning takes on them: memory by the planner, hours by a model.

**The hours are a model; nothing was measured on these two cards.** A step computes 4 operations per token and weight of
a matrix product (forward, and backward without the gradients of frozen weights) and 6 per trained one. `SHARES` says
how much of its peak a GPU reaches with them: measured on an H200, in bench/NOTES.md ("Training on a GPU"). There the host
that starts the kernels was the limit; a card with a third or a sixth of the peak waits less for it, so it should reach
more of its peak, and end earlier, than the model says.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lit_gpt.settings import UserError, at_least, parse

if TYPE_CHECKING:
    from lit_gpt.config import Config
    from lit_gpt.finetune import Finetune
    from lit_gpt.memory import Needs, Plan
    from lit_gpt.methods import Method


@dataclass(frozen=True)
class Card:
    """A GPU of the challenge."""

    name: str
    memory_gb: float
    """10^9 bytes; its 24 or 40 GiB are a little more."""
    tflops: float
    """Peak in 10^12 operations a second: dense bfloat16 products that are summed up in float32."""

    @property
    def usable_gb(self) -> float:
        """What the planner gives to a run of these."""
        from lit_gpt.workload import CUDA_SHARE

        return CUDA_SHARE * self.memory_gb


CARDS = {"4090": Card("RTX 4090", 24, 165), "a100": Card("A100", 40, 312)}
"""The challenge's tracks."""

SHARES = {(False, False): 0.482, (False, True): 0.303, (True, False): 0.22, (True, True): 0.13}
"""(4-bit base, blocks recomputed) -> share of the peak in real tokens, where samples share their prompt's beginning."""

UNSHARED = 43.9 / 48.2
"""What is left of it where nothing is shared, as with NEFTune."""

LONGEST = 2048
"""Tokens of a prompt with its answer, at most."""


@dataclass
class Outlook:
    """What a finetuning run takes on a card."""

    memory: "Plan"
    """Of a batch with a sample of `LONGEST` tokens."""
    tokens_per_second: float
    """Real tokens, by the model."""

    def hours(self, tokens: float) -> float:
        """Time for so many tokens, validations and saves left out."""
        return tokens / self.tokens_per_second / 3600


def outlook(card: Card, settings: "Finetune", method: "Method", config: "Config") -> Outlook:
    """What a run takes on a card. Reads neither weights nor data.

    Raises:
        UserError: a quantised run needs bitsandbytes.
    """
    from lit_gpt.checkpoint import DTYPES
    from lit_gpt.memory import fitting_pack, needs, plan

    needed = needs(config, method, DTYPES[settings.precision], settings.quantize, None, settings.optimizer)
    budget = 1e9 * card.usable_gb * min(1.0, (settings.memory_gb or card.memory_gb) / card.memory_gb)
    asked = LONGEST if settings.pack_length is None else settings.pack_length
    usual = fitting_pack(needed, budget, settings.low_memory, asked)
    longest = min(settings.max_seq_length or LONGEST, LONGEST)
    found = plan(
        needed, budget, max(usual, longest if asked else longest * settings.micro_batch_size), settings.low_memory
    )
    share = SHARES[bool(settings.quantize), usual > found.recompute_above]
    if not settings.share_prefix or settings.neftune_alpha:
        share *= UNSHARED
    return Outlook(found, share * card.tflops * 1e12 / operations(needed, config))


def operations(needed: "Needs", config: "Config") -> float:
    """Operations of training on a token: the products with weights, forward and backward."""
    embeddings = 0 if config.tie_embeddings else config.padded_vocab_size * config.n_embd
    products = needed.parameters - embeddings
    if needed.trainable >= products:  # all are trained
        return 6.0 * products
    return 4.0 * products + 6.0 * needed.trainable


@dataclass
class Serving:
    """Memory of the server, in GB."""

    weights: float
    cache: float
    """Keys and values of one row, in GB."""
    rest: float
    """Activations of a whole prompt, and logits."""

    def total(self, rows: int) -> float:
        """With so many rows."""
        return self.weights + rows * self.cache + self.rest

    def rows(self, budget: float) -> int:
        """Rows that fit into so many GB; 1 at least."""
        return max(1, int((budget - self.weights - self.rest) / self.cache))


def serving(config: "Config", precision: str, quantize: str | None, length: int, tuned: int = 0) -> Serving:
    """What serving a model takes, by its sizes.

    Args:
        length: tokens of a row.
        tuned: bytes of what was trained, if it is not merged.
    """
    from lit_gpt.checkpoint import DTYPES
    from lit_gpt.memory import needs
    from lit_gpt.methods import LoRA

    size = DTYPES[precision].itemsize
    needed = needs(config, LoRA(), DTYPES[precision], quantize)
    cache = 2 * config.n_layer * config.n_query_groups * config.head_size * length * size
    return Serving(
        weights=(needed.weights + tuned) / 1e9,
        cache=cache / 1e9,
        rest=length * (needed.block + (size + 4) * config.padded_vocab_size) / 1e9,
    )


@dataclass
class Plans:
    """Settings of `plan`."""

    FIRST_WORD: ClassVar[str] = "configs"

    configs: list[str]
    """Settings of finetune/lora.py as YAML files; checkpoint_dir ends with the model's <org>/<name>."""
    mean_length: int = 300
    """Tokens of a sample on average, where the data are not prepared yet; otherwise their meta.json says it."""

    def __post_init__(self) -> None:
        at_least(1, self, "mean_length")
        if not self.configs:
            raise UserError("--configs is required: YAML files with settings of finetune/lora.py")


def plans(settings: Plans) -> None:
    """Prints what finetuning runs would take on the challenge's cards, as a Markdown table: memory and hours.

    Raises:
        UserError: a file is missing, has an unknown key, or names a model that the catalogue does not know.
    """
    print(table([Path(name) for name in settings.configs], settings.mean_length))


def table(paths: list[Path], mean_length: int) -> str:
    """The plans of settings files as a Markdown table, a row each."""
    from lit_gpt.finetune import Finetune
    from lit_gpt.methods import LoRA

    rows = [
        "| settings | base | trained | "
        + " | ".join(f"{card.name}: GB of {card.memory_gb}, tokens/s, hours" for card in CARDS.values())
        + " |",
        "|---|---|---:|" + "---:|" * len(CARDS),
    ]
    for path in paths:
        run, method = parse(["--config", str(path)], [Finetune, LoRA], shlex.join(sys.argv[:1]), "")
    return "\n".join(rows)
