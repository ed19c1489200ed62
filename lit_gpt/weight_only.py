"""Linear layers for use, not for training: weights of 4 or 8 bits, or in the order of a kernel.

By PyTorch's and bitsandbytes' kernels. Inputs and outputs keep their type: only the weights are rounded. Letters: M
rows of inputs, N outputs, K inputs.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.settings import UserError

FEW = 16
"""Rows up to which, on a CPU, a kernel that reads 8-bit weights is faster than widening them for one product."""
ROWS = 32
"""Rows for which oneDNN is to choose an order of the weights."""
GROUP = 64
"""Weights that share a scale and an offset in 4 bits; 32 where a row is no multiple of it."""


class WeightOnly(nn.Linear):
    """A frozen layer, still an `nn.Linear` by type, whose `weight` holds whole numbers and whose buffers scale them."""

    def __init__(
        self, out_features: int, in_features: int, weight: Tensor, bias: Tensor | None, **scales: Tensor
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        for name, scale in scales.items():
            self.register_buffer(name, scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        y = self.product(x.reshape(-1, x.size(-1))).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def product(self, x_MK: Tensor) -> Tensor:
        """(M, K) -> (M, N), without the bias."""
        raise NotImplementedError

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic."""
        return next(self.buffers()).dtype

    def widened(self) -> Tensor:
        """The weight (N, K) that the layer computes with."""
        unit = torch.eye(self.in_features, dtype=self.compute_dtype, device=self.weight.device)
        return torch.cat([self.product(rows) for rows in unit.split(1024)]).t()


class Int8(WeightOnly):
    """Rows of 8-bit integers, each with a scale: a row's largest weight becomes 127."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, compute: torch.dtype) -> "Int8":
        """Rounds a weight (N, K)."""
        wide = weight.float()
        most = wide.abs().amax(1, keepdim=True).clamp_min_(1e-30)
        return cls(
            *weight.shape, (wide * (127 / most)).round_().to(torch.int8), bias, scale=(most[:, 0] / 127).to(compute)
        )

    def product(self, x_MK: Tensor) -> Tensor:
        """See `WeightOnly`."""
        # On a GPU that kernel reads at a tenth of the memory's rate or less: 22 tokens/s with 7B on an H200.
        if len(x_MK) <= FEW and not x_MK.is_cuda and _has_kernel("_weight_int8pack_mm"):
            return torch._weight_int8pack_mm(x_MK.contiguous(), self.weight, self.scale)
        return F.linear(x_MK, self.weight.to(x_MK.dtype)) * self.scale

    def joined(self, others: "Sequence[Int8]", bias: Tensor | None) -> "Int8":
        """One layer with the outputs of this and the others."""
        parts = [self, *others]
        weight, scale = torch.cat([part.weight for part in parts]), torch.cat([part.scale for part in parts])
        return Int8(len(weight), self.in_features, weight, bias, scale=scale)


class Int4(WeightOnly):
    """4-bit integers in groups with a scale and an offset, by PyTorch's own kernels, also for many rows.

    Raises:
        UserError: the kernel takes other sizes or types only.
    """

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, compute: torch.dtype) -> "Int4":
        """Rounds a weight (N, K)."""
        N, K = weight.shape
        cuda = weight.is_cuda
        if K % (128 if cuda else 32) or N % (8 if cuda else 16) or (cuda and compute != torch.bfloat16):
            raise UserError(
                f"--quantize torch.int4: no kernel on this device for {K} inputs and {N} outputs in {compute}; "
                "take bnb.nf4 or torch.int8"
            )
        group = GROUP if K % GROUP == 0 else 32
        wide = weight.float().view(N, K // group, group)
        low, high = wide.aminmax(dim=-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min_(1e-30).to(compute).float()
        offset = (low + 8 * scale).to(compute).float()
        q_NK = ((wide - offset) / scale + 8).round_().clamp_(0, 15).to(torch.int32).view(N, K)
        if cuda:
            packed = torch.ops.aten._convert_weight_to_int4pack((q_NK[:, ::2] << 4 | q_NK[:, 1::2]).to(torch.uint8), 8)
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK, 1)
        scales = torch.cat((scale, offset), -1).transpose(0, 1).contiguous().to(compute)  # (K / group, N, 2)
        return cls(N, K, packed, bias, scales=scales)

    def product(self, x_MK: Tensor) -> Tensor:
        """See `WeightOnly`."""
        kernel = torch.ops.aten._weight_int4pack_mm if x_MK.is_cuda else torch.ops.aten._weight_int4pack_mm_for_cpu
        return kernel(x_MK.contiguous(), self.weight, self.in_features // len(self.scales), self.scales)

    def joined(self, others: "Sequence[Int4]", bias: Tensor | None) -> "Int4 | None":
        """See `Int8.joined`."""
        parts = [self, *others]
        if any(part.out_features % 64 for part in parts):  # the packed tiles have 64 outputs
            return None
        weight, scales = torch.cat([part.weight for part in parts]), torch.cat([part.scales for part in parts], 1)
        return Int4(scales.size(1), self.in_features, weight, bias, scales=scales)


class Packed4bit(WeightOnly):
    """bitsandbytes' 4-bit weights, in the order of its kernel for processors with bfloat16 instructions.

    Scales are rounded to bfloat16 there.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> "Packed4bit | None":
        """Packs a layer of bitsandbytes; None where its kernel does not take it."""
        import bitsandbytes as bnb

        state, N, K = layer.weight.quant_state, layer.out_features, layer.in_features
        if (
            layer.compute_dtype != torch.bfloat16
            or N % 32
            or K % state.blocksize
            or not bnb.functional.has_avx512bf16()
        ):
            return None
        absmax = state.absmax
        if state.nested:
            absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
        # A byte holds two neighbours of a row, the first one in its upper half, and is to hold weights of two rows that
        # are 16 apart; a run of 32 bytes is to hold two columns of 32 rows.
        upper, lower = layer.weight.data.view(N // 32, 2, 16, K // 2).unbind(1)
        pairs = torch.stack((upper >> 4 | (lower & 0xF0), upper & 0x0F | lower << 4), -1)
        packed = pairs.transpose(1, 2).reshape(N, K // 2)
        scales = absmax.view(N, K // state.blocksize).t().to(torch.bfloat16).contiguous()
        return cls(N, K, packed, layer.bias, scales=scales, code=state.code)

    @functools.cached_property
    def _kernel_name(self) -> str:
        return f"gemv_4bit_inference_cpu_{'fp4' if self.code[1] > 0 else 'nf4'}_bf16"

    def product(self, x_MK: Tensor) -> Tensor:
        """See `WeightOnly`."""
        N, K = self.out_features, self.in_features
        x_MK, block, kernel = x_MK.contiguous(), K // len(self.scales), None
        if x_MK.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            kernel = _packed_kernel(self._kernel_name)
        if kernel is None:
            return torch.ops.bitsandbytes.gemv_4bit(x_MK, self.weight, (N, K), self.scales, self.code, block)
        y_MN = x_MK.new_empty(len(x_MK), N)
        places = (x.data_ptr() for x in (x_MK, self.weight, self.scales, y_MN))
        kernel(len(x_MK), N, K, *places, block, K, N)
        return y_MN

    def joined(self, others: "Sequence[Packed4bit]", bias: Tensor | None) -> "Packed4bit":
        """See `Int8.joined`."""
        parts = [self, *others]
        weight, scales = torch.cat([part.weight for part in parts]), torch.cat([part.scales for part in parts], 1)
        return Packed4bit(len(weight), self.in_features, weight, bias, scales=scales, code=self.code)


class Reordered(nn.Linear):
    """A layer of 16 bits whose weights lie in the order in which oneDNN reads them for a few rows on a CPU.

    A plain layer's are put into that order at every call, which takes as long as the product itself does for 16 rows.
    For a single row PyTorch's own product of a plain layer is faster: `decode.kernels_for`.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> "Reordered | None":
        """Reorders a plain layer; None where oneDNN does not take it."""
        weight = layer.weight
        takes = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(
            weight.dtype
        )
        if type(layer) is not nn.Linear or weight.is_cuda or takes is None or not torch.backends.mkldnn.is_available():
            return None
        if not getattr(torch.ops.mkldnn, takes)():
            return None
        own = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        own.weight, own.bias = nn.Parameter(reordered, requires_grad=False), layer.bias
        return own

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


@functools.cache
def _packed_kernel(name: str) -> Callable[..., None] | None:
    """bitsandbytes' kernel, or None where it has another name.

    Its operator (0.50) does 30 us of Python around a kernel that takes 70 us or more for a row and a layer.
    """
    from bitsandbytes.cextension import lib

    try:
        kernel = lib._lib[name]
    except AttributeError:
        return None
    whole, place = ctypes.c_int64, ctypes.c_void_p
    kernel.argtypes, kernel.restype = [whole] * 3 + [place] * 4 + [whole] * 3, None
    return kernel


def _has_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CPU")


def joined(parts: Sequence[nn.Linear]) -> nn.Linear | None:
    """One layer with the outputs of several, or None where their kinds do not allow it."""
    kinds = {type(part) for part in parts}
    if len(kinds) > 1 or not (kinds == {nn.Linear} or issubclass(*kinds, WeightOnly)):
        return None
    biases = [part.bias for part in parts]
    if any(bias is None for bias in biases) != all(bias is None for bias in biases):
        return None
    bias = None if biases[0] is None else torch.cat(biases)
    if kinds == {nn.Linear}:
        layer = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=False, device="meta")
        layer.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer
    return parts[0].joined(parts[1:], bias)
