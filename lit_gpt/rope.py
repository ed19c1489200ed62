"""Rotary embeddings (arXiv 2104.09864): how fast the pairs of a head's channels turn, and what scales that.

Letters as in `lit_gpt.model`; R rotated channels of a head.
"""

import functools
import math

import torch
from torch import Tensor

from lit_gpt.config import Config

Rope = tuple[Tensor, Tensor]
"""Cosines and sines; see `rope_tables`."""


def rope_tables(
    config: Config, positions_BT: Tensor, dtype: torch.dtype, kind: str = "global", lengths_BT: Tensor | None = None
) -> Rope:
    """Cosines and sines for these positions.

    Computed in float32, once per call for all layers, so that a model has no table to load, move or outgrow.

    Args:
        kind: "local" for layers with a window that have a rotary base of their own, otherwise "global".
        lengths_BT: tokens of the sequence that each token belongs to, or anything that broadcasts to (B, T): LongRoPE
            turns all of a sequence otherwise if that is long. By default as many as there are positions.

    Returns:
        Two tensors (B, T, 1, R) of `dtype` for `lean.rotate`, where R is the number of rotated channels: what a channel
        keeps of itself, and what it takes of its partner, R / 2 away, which is negative in the first half.
    """
    R = int(config.head_size * config.rope_percentage)
    base = config.rope_local_base if kind == "local" else config.rope_base
    inverse = base ** (-torch.arange(0, R, 2, device=positions_BT.device, dtype=torch.float32) / R)
    scaling = (config.rope_scaling or {}) if kind == "global" else {}
    if "low_freq_factor" in scaling:  # Llama 3.1: slow waves are stretched by `factor`, fast ones kept, a ramp between
        turns = scaling["original_max_position_embeddings"] * inverse / (2 * torch.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        inverse = _between(inverse, scaling["factor"], ((turns - low) / (high - low)).clamp(0, 1))
    elif "beta_fast" in scaling:
        inverse = _between(inverse, scaling["factor"], _yarn_keep(scaling, base, R, inverse.device))
    elif "short_factor" in scaling:
        lengths_BT = positions_BT.max() + 1 if lengths_BT is None else lengths_BT
        short, long = (_divisors(tuple(scaling[f"{name}_factor"]), inverse.device) for name in ("short", "long"))
        inverse = inverse / torch.where((lengths_BT > config.short_length)[..., None, None], long, short)
    elif scaling:
        inverse = inverse / scaling["factor"]
    angles = positions_BT[:, :, None, None] * inverse
    length = scaling.get("attention_factor", 1.0)
    cos, sin = (angles.cos() * length).to(dtype), (angles.sin() * length).to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


@functools.cache
def _divisors(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept on the device: while a CUDA graph is captured, nothing can be copied there."""
    return torch.tensor(values, device=device)


def _between(inverse: Tensor, factor: float, keep: Tensor) -> Tensor:
    """Frequencies that are kept, or divided by the factor, or something between."""
    return inverse * keep + inverse / factor * (1 - keep)


def _yarn_keep(scaling: dict[str, float], base: float, R: int, device: torch.device) -> Tensor:
    """YaRN (arXiv 2309.00071): keeps pairs that turn `beta_fast` times in the original length, not `beta_slow` times.

    The ramp between is linear in the number of the pair.
    """

    def pair(turns: float) -> float:
        """The number of the pair that turns so many times."""
        return R * math.log(scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(scaling["beta_fast"]), pair(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    numbers = torch.arange(R // 2, device=device, dtype=torch.float32)
    return 1 - ((numbers - low) / (high - low if high != low else 0.001)).clamp(0, 1)
