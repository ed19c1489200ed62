"""Speculative decoding (arXiv 2211.17192): a small model drafts some tokens, the large one judges them in one pass.

The texts have exactly the distribution of the large model's own, and without sampling they are the same.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_gpt.cache import KVCache
from lit_gpt.decode import Sampling, check_prompts, kernels_for
from lit_gpt.model import GPT
from lit_gpt.settings import UserError


@torch.inference_mode()
def decode_with_draft(
    model: GPT,
    draft: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    ahead: int = 4,
) -> Iterator[list[int]]:
    """Continues one prompt; yields each new token as `decode` does. The text ends as it does there.

    Args:
        draft: a model of the same vocabulary.
        ahead: tokens that are drafted before they are judged.

    Raises:
        UserError: the prompt is empty or fills a model's context, or the vocabularies differ.
    """
    words = {gpt.config.padded_vocab_size for gpt in (model, draft)}
    if len(words) > 1:
        raise UserError(f"--draft_checkpoint_dir: its vocabulary has another size ({max(words):,} and {min(words):,})")
    sampling, limit = sampling or Sampling(), min(gpt.config.block_size for gpt in (model, draft))
    (length,) = check_prompts([prompt], limit)
    weight, end = model.wte.weight, min(length + max_new_tokens, limit)
    caches = [KVCache(gpt.config, 1, end + ahead + 1, weight.device, weight.dtype) for gpt in (model, draft)]
    for cache in caches:
        cache.expect([length + max_new_tokens])
    tokens = list(prompt)

    def judge(which: int, upto: Sequence[int]) -> Tensor:
        """Probabilities after each of the tokens in `upto` that the cache does not hold yet, (T, V)."""
        gpt, cache = (model, draft)[which], caches[which]
        first = cache.used
        new = torch.tensor([upto[first:]], device=weight.device)
        at_1T = torch.arange(first, len(upto), device=weight.device)[None] >= length - 1  # a prompt's last only
        with kernels_for(new.numel(), weight.device):
            logits_TV = gpt(new, cache=cache, at_BT=at_1T)
        seen_TV = None
        if sampling.repetition_penalty != 1:
            seen_TV = torch.zeros_like(logits_TV, dtype=torch.bool)
            for row, stop in enumerate(range(len(upto) - len(logits_TV) + 1, len(upto) + 1)):
                seen_TV[row, upto[:stop]] = True
        return sampling.probabilities(logits_TV, seen_TV)

    def draw(share_V: Tensor) -> int:
        return int(torch.multinomial(share_V, 1, generator=generator))

    found = [draw(judge(0, tokens)[-1])]
    while True:
        for token in found:
            if token in stop_ids:
                return
            tokens.append(token)
            yield [token]
            if len(tokens) == end:
                return
        known, drafted, shares = len(tokens), list(tokens), []
        for _ in range(min(ahead, end - known - 1)):
            shares.append(judge(1, drafted)[-1])
            drafted.append(draw(shares[-1]))
        wanted_TV = judge(0, drafted)[-len(shares) - 1 :]
        found = []
        for token, want_V, share_V in zip(drafted[known:], wanted_TV, shares, strict=False):
            if float(torch.rand((), device=weight.device, generator=generator)) * share_V[token] >= want_V[token]:
                found.append(draw((want_V - share_V).clamp_min_(0)))  # where the draft says too little
                break
            found.append(token)
        else:
            found.append(draw(wanted_TV[-1]))
        for cache in caches:  # what was refused is forgotten
            cache.used = min(cache.used, known + len(found) - 1)
