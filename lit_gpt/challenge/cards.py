"""The challenge's two cards, and what finetuning takes on them: memory by the planner, hours by a model.

**The hours are a model; nothing was measured on these two cards.** A pack of tokens takes what the host needs to start
its kernels, and then what the GPU needs to compute them, as if the two did not overlap:

- the host: `STARTING`, the time of a pack on an H200, which is so fast that the host is its limit (bench/NOTES.md);
- the GPU: 4 operations per token and weight of a matrix product (forward, and backward without the gradients of frozen
  weights), 6 per trained one, 2 more of each where blocks are recomputed; at `SHARE` of its peak.

Tokens that samples have in common are counted for every sample, though a run without NEFTune computes them once. Both
make the model a pessimistic one; that LoRA on all linear layers starts more kernels than the measured one does not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lit_gpt.files import read_json
from lit_gpt.settings import UserError, at_least, parse

if TYPE_CHECKING:
    from lit_gpt.config import Config
    from lit_gpt.finetune import Finetune
    from lit_gpt.memory import Needs
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

STARTING = {(False, False): 0.14, (False, True): 0.20, (True, False): 0.27, (True, True): 0.46}
"""(4-bit base, blocks recomputed) -> seconds of a pack of a model with 32 blocks, measured on an H200: the shares of
its peak in bench/NOTES.md ("Training on a GPU"), as times."""

SHARE = 0.54
"""Of a GPU's peak, where the host is not the limit: 59.4 % on an H200 with packs of 4,096 tokens, of which a tenth were
shared and so computed once."""

LONGEST = 2048
"""Tokens of a prompt with its answer, at most."""


@dataclass
class Outlook:
    """What a finetuning run takes on a card."""

    peak_gb: float
    """Memory of its largest step: of a usual pack, or of one with a sample of `LONGEST` tokens."""
    limit_gb: float
    """What it may take: of the card, or of the run's own `memory_gb` where that is less."""
    fits: bool
    pack: int
    """Tokens of a usual pack, as many as fit; 0: padded micro-batches."""
    again: float
    """How much of its forward pass is computed again in the backward pass, of 1."""
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
    from lit_gpt.memory import Plan, fitting_pack, needs

    s = settings
    needed = needs(config, method, DTYPES[s.precision], s.quantize, None, s.optimizer, s.compile, s.mixed)
    budget = 1e9 * card.usable_gb * min(1.0, (s.memory_gb or card.memory_gb) / card.memory_gb)
    asked = LONGEST if s.pack_length is None else s.pack_length
    usual = fitting_pack(needed, budget, s.low_memory, asked)
    longest = min(s.max_seq_length or LONGEST, LONGEST)
    largest = longest if asked else longest * s.micro_batch_size
    tokens = usual or largest
    found = Plan(needed, budget, {tokens, max(tokens, largest)}, s.low_memory)
    again = computed_again(config, method, found.recompute(tokens))
    kept, recomputed = (STARTING[bool(s.quantize), every] for every in (False, True))
    starting = (kept + again * (recomputed - kept)) * config.n_layer / 32
    computing = tokens * operations(needed, config, again) / (SHARE * card.tflops * 1e12)
    return Outlook(found.peak / 1e9, budget / 1e9, found.fits, usual, again, tokens / (starting + computing))


def computed_again(config: "Config", method: "Method", recompute: int) -> float:
    """The share of the forward pass's products that the backward pass computes again; `recompute`: see `GPT.hidden`."""
    L, C, D = config.n_layer, config.n_embd, config.head_size
    attention = 2 * C * D * (config.n_head + config.n_query_groups)
    one = C * config.intermediate_size * (config.n_expert_per_token if config.n_expert else 1)
    gates = 2 if config.mlp == "gated" else 1
    mlp = (gates + ("mlp.down" in method.targets)) * one  # what down gives is needed if something is added to it
    again = min(recompute, L) * mlp + max(0, recompute - L) * attention
    return again / L / (attention + (gates + 1) * one)


def operations(needed: "Needs", config: "Config", again: float) -> float:
    """Operations of training on a token: its products with weights.

    Args:
        again: see `computed_again`.
    """
    embeddings = 0 if config.tie_embeddings else config.padded_vocab_size * config.n_embd
    products = needed.parameters - embeddings
    trained = min(needed.trainable, products)
    frozen = 0 if trained == products else products
    return (4.0 + 2 * again) * frozen + (6.0 + 2 * again) * trained


@dataclass
class Serving:
    """Memory of the server, in GB."""

    weights: float
    cache: float
    """Keys and values of one row, in GB."""
    rest: float
    """Activations of a whole prompt, and logits."""
    length: int
    """Tokens of a row."""

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
        length=length,
    )


@dataclass
class Plans:
    """Settings of `plan`."""

    FIRST_WORD: ClassVar[str] = "configs"

    configs: list[str]
    """Settings of finetune/lora.py: YAML files, whose checkpoint_dir ends with the model's <org>/<name>."""
    mean_length: int = 300
    """Tokens of a sample on average, where data_dir has no data yet."""

    def __post_init__(self) -> None:
        at_least(1, self, "mean_length")


def plans(settings: Plans) -> None:
    """Prints what finetuning would take on the challenge's cards: memory and hours.

    Raises:
        UserError: a file is missing or has an unknown key, or the catalogue does not know its model.
    """
    print(table([Path(name) for name in settings.configs], settings.mean_length))


def table(paths: list[Path], mean_length: int) -> str:
    """The plans of settings files as a Markdown table, a row for each file and card.

    Args:
        mean_length: tokens of a sample where the data are not prepared yet.
    """
    from lit_gpt.config import Config
    from lit_gpt.finetune import Finetune
    from lit_gpt.methods import LoRA

    rows = ["| settings | base | card | memory, GB | packs, tokens | tokens/s | tokens | hours |"]
    rows.append("|---|---|---|---:|---|---:|---:|---:|")
    for path in paths:
        try:
            run, method = parse(["--config", str(path)], [Finetune, LoRA], "", "")
            name = "/".join(run.checkpoint_dir.parts[-2:])
            described = (run.checkpoint_dir / "lit_config.json").is_file()
            config = Config.from_checkpoint(run.checkpoint_dir) if described else Config.from_name(name)
            tokens = run_length(run, mean_length)
        except UserError as error:
            raise UserError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error
        for card in CARDS.values():
            seen = outlook(card, run, method, config)
            memory = f"{seen.peak_gb:.1f} of {seen.limit_gb:.1f}"
            packs = f"{seen.pack:,}" + (f", {seen.again:.0%} recomputed" if seen.again else "")
            speed = [f"{seen.tokens_per_second:,.0f}", f"{tokens / 1e6:.1f} M", f"{seen.hours(tokens):.1f}"]
            cells = [memory, packs, *speed] if seen.fits else [memory, "do not fit", "", "", ""]
            rows.append("| " + " | ".join([path.as_posix(), name, card.name, *cells]) + " |")
    return "\n".join(rows)


def run_length(run: "Finetune", mean_length: int) -> float:
    """Tokens that a run trains on, by its limits: of steps, of iters, and of epochs if the data are there.

    Raises:
        UserError: it has none of these limits.
    """
    meta = read_json(run.data_dir / "meta.json") if (run.data_dir / "meta.json").is_file() else None
    samples = [run.max_steps * run.batch_size] if run.max_steps else []
    samples += [run.max_iters * run.micro_batch_size] if run.max_iters else []
    if meta:
        mean_length = meta["tokens"]["train"] / meta["rows"]["train"]
        samples += [run.epochs * meta["rows"]["train"]] if run.epochs else []
    if not samples:
        raise UserError(f"how long the run is cannot be told: give max_steps, or prepare {run.data_dir} for its epochs")
    return min(samples) * mean_length
