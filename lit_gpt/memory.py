"""How much memory a run will need, and how to stay within what there is.

Counted in bytes: weights, what is trained (float32 value, gradient and AdamW's two moments: 16 bytes a parameter; a
weight of the base that is trained is counted among the weights, in 16 bits with a float32 copy besides),
what the backward pass keeps per token, and the largest temporaries. Process, libraries and CUDA context come on top;
on the GPU that is what `torch.cuda.max_memory_allocated` leaves out, too. On the CPU resident memory is more than what
is in use: `HEAP` and `PRODUCTS` say how much more, as it was measured (bench/NOTES.md).
"""

import contextlib
import ctypes
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lit_gpt.config import Config
from lit_gpt.data.batches import ROUND
from lit_gpt.lean import MOST_PLACES
from lit_gpt.loss import CACHED_BYTES, CHUNK_BYTES
from lit_gpt.methods import Method
from lit_gpt.model import meta_gpt
from lit_gpt.settings import UserError

QUANTIZED_BYTES = {"bnb.nf4": 0.5 + 4 / 64, "bnb.nf4-dq": 0.5 + 1 / 64 + 4 / 64 / 256, "bnb.int8-training": 1.0}
QUANTIZED_BYTES |= {"bnb.fp4": QUANTIZED_BYTES["bnb.nf4"], "bnb.fp4-dq": QUANTIZED_BYTES["bnb.nf4-dq"]}
QUANTIZED_BYTES |= {"bnb.int8": 1.0, "torch.int8": 1.0, "torch.int4": 0.5 + 4 / 64}
"""Bytes of a weight: its bits, and a scale for every 64 of them."""

HEAD_BYTES = {"cuda": 3 * CHUNK_BYTES, "cpu": CHUNK_BYTES + 4 * CACHED_BYTES}
"""A chunk of the loss (`lit_gpt.loss`): logits in 16 bits, and in 32 those probabilities that there are at once."""

HEAP = 1.4
"""On the CPU: what the allocator holds for every byte of activations, unless `return_large_blocks` was called."""

PRODUCTS = 0.1e9
"""On the CPU: matrix products compiled for their shapes, and their buffers."""

ENOUGH = 768
"""Tokens of a pack from which on what is computed takes longer than starting it (bench/NOTES.md)."""


@dataclass
class Needs:
    """Bytes that a run needs."""

    parameters: int
    """Number of the base's parameters."""
    trainable: int
    """Number of the trained parameters."""
    weights: float
    trained: float
    """Values, gradients and optimizer of what is trained."""
    kept: float
    """Per token of a pack: what the backward pass keeps."""
    kept_recompute: float
    """The same when blocks are recomputed."""
    block: float
    """Per token of a pack: temporaries of one block's backward pass, with what recomputing it keeps."""
    head: float
    at_once: float = 0.0
    """Weights, and gradients of trained ones, that are whole on a device at once where the base is divided over some:
    two blocks, of which one comes while the other is computed, and what is outside the blocks."""
    divisible: float = 0.0
    """Of `trained`, what is divided together with the base."""

    def divided(self, devices: int) -> "Needs":
        """What each of so many devices needs that divide the base among them."""
        trained = self.trained - self.divisible * (1 - 1 / devices)
        return replace(self, weights=self.weights / devices + self.at_once, trained=trained)

    def peak(self, tokens: int, recompute: bool) -> float:
        """Bytes at the peak of a step whose largest pack has this many tokens."""
        kept = self.kept_recompute if recompute else self.kept
        return self.weights + self.trained + tokens * (kept + self.block) + self.head

    def most_tokens(self, budget: float, recompute: bool) -> float:
        """Tokens of the largest pack that fits into `budget` bytes; at most 0 if none does."""
        kept = self.kept_recompute if recompute else self.kept
        return (budget - self.weights - self.trained - self.head) / (kept + self.block)


def kept_by_block(config: Config, adapted: tuple[str, ...], dropout: float, size: int, tiles: bool = False) -> float:
    """Bytes that the backward pass keeps of one block for one token.

    Args:
        adapted: ends of the names of the trained linear layers: their inputs are kept.
        dropout: share of every input that is dropped: a mask of a byte for each, or `tiles` (on a CPU) places.
        size: bytes of an activation.
        tiles: whether attention is computed in tiles (`lit_gpt.attention`): neither its output nor sums are kept.
    """
    C, F, D = config.n_embd, config.intermediate_size, config.head_size
    queries, keys = config.n_head * D, config.n_query_groups * D
    on = {name: name in adapted for name in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")}
    norms = (1 if config.parallel_residual else 2) * (2 if config.pre_norm and config.post_norm else 1)
    total = norms * C * size  # inputs of the norms: the residual stream
    total += (queries + 2 * keys) * size
    if not tiles or on["attn.o"]:
        total += queries * size  # the output
    if not tiles:
        total += 4 * config.n_head  # the softmax's sums
    total += (2 if config.mlp == "gated" else 1) * F * size  # inputs of the activation
    attention_input, mlp_input = (
        any(on[f"attn.{x}"] for x in "qkv"),
        on["mlp.up"] or (config.mlp == "gated" and on["mlp.gate"]),
    )
    inputs = attention_input + (mlp_input and not (config.shared_norm and attention_input))
    total += inputs * C * size + on["mlp.down"] * F * size  # attn.o reads the output counted above
    if dropout:
        gates = 2 if config.mlp == "gated" else 1
        masks = sum(on[f"attn.{x}"] for x in "qkv") * C + on["attn.o"] * queries
        masks += (on["mlp.up"] + (gates == 2) * on["mlp.gate"]) * C + on["mlp.down"] * F
        total += masks * -math.log1p(-dropout) * 4 if tiles and dropout <= MOST_PLACES else masks
    return total


def needs(
    config: Config,
    method: Method,
    dtype: torch.dtype,
    quantize: str | None,
    cpu_heap: float | None = None,
    optimizer: str = "adamw",
) -> Needs:
    """What a run with this model, method and precision needs. Reads no weights.

    Args:
        cpu_heap: for a run on the CPU, what its allocator holds for every byte of activations; None: it is on a GPU.
    """
    size, on_cpu, heap = dtype.itemsize, cpu_heap is not None, cpu_heap or 1.0
    model = meta_gpt(config)
    parameters = sum(p.numel() for p in model.parameters())
    linear = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    largest = max(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    block_parameters = sum(p.numel() for p in model.blocks[0].parameters())
    at_once = parameters - (config.n_layer - min(2, config.n_layer)) * block_parameters
    weights = float(size * parameters)
    if quantize:
        weights += linear * (QUANTIZED_BYTES[quantize] - size)
    own = set(model.parameters())
    method.attach(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    freed = sum(p.numel() for p in model.parameters() if p.requires_grad and p in own)
    state = 4 + (8 if optimizer == "adamw" else 2)  # gradient and moments
    trained = (trainable - freed) * (4 + state) + freed * (state + (4 if size == 2 else 0))
    dropout = getattr(method, "lora_dropout", 0.0)
    kept = kept_by_block(config, method.targets, dropout, size, on_cpu)
    block = float(3 * config.intermediate_size + 4 * config.n_embd) * size
    if on_cpu:  # query, key, value and their gradients in float32
        block += 8 * config.head_size * (config.n_head + 2 * config.n_query_groups)
    all_trained = trainable == parameters
    head = model.lm_head.weight if isinstance(model.lm_head, nn.Linear) else None
    head_gradient = 2 * size * head.numel() if head is not None and head.requires_grad else 0  # a chunk's, and the sum
    return Needs(
        parameters=parameters,
        trainable=trainable,
        weights=weights,
        trained=float(trained),
        kept=heap * config.n_layer * kept,
        kept_recompute=heap * (config.n_layer * config.n_embd * size + kept),
        block=heap * block,
        head=HEAD_BYTES["cpu" if on_cpu else "cuda"]
        + (size * largest if quantize else 0.0)
        + head_gradient
        + (PRODUCTS if on_cpu else 0.0),
        at_once=float(size * at_once * (2 if all_trained else 1)),
        divisible=float(trained) if all_trained else 0.0,
    )


@dataclass
class Plan:
    """What a run will hold in memory, and how it keeps within the budget."""

    needs: Needs
    budget: float
    """Bytes."""
    sizes: Collection[int]
    """Tokens, padding included, of the batches."""
    recompute_above: float
    """Batches with more tokens are recomputed in the backward pass."""

    @property
    def tokens(self) -> int:
        """Tokens of the batch that needs most: not the largest, if that is recomputed and it is not."""
        return max(self.sizes, key=self._peak)

    def _peak(self, tokens: int) -> float:
        return self.needs.peak(tokens, tokens > self.recompute_above)

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return self._peak(self.tokens)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak <= self.budget

    def lines(self) -> list[str]:
        """The plan as a table."""
        n, again = self.needs, self.tokens > self.recompute_above
        per_token = (n.kept_recompute if again else n.kept) + n.block
        if self.recompute_above >= max(self.sizes):
            blocks = "kept"
        else:
            blocks = (
                "recomputed" if self.recompute_above == 0 else f"recomputed above {self.recompute_above:,.0f} tokens"
            )
        limit = "" if self.budget == float("inf") else f" of {self.budget / 1e9:.2f} GB"
        return [
            f"weights      {n.weights / 1e9:7.2f} GB  {n.parameters:,} parameters",
            f"trained      {n.trained / 1e9:7.2f} GB  {n.trainable:,} parameters: values, gradients, AdamW",
            f"activations  {self.tokens * per_token / 1e9:7.2f} GB  {self.tokens:,} tokens x {per_token / 1e6:.2f} MB, "
            f"blocks {blocks}",
            f"loss, rest   {n.head / 1e9:7.2f} GB",
            f"peak         {self.peak / 1e9:7.2f} GB{limit}, besides what the libraries take",
        ]


def plan(n: Needs, budget: float, sizes: Collection[int], low_memory: bool) -> Plan:
    """Keeps what it can: recomputes all batches if `low_memory`, otherwise those that would not fit.

    Args:
        budget: bytes.
        sizes: tokens of the batches.
    """
    return Plan(n, budget, sizes, 0 if low_memory else max(0, n.most_tokens(budget, recompute=False)))


def fitting_pack(n: Needs, budget: float, low_memory: bool, pack_length: int) -> int:
    """Tokens of a pack that fits into `budget` bytes, at most `pack_length`.

    Packs become shorter down to `ENOUGH` tokens before blocks are recomputed; then they may keep their length.
    """
    most = n.most_tokens(budget, recompute=False)
    if low_memory or most < ENOUGH:
        most = n.most_tokens(budget, recompute=True)
    return max(ROUND, int(most) // ROUND * ROUND) if 0 < most < pack_length else pack_length


@contextlib.contextmanager
def memory_error_explained(explain: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory into one line: "out of memory", and what `explain` adds to it.

    On a CPU it is seen only where the process has a limit of its own: otherwise the system kills it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        kind, text = (MemoryError, torch.OutOfMemoryError), str(error)
        if isinstance(error, kind) or "can't allocate memory" in text or "bad_alloc" in text:
            raise UserError(f"out of memory{explain()}") from error
        raise


def give_back(limit: float) -> None:
    """Returns freed memory to the system if the process holds more than `limit` bytes; Linux with glibc only.

    Its allocator keeps what is freed, and where sizes change from batch to batch it takes more and more beside that.
    """
    with contextlib.suppress(OSError, AttributeError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > limit:
            ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Lets the process return memory of 4 MB and more as soon as it is free; Linux with glibc only.

    No holes remain, but every new block is filled with zeros by the system: training takes about 1.4 times as long.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD
