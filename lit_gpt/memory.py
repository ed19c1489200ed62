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
from lit_gpt.loss import CACHED_BYTES, CHUNK_BYTES
from lit_gpt.low_rank import MOST_PLACES
from lit_gpt.methods import Adapter, AdapterV2, LoRA, Method
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

ENOUGH_FAST = 2048
"""The same on a card that computes as fast as an H100."""


@dataclass
class Needs:
    """Bytes that a run needs.

    How much of the blocks the backward pass computes again is a number, see `GPT.hidden`: 0 nothing, `everything` all.
    """

    parameters: int
    """Number of the base's parameters."""
    trainable: int
    """Number of the trained parameters."""
    weights: float
    trained: float
    """Values, gradients and optimizer of what is trained."""
    layers: int
    """Number of blocks."""
    kept: float
    """Per token of a pack: what the backward pass keeps of one block."""
    kept_mlp: float
    """Of this, what is not kept where the MLP is computed again."""
    kept_input: float
    """Of this, what is still kept where the whole block is computed again."""
    block: float
    """Per token of a pack: temporaries of one block's backward pass."""
    head: float
    at_once: float = 0.0
    """Weights, and gradients of trained ones, that are whole on a device at once where the base is divided over some:
    two blocks, of which one comes while the other is computed, and what is outside the blocks."""
    divisible: float = 0.0
    """Of `trained`, what is divided together with the base."""

    @property
    def everything(self) -> int:
        """The number with which least is kept: the backward pass begins with the last block, which is there anyway."""
        return 2 * self.layers - 1

    def divided(self, devices: int) -> "Needs":
        """What each of so many devices needs that divide the base among them."""
        trained = self.trained - self.divisible * (1 - 1 / devices)
        return replace(self, weights=self.weights / devices + self.at_once, trained=trained)

    def per_token(self, recompute: int) -> float:
        """Bytes per token of a pack at the peak, the backward pass of the last block."""
        mlps, blocks = min(recompute, self.layers), max(0, recompute - self.layers)
        kept = self.layers * self.kept - mlps * self.kept_mlp - blocks * (self.kept - self.kept_mlp - self.kept_input)
        again = 0.0 if mlps < self.layers else self.kept_mlp if blocks < self.layers else self.kept
        return kept + again + self.block

    def peak(self, tokens: int, recompute: int) -> float:
        """Bytes at the peak of a step whose largest pack has this many tokens."""
        return self.weights + self.trained + tokens * self.per_token(recompute) + self.head

    def most_tokens(self, budget: float, recompute: int) -> float:
        """Tokens of the largest pack that fits into `budget` bytes; at most 0 if none does."""
        return (budget - self.weights - self.trained - self.head) / self.per_token(recompute)

    def least(self, budget: float, tokens: int) -> int:
        """How little has to be computed again for a pack of so many tokens; `everything` also where that is too little.

        MLPs come first: they are most of what is kept for the least computing.
        """
        enough = (n for n in range(self.everything) if self.peak(tokens, n) <= budget)
        return next(enough, self.everything)


@dataclass
class Kept:
    """Bytes that the backward pass keeps of one block for one token."""

    block: float
    mlp: float
    """Of these, what is not kept where the MLP is computed again."""


def kept_by_block(
    config: Config, method: Method, size: int, tiles: bool = False, compiled: bool = False, stream: int | None = None
) -> Kept:
    """What the backward pass keeps.

    Args:
        size: bytes of an activation.
        tiles: whether attention is computed in tiles, on a CPU (`lit_gpt.packs`): neither its output nor sums are kept.
        compiled: whether the blocks are (`GPT.compile_blocks`), where dropout keeps a mask.
        stream: bytes of an element of the residual stream and of what a norm gives; by default `size`.
    """
    stream = stream or size
    C, F, experts = config.n_embd, config.intermediate_size, config.n_expert_per_token if config.n_expert else 1
    queries, keys = config.n_head * config.head_size, config.n_query_groups * config.head_size
    widths = {"attn.q": (C, queries), "attn.k": (C, keys), "attn.v": (C, keys), "attn.o": (queries, C)}
    widths |= {"mlp.up": (C, F), "mlp.down": (F, C)} | ({"mlp.gate": (C, F)} if config.mlp == "gated" else {})
    adapted = {name: widths[name] for name in method.targets if name in widths}
    scaled, dora = isinstance(method, AdapterV2), getattr(method, "lora_dora", False)
    reads = set() if scaled or compiled else set(adapted)  # keep their inputs, unless these are `lean.made`
    qkv, up = bool(reads & {"attn.q", "attn.k", "attn.v"}), bool(reads & {"mlp.up", "mlp.gate"})
    remakes = isinstance(method, LoRA)
    made = remakes and (config.pre_norm or config.norm_sums)  # OLMo 2 reads sums

    wide = (1 if config.parallel_residual else 2) * C  # inputs of the norms: the residual stream
    wide += C if qkv and not made else 0
    attention = 2 * C if config.pre_norm and config.post_norm else 0
    attention += queries + 2 * keys
    attention += (queries + keys if config.qk_norm else 0) + (queries + 2 * keys if config.clip_qkv else 0)
    attention += queries if not tiles or "attn.o" in reads or (compiled and "attn.o" in adapted) else 0  # the output
    attention += queries if isinstance(method, Adapter) else 0  # what the trained tokens give
    gates = (2 if config.activation == "silu" or compiled else 3) if config.mlp == "gated" else 1
    mlp = experts * gates * F  # inputs of the activation, and unless it is silu what it gives
    mlp += experts * F if "mlp.down" in reads and not remakes and config.activation != "relu" else 0
    mlp += 2 * experts * C if config.n_expert else 0  # what they take and give
    shared = set(adapted) if compiled and config.shared_norm else set()  # is handed over from one code to another
    own = shared & {"mlp.up", "mlp.gate"} or (up and (config.n_expert or not made) and not (config.shared_norm and qkv))
    wide_mlp = experts * C if own else 0
    # An input that is not a norm's is kept, too, where the MLP is computed again.
    bare = config.norm_sums or not config.pre_norm or (config.shared_norm and (made or not qkv))
    totals = {"attn": attention * size + wide * stream, "mlp": mlp * size + wide_mlp * stream}
    if not tiles:
        totals["attn"] += 4 * config.n_head  # the softmax's sums
    dropout, rank = getattr(method, "lora_dropout", 0.0), getattr(method, "lora_r", 0)
    mask = -math.log1p(-dropout) * 4 if dropout <= MOST_PLACES and not compiled else 1.0 if dropout else 0.0
    for name, (into, out) in adapted.items():
        times = experts if name.startswith("mlp") else 1
        more = mask * into + size * rank
        if scaled or dora:  # the output before it is scaled
            more += size * out * (2 if dora and compiled else 1)
        totals[name.partition(".")[0]] += times * more
    return Kept(sum(totals.values()), totals["mlp"] - bare * C * stream)


def needs(
    config: Config,
    method: Method,
    dtype: torch.dtype,
    quantize: str | None,
    cpu_heap: float | None = None,
    optimizer: str = "adamw",
    compiled: bool = False,
    mixed: bool = False,
) -> Needs:
    """What a run with this model, method and precision needs. Reads no weights.

    Args:
        dtype: of the weights.
        cpu_heap: for a run on the CPU, what its allocator holds for every byte of activations; None: it is on a GPU.
        compiled: whether blocks are compiled.
        mixed: whether products are in 16 bits all the same; the backward pass keeps their copies of the weights.
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
    if mixed:
        weights += 2 * linear
    own = set(model.parameters())
    method.attach(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    freed = sum(p.numel() for p in model.parameters() if p.requires_grad and p in own)
    state = 4 + (8 if optimizer == "adamw" else 2)  # gradient and moments
    trained = (trainable - freed) * (4 + state) + freed * (state + (4 if size == 2 else 0))
    kept = kept_by_block(config, method, 2 if mixed else size, on_cpu, compiled, size)
    block = float(3 * config.intermediate_size + 4 * config.n_embd) * size
    if on_cpu:  # query, key, value and their gradients in float32
        block += 8 * config.head_size * (config.n_head + 2 * config.n_query_groups)
    all_trained = trainable == parameters
    head = model.lm_head.weight if isinstance(model.lm_head, nn.Linear) else None
    head_gradient = 2 * size * head.numel() if head is not None and head.requires_grad else 0  # a chunk's, and the sum
    scales = isinstance(method, AdapterV2) or (getattr(method, "lora_dora", False) and "lm_head" in method.targets)
    scaled = 4 * CHUNK_BYTES if scales else 0  # a scaled head's logits before and after each of its sums
    return Needs(
        parameters=parameters,
        trainable=trainable,
        weights=weights,
        trained=float(trained),
        layers=config.n_layer,
        kept=heap * kept.block,
        kept_mlp=heap * kept.mlp,
        kept_input=heap * config.n_embd * size,
        block=heap * block,
        head=HEAD_BYTES["cpu" if on_cpu else "cuda"]
        + (size * largest if quantize else 0.0)
        + head_gradient
        + scaled
        + (PRODUCTS if on_cpu else 0.0),
        at_once=float(size * at_once * (2 if all_trained else 1)),
        divisible=float(trained) if all_trained else 0.0,
    )


@dataclass
class Plan:
    """What a run will hold in memory, and how it keeps within the budget: it computes as little again as fits."""

    needs: Needs
    budget: float
    """Bytes."""
    sizes: Collection[int]
    """Tokens, padding included, of the batches."""
    low_memory: bool
    """Whether all is computed again in the backward pass, and not only what would not fit."""

    def recompute(self, tokens: int) -> int:
        """How much of the blocks is computed again for a batch of so many tokens, see `GPT.hidden`."""
        return self.needs.everything if self.low_memory else self.needs.least(self.budget, tokens)

    @property
    def tokens(self) -> int:
        """Tokens of the batch that needs most: not the largest, if that is recomputed and it is not."""
        return max(self.sizes, key=self._peak)

    def _peak(self, tokens: int) -> float:
        return self.needs.peak(tokens, self.recompute(tokens))

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
        n, most = self.needs, self.recompute(max(self.sizes))
        L = n.layers
        if most == 0:
            again = "blocks kept"
        elif self.low_memory:
            again = "blocks recomputed"
        else:
            part = f"{most} of {L} MLPs" if most <= L else f"MLPs and {most - L} of {L} blocks"
            again = f"above {max(0, n.most_tokens(self.budget, 0)):,.0f} tokens up to {part} recomputed"
        limit = "" if self.budget == float("inf") else f" of {self.budget / 1e9:.2f} GB"
        per_token = n.per_token(self.recompute(self.tokens))
        return [
            f"weights      {n.weights / 1e9:7.2f} GB  {n.parameters:,} parameters",
            f"trained      {n.trained / 1e9:7.2f} GB  {n.trainable:,} parameters: values, gradients, AdamW",
            f"activations  {self.tokens * per_token / 1e9:7.2f} GB  {self.tokens:,} tokens x {per_token / 1e6:.2f} MB, "
            + again,
            f"loss, rest   {n.head / 1e9:7.2f} GB",
            f"peak         {self.peak / 1e9:7.2f} GB{limit}, besides what the libraries take",
        ]


def fitting_pack(n: Needs, budget: float, low_memory: bool, pack_length: int, enough: int = ENOUGH) -> int:
    """Tokens of a pack that fits into `budget` bytes, at most `pack_length`.

    Packs become shorter down to `enough` tokens before anything is recomputed, and below that when everything is.
    """
    most = n.most_tokens(budget, n.everything)
    if not low_memory:
        most = max(n.most_tokens(budget, 0), min(enough, most))
    return max(ROUND, int(most) // ROUND * ROUND) if 0 < most < pack_length else pack_length


def enough_tokens(device: torch.device) -> int:
    """`ENOUGH` or `ENOUGH_FAST`: Hopper and Blackwell for data centres are fast, other cards are not."""
    fast = device.type == "cuda" and (9, 0) <= torch.cuda.get_device_capability(device) < (12, 0)
    return ENOUGH_FAST if fast else ENOUGH


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
