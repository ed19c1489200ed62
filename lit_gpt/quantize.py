"""Linear layers in 4 or 8 bits, by bitsandbytes (QLoRA: arXiv 2305.14314; LLM.int8: arXiv 2208.07339).

The blocks' linear layers are quantised; embedding, head and norms stay as they are. What comes out is still an
`nn.Linear` by type, so that methods attach to it as to any other.
"""

import logging
from types import ModuleType

import torch
from torch import Tensor, nn

from lit_gpt.settings import UserError

KINDS = ("bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training")
"""4-bit NormalFloat or float; "-dq" quantises the scales as well (0.4 bits per weight less); 8-bit integers."""


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
        kind: one of `KINDS`.
        compute: type of the arithmetic: weights are widened to it when they are used.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    bnb = bitsandbytes()
    out_features, in_features = weight.shape
    with torch.device("meta"):
        if kind == "bnb.int8-training":
            layer = bnb.nn.Linear8bitLt(
                in_features, out_features, bias is not None, has_fp16_weights=False, threshold=6.0
            )
            layer.weight = bnb.nn.Int8Params(weight.to(compute), requires_grad=False, has_fp16_weights=False)
        else:
            options = {"quant_type": kind[4:7], "compress_statistics": kind.endswith("-dq")}
            layer = bnb.nn.Linear4bit(in_features, out_features, bias is not None, compute_dtype=compute, **options)
            layer.weight = bnb.nn.Params4bit(weight.to(compute), requires_grad=False, **options)
            # Where the CPU has bfloat16 instructions, the first call in evaluation mode would repack the weight for a
            # kernel without gradients, for good: training after a validation would learn from wrong gradients.
            layer.support_avx512bf16_for_cpu = False
    layer.compute_dtype = compute
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(compute), requires_grad=False)
    return layer.to(device)


def is_quantized(layer: nn.Linear) -> bool:
    """Whether `quantized` made the layer."""
    return not layer.weight.is_floating_point()


def dequantized(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) that a quantised layer computes with, or the plain weight of a plain one."""
    if not is_quantized(layer):
        return layer.weight.to(dtype)
    bnb = bitsandbytes()
    if hasattr(layer.weight, "quant_state"):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return (layer.weight.data.float() * scales[:, None].float() / 127).to(dtype)
