"""Linear layers in 4 or 8 bits, by bitsandbytes (QLoRA: arXiv 2305.14314; LLM.int8: arXiv 2208.07339).

The blocks' linear layers are quantised; embedding, head and norms stay as they are. What comes out is still an
`nn.Linear` by type, so that methods attach to it as to any other.
"""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.model import Attention, GatedMLP
from lit_gpt.settings import UserError
from lit_gpt.weight_only import Int4, Int8, Packed4bit, Reordered, WeightOnly

KINDS = ("bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training")
"""4-bit NormalFloat or float; "-dq" quantises the scales as well (0.4 bits per weight less); 8-bit integers."""
FOR_USE = (*KINDS, "bnb.int8", "torch.int8", "torch.int4")
"""These, and kinds for use only: "bnb.int8" computes as "bnb.int8-training" does; those of PyTorch need no package."""


def bitsandbytes() -> ModuleType:
    """The package, without the warnings of its own casts that it gives at every call.

    Raises:
        UserError: it is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise UserError("--quantize needs bitsandbytes; pip install bitsandbytes") from error
    return bnb


def quantized(
    weight: Tensor, bias: Tensor | None, kind: str, compute: torch.dtype, device: torch.device | str
) -> nn.Linear:
    """A frozen quantised layer with this weight (out, in).

    Args:
        kind: one of `FOR_USE`.
        compute: type of the arithmetic: weights are widened to it when they are used.

    Raises:
        UserError: bitsandbytes is not installed, or PyTorch has no kernel for such a layer.
    """
    if kind in ("torch.int8", "torch.int4"):
        weight, bias = (None if x is None else x.to(device=device, dtype=compute) for x in (weight, bias))
        return (Int8 if kind == "torch.int8" else Int4).of(weight, bias, compute)
    bnb = bitsandbytes()
    out_features, in_features = weight.shape
    with torch.device("meta"):
        if kind in ("bnb.int8", "bnb.int8-training"):
            layer = bnb.nn.Linear8bitLt(
                in_features, out_features, bias is not None, has_fp16_weights=False, threshold=6.0
            )
            layer.weight = bnb.nn.Int8Params(weight.to(compute), requires_grad=False, has_fp16_weights=False)
        else:
            options = {"quant_type": kind[4:7], "compress_statistics": kind.endswith("-dq")}
            layer = bnb.nn.Linear4bit(in_features, out_features, bias is not None, compute_dtype=compute, **options)
            layer.weight = bnb.nn.Params4bit(weight.to(compute), requires_grad=False, **options)
    layer.compute_dtype = compute
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(compute), requires_grad=False)
    layer = layer.to(device)
    layer.forward = functools.partial(_forward, layer, layer.forward)
    return layer


def _forward(layer: nn.Linear, kernels: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(..., in) -> (..., out), by the widened weight, so that training and use are the same network.

    bitsandbytes' own forward pass is left out where it is not: with 8 bits it rounds the inputs as well, on the CPU in
    evaluation only; with 4 bits, the first evaluation on a CPU with bfloat16 instructions repacks the weight for a
    kernel without gradients, for good. Its 4-bit kernels on the GPU are for few tokens and differ by rounding only.
    """
    if x.is_cuda and not torch.is_grad_enabled() and hasattr(layer.weight, "quant_state"):
        return kernels(x)
    return _Widened.apply(x, layer)


class _Widened(torch.autograd.Function):
    """Widens the weight when it is used and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        y = x.new_empty(*x.shape[:-1], layer.out_features)
        x_2d, y_2d, weight = x.flatten(0, -2), y.view(-1, y.size(-1)), _in_use(layer, x.dtype)
        if layer.bias is None:
            torch.mm(x_2d, weight.t(), out=y_2d)
        else:
            torch.addmm(layer.bias, x_2d, weight.t(), out=y_2d)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ _in_use(ctx.layer, dy.dtype), None


_buffers: dict[torch.dtype, Tensor] = {}


def _in_use(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The widened weight (out, in), on the CPU in one buffer for all layers, until the next is asked for.

    A new tensor for every use would leave gigabytes of holes in the heap, each a little too small for the next.
    """
    if layer.weight.device.type != "cpu":
        return dequantized(layer, dtype)
    size = layer.out_features * layer.in_features
    if dtype not in _buffers or _buffers[dtype].numel() < size:
        with torch.inference_mode(False):  # a tensor made in that mode could not be written to outside
            _buffers[dtype] = torch.empty(size, dtype=dtype)
    weight = _buffers[dtype][:size].view(layer.out_features, layer.in_features)
    scales = _scales(layer)
    for start in range(0, layer.out_features, 256):  # 256 rows always are whole blocks of 64 weights
        rows = slice(start, min(start + 256, layer.out_features))
        weight[rows] = _widen(layer, scales, rows, dtype)
    return weight


def _scales(layer: nn.Linear) -> Tensor:
    """What the integers are multiplied by, in float32: one number per row (8 bits) or per block of weights (4 bits)."""
    if layer.weight.dtype == torch.int8:
        return (layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB).float() / 127
    state = layer.weight.quant_state
    if state.nested:
        return bitsandbytes().functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    return state.absmax.float()


def _widen(layer: nn.Linear, scales: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of the weight."""
    if layer.weight.dtype == torch.int8:
        return (layer.weight.data[rows] * scales[rows, None]).to(dtype)
    state, width = layer.weight.quant_state, layer.in_features
    start, stop = rows.start * width, rows.stop * width
    data = layer.weight.data.view(-1)[start // 2 : -(-stop // 2)]
    absmax = scales[start // state.blocksize : -(-stop // state.blocksize)]
    # As rows of one block each: its CPU kernel (0.50) takes wrong scales where a row ends inside a block.
    size, block = stop - start, state.blocksize
    shape = (size // block, block) if size % block == 0 else (1, size)
    widened = torch.ops.bitsandbytes.dequantize_4bit(data, absmax, block, state.quant_type, shape, dtype)
    return widened.view(-1, width)


def for_decoding(model: nn.Module, several: bool = False) -> None:
    """Puts layers in a form of the same weights that is fast for few tokens, and can be no longer trained, in place.

    Queries, keys and values become one product, and so do gate and up where the weights are small. On a processor with
    bfloat16 instructions bitsandbytes' 4-bit weights are put in the order of its kernel; its 8-bit weights go to
    PyTorch's kernel.

    Args:
        several: most calls will have several tokens, but not many: 16-bit weights are reordered for them on a CPU.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and is_quantized(layer) and not isinstance(layer, WeightOnly):
            fast = None
            if layer.weight.dtype == torch.int8:
                scale = _scales(layer).to(layer.compute_dtype)
                fast = Int8(layer.out_features, layer.in_features, layer.weight.data, layer.bias, scale=scale)
            elif layer.weight.device.type == "cpu":
                fast = Packed4bit.of(layer)
            if fast is not None:
                model.set_submodule(name, fast)
    for block in model.blocks:
        if isinstance(block.attn, Attention):  # an adapter around it asks the layers one by one
            block.attn.fuse()
        for part in block.modules():
            if isinstance(part, GatedMLP) and isinstance(part.gate, WeightOnly):  # others would take memory
                part.fuse()
    if several:
        for name, layer in list(model.named_modules()):
            shared = layer is model.lm_head and layer.weight is model.wte.weight  # a second copy would be large
            if isinstance(layer, nn.Linear) and not shared and (fast := Reordered.of(layer)) is not None:
                model.set_submodule(name, fast)


def is_quantized(layer: nn.Linear) -> bool:
    """Whether `quantized` made the layer."""
    return not layer.weight.is_floating_point()


def dequantized(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that a quantised layer computes with, or the plain weight of a plain one."""
    if isinstance(layer, WeightOnly):
        return layer.widened().to(dtype)
    if not is_quantized(layer):
        return layer.weight.to(dtype)
    return _widen(layer, _scales(layer), slice(0, layer.out_features), dtype)
