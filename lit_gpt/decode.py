"""Text from a model, token by token: sampling and the loop over a KV cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.attention import KVCache
from lit_gpt.model import GPT
from lit_gpt.settings import UserError, at_least


@dataclass
class Sampling:
    """How the next token is drawn. Defaults: always the likeliest."""

    temperature: float = 0.0
    """Logits are divided by it; 0: the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability (arXiv 1904.09751)."""

    def __post_init__(self) -> None:
        at_least(0, self, "temperature")
        at_least(1, self, "top_k")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p: must be in (0, 1], got {self.top_p}")

    def draw(self, logits_BV: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token id per row, (B,)."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        logits_BV = logits_BV.float()
        logits_BV = (logits_BV - logits_BV.max(-1, keepdim=True).values) / max(self.temperature, 1e-9)
        if self.top_k is not None and self.top_k < logits_BV.size(-1):
            kth = logits_BV.topk(self.top_k, dim=-1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
            before_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) - sorted_BV.softmax(dim=-1)
            outside_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= self.top_p)
            outside_BV.scatter_(1, order_BV[:, :1], False)  # the likeliest stays, however small top_p is
            logits_BV = logits_BV.masked_fill(outside_BV, -torch.inf)
        return torch.multinomial(logits_BV.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[list[int | None]]:
    """Continues all prompts as one batch; yields, per round, the next token of each prompt.

    A prompt that has drawn one of `stop_ids`, or filled the model's context, is finished: None from then on.
    The loop ends when all are finished or after `max_new_tokens` rounds.

    Args:
        prompts: token ids, not empty; lengths may differ.

    Raises:
        UserError: a prompt is empty or fills the model's context.
    """
    sampling, device, limit = sampling or Sampling(), model.wte.weight.device, model.config.block_size
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise UserError("the prompt is empty; give the model at least one token to start from")
    if max(lengths) >= limit:
        raise UserError(f"the prompt has {max(lengths)} tokens, the model's context is {limit}; shorten the prompt")
    slots = min(max(lengths) + max_new_tokens, limit)
    cache = KVCache(model.config, len(prompts), slots, device, model.wte.weight.dtype)
    idx_BT = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        idx_BT[row, : lengths[row]] = torch.tensor(prompt)
    length_B1 = torch.tensor(lengths, device=device)[:, None]
    at_BT = torch.arange(idx_BT.size(1), device=device) == length_B1 - 1
    together = min(lengths) == max(lengths)
    open_rows = set(range(len(prompts)))
    logits_BV = model(idx_BT.to(device), cache=cache, at_BT=at_BT)
    for round_ in range(max_new_tokens):
        token_B = sampling.draw(logits_BV, generator)
        tokens = token_B.tolist()
        for row in list(open_rows):
            if tokens[row] in stop_ids or lengths[row] + round_ >= limit:
                open_rows.remove(row)
        if not open_rows:
            return
        yield [token if row in open_rows else None for row, token in enumerate(tokens)]
        if round_ + 1 == max_new_tokens or min(lengths[row] for row in open_rows) + round_ + 1 >= limit:
            return
        positions_BT = None if together else (length_B1 + round_).clamp(max=slots - 1)
        logits_BV = model(token_B[:, None], positions_BT=positions_BT, cache=cache)[:, -1]


def complete(model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: object) -> list[list[int]]:
    """All new tokens of every prompt at once; takes what `decode` takes."""
    out: list[list[int]] = [[] for _ in prompts]
    for tokens in decode(model, prompts, max_new_tokens, **options):
        for row, token in enumerate(tokens):
            if token is not None:
                out[row].append(token)
    return out
