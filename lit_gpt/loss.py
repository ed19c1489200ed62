"""Cross-entropy of the head's logits without ever holding the logits of a whole batch.

Full logits are the largest tensor of a training step: 2,048 tokens x 128,000 words in float32 are 1 GB, and as much
again for their gradient. Here the head runs on a few rows at a time, and where the head is frozen the gradient with
respect to its input is formed in the same pass (as in arXiv 2410.10989), so that nothing else is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 33_000_000
"""Bytes of the logits of a chunk: of the rows that go through the head at once."""

CACHED_BYTES = 2_000_000
"""Bytes of the float32 probabilities that the CPU works on at once: they stay in its cache."""


def head_loss(
    head: nn.Module, x_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Sum over N of weight * cross-entropy, in nats, of head(x) against the labels; a scalar of at least float32.

    Args:
        softcap: c: a logit x becomes c tanh(x / c).
    """
    most = max(1, CHUNK_BYTES // (x_NC.element_size() * head_rows(head)))
    chunks = max(1, -(-len(x_NC) // most))
    rows = -(-len(x_NC) // chunks)  # all alike: a small chunk reads the whole head, too
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        return _FrozenHeadLoss.apply(x_NC, head.weight, head.bias, labels_N, weights_N, rows, softcap)
    parts = []
    for chunk in zip(*_split(rows, x_NC, labels_N, weights_N), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_loss, head, *chunk, softcap, use_reentrant=False))
        else:
            parts.append(_loss(head, *chunk, softcap))
    return torch.stack(parts).sum()


def head_rows(head: nn.Module) -> int:
    """Size of the vocabulary that a head predicts."""
    return head.out_features if isinstance(head, nn.Linear) else head.base.out_features


def _split(rows: int, x_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None) -> tuple[Any, Any, Any]:
    x, labels = x_NC.split(rows), labels_N.split(rows)
    return x, labels, [None] * len(x) if weights_N is None else weights_N.split(rows)


def _loss(head: nn.Module, x_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None, softcap: float | None) -> Tensor:
    return _LogitsLoss.apply(head(x_NC), labels_N, weights_N, softcap)


class _LogitsLoss(torch.autograd.Function):
    """Sum of the weighted cross-entropies of a chunk's logits."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor | None, softcap: float | None
    ) -> Tensor:
        """The gradient is computed here, and only scaled in backward; somebody may hold on to the logits."""
        total, gradient_NV = _losses(logits_NV.clone(), labels_N, weights_N, softcap, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what the forward pass has computed."""
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * scale, None, None, None


class _FrozenHeadLoss(torch.autograd.Function):
    """`head_loss` for a plain linear head that is not trained."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor | None,
        rows: int,
        softcap: float | None,
    ) -> Tensor:
        """The gradient of x is computed here, chunk by chunk, and only scaled in backward."""
        device = x_NC.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_NC.dtype
        x, weight = x_NC.to(dtype), weight_VC.to(dtype)
        bias = None if bias_V is None else bias_V.to(dtype)
        wanted = ctx.needs_input_grad[0]
        gradient_NC = torch.empty_like(x) if wanted else None
        total = torch.zeros((), device=x.device, dtype=torch.promote_types(dtype, torch.float32))
        start = 0
        with torch.autocast(device, enabled=False):
            for x_chunk, labels, weights in zip(*_split(rows, x, labels_N, weights_N), strict=True):
                loss, gradient_NV = _losses(F.linear(x_chunk, weight, bias), labels, weights, softcap, wanted)
                total += loss
                if wanted:
                    torch.mm(gradient_NV, weight, out=gradient_NC[start : start + len(labels)])
                start += len(labels)
        if wanted:
            ctx.save_for_backward(gradient_NC)
        ctx.x_dtype = x_NC.dtype
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what the forward pass has computed."""
        (gradient_NC,) = ctx.saved_tensors
        return (gradient_NC * scale).to(ctx.x_dtype), None, None, None, None, None, None


def _losses(
    logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor | None, softcap: float | None, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the weighted cross-entropies, and if `wanted` its gradient; the logits are written over."""
    slope = None
    if softcap is not None:
        share = logits_NV.div_(softcap).tanh_()
        logits_NV, slope = softcap * share, (1 - share.square()) if wanted else None
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    on_cpu = logits_NV.device.type == "cpu"
    rows = max(1, CACHED_BYTES // (4 * logits_NV.size(1))) if on_cpu else len(labels_N)
    total = torch.zeros((), device=logits_NV.device, dtype=wide)
    for logits, labels, weights in zip(*_split(rows, logits_NV, labels_N, weights_N), strict=True):
        scores = logits.to(wide) if on_cpu else logits  # there 16-bit numbers' maximum takes longer than widening them
        prob = scores.softmax(-1, dtype=wide)
        behind = scores.amax(-1, keepdim=True).to(wide) - scores.gather(-1, labels[:, None]).to(wide)
        losses = behind - prob.amax(-1, keepdim=True).log()
        total += (losses if weights is None else losses * weights[:, None]).sum()
        if wanted:
            prob.scatter_add_(-1, labels[:, None], torch.full_like(losses, -1.0))
            logits.copy_(prob if weights is None else prob.mul_(weights[:, None]))
    if not wanted:
        return total, None
    return total, logits_NV if slope is None else logits_NV.mul_(slope)
