"""With which numbers of tokens a call of the model gives a token the same bits: found by trial, on this machine.

Kernels sum in another order for other sizes, which shows in few of the numbers that come out: in bfloat16 we have seen
one in 500 to 8,000. So many are compared, of every linear layer's.

Shapes: M tokens of a call.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from lit_gpt.cache import weighed
from lit_gpt.decode import kernels_for
from lit_gpt.model import GPT

COMPARED = 100_000
"""Numbers of a layer that are compared, or some more."""


def sixteens(size: int) -> int:
    """The next multiple of 16: kernels treat all rows of such a number alike."""
    return -(-size // 16) * 16


@torch.inference_mode()
def like_sizes(model: GPT, most: int) -> list[int]:
    """Numbers of tokens in a call, up to `most` or a few more, with which a token gets the same bits but for attention.

    Tried with random numbers on the first block, the last one and the head. Empty if it holds for large numbers only.
    """
    most, width = sixteens(most), model.config.n_embd
    weight, blocks = model.wte.weight, [model.blocks[0], model.blocks[-1]]
    x_1MC = torch.randn(1, most, width, generator=torch.Generator().manual_seed(0))
    x_1MC = x_1MC.to(weight.device, weight.dtype)
    found: list[Tensor] = []
    parts = [part for block in blocks for part in ([block.attn] if model.config.n_expert else [block.attn, block.mlp])]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda *call: found.append(call[-1])) for layer in layers]

    def tokenwise(start: int, size: int) -> list[Tensor]:
        """What comes out of all layers for `size` tokens; of the head at two places only, it has so many numbers."""
        found.clear()
        part_1MC = x_1MC[:, start : start + size]
        place_1M = torch.zeros(1, size, dtype=torch.int64, device=weight.device)
        ropes = model.ropes(place_1M, weight.dtype)
        with kernels_for(size, weight.device):
            out = [block(part_1MC, ropes, lambda _, q_1HMD, *__: q_1HMD) for block in blocks]
            return [*found, *out, *([model.logits(part_1MC)] if start < 2 else [])]

    alike, whole = [], tokenwise(0, most)
    for size in (1, *range(4, 32, 4), *range(32, most, 16)):
        last = most - size  # the last ones may be treated in another way
        starts = {0, 1, last, *range(0, last, max(1, 2 * last * size * width // COMPARED))}
        if _same_bits(tokenwise, size, starts, whole, dim=1):
            alike.append(size)
    for hook in hooks:
        hook.remove()
    return [*alike, most] if alike and alike[0] <= 8 else []


@torch.inference_mode()
def like_queries(model: GPT, length: int, most: int = 16) -> list[int]:
    """Numbers of tokens up to `most` that may look at keys at a time: one of them gets the same bits with each number.

    Tried with random numbers, for several numbers of keys up to `length`.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    G, R, D = config.n_query_groups, config.n_head // config.n_query_groups, config.head_size
    alike = [size for size in (1, 2, 4, 8) if size < most]
    for keys in {min(length, keys) for keys in (1, 37, 64, 300, 1000, length)}:
        k_1GSD, v_1GSD = torch.randn(2, 1, G, keys, D, generator=generator)
        seen = partial(_seen, torch.randn(1, G, most, R, D, generator=generator), k_1GSD, v_1GSD)
        whole = seen(0, most)
        alike = [size for size in alike if _same_bits(seen, size, range(most - size + 1), whole, dim=2)]
    return [*alike, most]


def _seen(q_1GMRD: Tensor, k_1GSD: Tensor, v_1GSD: Tensor, start: int, size: int) -> list[Tensor]:
    """What `size` tokens see, and their sums: (1, G, size, R, ...)."""
    q_1GND = q_1GMRD[:, :, start : start + size].flatten(2, 3)
    return [x.unflatten(2, (size, -1)) for x in weighed(q_1GND, k_1GSD, v_1GSD, 1 / q_1GND.size(-1))]


def _same_bits(
    compute: Callable[[int, int], list[Tensor]], size: int, starts: Iterable[int], whole: list[Tensor], dim: int
) -> bool:
    """Whether so many tokens, from any of these starts on, get the bits that they have among all."""
    return all(
        torch.equal(x, y.narrow(dim, start, size))
        for start in starts
        for x, y in zip(compute(start, size), whole, strict=False)
    )
