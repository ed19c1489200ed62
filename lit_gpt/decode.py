"""Text from a model, token by token: sampling, and rows that move on together over a KV cache.

`Rows` is the core: a model, a cache, and for each row of a batch the token that comes next and its position, all on the
device. A step never waits for the device, so that on a GPU it is replayed as a CUDA graph, and the host reads the
tokens one step behind. `decode` is the loop over it; B rows, V words, K words that may be drawn.
"""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_gpt.cache import KVCache
from lit_gpt.model import GPT
from lit_gpt.settings import UserError, at_least


@dataclass
class Sampling:
    """How the next token is drawn. Defaults: always the likeliest.

    What is excluded, and in which order the rules apply, is as in transformers' `generate`.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0: the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability (arXiv 1904.09751)."""
    min_p: float = 0.0
    """Draw among the tokens that are at least this share as likely as the likeliest (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Logits of the tokens so far, prompt included, are divided by it, negative ones multiplied (arXiv 1909.05858)."""

    def __post_init__(self) -> None:
        at_least(1, self, "top_k")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature: must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p: must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"--min_p: must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"--repetition_penalty: must be above 0, got {self.repetition_penalty}")

    def draw(
        self, logits_BV: Tensor, generator: torch.Generator | None = None, seen_BV: Tensor | None = None
    ) -> Tensor:
        """One token id per row, (B,). Waits for nothing on the device.

        Args:
            seen_BV: bool, the tokens of each row so far, for the penalty.
        """
        if self.temperature == 0:
            return self._penalised(logits_BV, seen_BV).argmax(-1)
        scores_BK, ids_BK = self._kept(self._penalised(logits_BV, seen_BV))
        share_BK = scores_BK.softmax(-1)
        # The first of exponential waiting times is a draw by share; torch.multinomial would ask the host for a check.
        waits_BK = torch.empty_like(share_BK).exponential_(generator=generator).clamp_min_(1e-30)
        choice_B1 = share_BK.div_(waits_BK).argmax(-1, keepdim=True)
        return (choice_B1 if ids_BK is None else ids_BK.gather(1, choice_B1))[:, 0]

    def probabilities(self, logits_BV: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """The probability of every token to be drawn, (B, V), float32."""
        logits_BV = self._penalised(logits_BV, seen_BV)
        if self.temperature == 0:
            return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(-1, keepdim=True), 1.0)
        scores_BK, ids_BK = self._kept(logits_BV)
        share_BK = scores_BK.softmax(-1)
        return share_BK if ids_BK is None else torch.zeros_like(logits_BV).scatter_(1, ids_BK, share_BK)

    def _penalised(self, logits_BV: Tensor, seen_BV: Tensor | None) -> Tensor:
        logits_BV = logits_BV.float()
        if seen_BV is None or self.repetition_penalty == 1:
            return logits_BV
        penalty = self.repetition_penalty
        return logits_BV.where(~seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty))

    def _kept(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the tokens among which is drawn, minus infinity for "not this one", and ids unless all in order."""
        ids_BK = None
        if self.top_k is not None and self.top_k < logits_BV.size(-1):
            logits_BV, ids_BK = logits_BV.topk(self.top_k, dim=-1)
        elif self.top_p < 1:
            logits_BV, ids_BK = logits_BV.sort(dim=-1, descending=True)
        scores_BK = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(self.temperature, 1e-9)
        if self.top_p < 1:
            share_BK = scores_BK.softmax(-1)
            before_BK = share_BK.cumsum(-1) - share_BK
            scores_BK = scores_BK.masked_fill((before_BK >= self.top_p) & (before_BK > 0), -torch.inf)
        if self.min_p > 0:
            scores_BK = scores_BK.masked_fill(scores_BK < math.log(self.min_p), -torch.inf)
        return scores_BK, ids_BK


@contextlib.contextmanager
def kernels_for(rows: int, device: torch.device) -> Iterator[None]:
    """Switches to the products that are fastest for so many rows at a time.

    oneDNN, PyTorch's choice for 16 bits on a CPU, reads the weights of a single row at half of the memory's rate;
    PyTorch's own product of a matrix and a vector reads them at all of it.
    """
    if device.type != "cpu" or rows > 1 or not torch.backends.mkldnn.enabled:
        yield
        return
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


class Rows:
    """Rows of a batch in the middle of their texts, each at its own position.

    Attributes:
        token_B: the newest token of each row, not yet in the cache.
        position_B: where it stands.
        seen_BV: the tokens of each row so far, or None where no penalty asks.
    """

    graphs = True
    """Whether steps on a GPU are replayed as CUDA graphs."""

    def __init__(
        self,
        model: GPT,
        cache: KVCache,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        generator: torch.Generator | None = None,
    ) -> None:
        """Reads what the cache lacks of the prompts, in one pass, equal ones once, and draws the first tokens."""
        self.model, self.cache, self.sampling, self.generator = model, cache, sampling, generator
        device = model.wte.weight.device
        lengths = [len(prompt) for prompt in prompts]
        self.together = min(lengths) == max(lengths)
        """All rows stand at the same position."""
        self.longest = max(lengths)
        """As far as the row that is furthest, in tokens."""
        self.position_B = torch.tensor(lengths, device=device)
        self.seen_BV = None
        if sampling.repetition_penalty != 1:
            seen_BV = torch.zeros(len(prompts), model.config.padded_vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                seen_BV[row, list(prompt)] = True
            self.seen_BV = seen_BV.to(device)
        self.token_B = self._draw(prefill(model, cache, prompts))
        self._graph: Callable[[], None] | None = None
        self._graphable = (
            self.graphs and device.type == "cuda" and not model.config.n_expert
        )  # experts are looked up on the host
        self._steps = 0

    def _draw(self, logits_BV: Tensor) -> Tensor:
        token_B = self.sampling.draw(logits_BV, self.generator, self.seen_BV)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, token_B[:, None], True)
        return token_B

    def step(self) -> None:
        """Puts the newest tokens into the cache and draws the next, on a GPU from the third step on as a CUDA graph."""
        self.longest += 1
        self._steps += 1
        if self._graphable and self._graph is None and self._steps > 2:
            self._graph = self._capture()
        (self._graph or self._step)()

    def _step(self) -> None:
        cuda = self.token_B.is_cuda
        self.cache.reach = self.cache.length if cuda else min(self.longest, self.cache.length)
        positions_B1 = None if self.together and not cuda else self.position_B[:, None]
        with kernels_for(len(self.token_B), self.token_B.device):
            logits_BTV = self.model(self.token_B[:, None], positions_BT=positions_B1, cache=self.cache)
        self.token_B.copy_(self._draw(logits_BTV[:, -1]))
        # A row that is full goes on in its last slot while others are not; nobody reads what it draws there.
        self.position_B.add_(1).clamp_(max=self.cache.length - 1)

    def _capture(self) -> Callable[[], None] | None:
        """The step as a CUDA graph; None, with a line that says why, where a kernel cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            if self.generator is not None:
                graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            self._graphable = False
            torch.cuda.synchronize()
            print(f"without a CUDA graph: {str(error).strip().splitlines()[0]}", file=sys.stderr)
            return None
        return graph.replay

    def read(self) -> Callable[[], list[int]]:
        """Begins to copy the newest tokens to the host; what is returned waits for them."""
        if not self.token_B.is_cuda:
            tokens = self.token_B.tolist()
            return lambda: tokens
        host_B = torch.empty(self.token_B.shape, dtype=self.token_B.dtype, pin_memory=True)
        host_B.copy_(self.token_B, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def tokens_when_there() -> list[int]:
            arrived.synchronize()
            return host_B.tolist()

        return tokens_when_there


def prefill(model: GPT, cache: KVCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Fills a cache with the prompts, in one pass, and gives the logits after each of them, (B, V).

    The first `cache.used` tokens of all prompts are in it already, if it is for as many different prompts.
    """
    device = model.wte.weight.device
    prompts = list(map(tuple, prompts))
    different = list(dict.fromkeys(prompts))
    longest = max(map(len, different))
    own = cache
    if len(different) < len(prompts):
        own = cache.sibling([prompts.index(prompt) for prompt in different], longest)
    unread = [prompt[own.used :] for prompt in different]
    lengths = torch.tensor([len(prompt) for prompt in unread])
    idx_BT = torch.zeros(len(unread), longest - own.used, dtype=torch.int64)
    for row, prompt in enumerate(unread):
        idx_BT[row, : len(prompt)] = torch.tensor(prompt)
    at_BT = torch.arange(idx_BT.size(1)) == lengths[:, None] - 1
    with kernels_for(idx_BT.numel(), device):
        logits_BV = model(idx_BT.to(device), cache=own, at_BT=at_BT.to(device))
    if own is cache:
        return logits_BV
    rows = torch.tensor([different.index(prompt) for prompt in prompts], device=device)
    cache.fill(own, rows)
    return logits_BV[rows]


@torch.inference_mode()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
) -> Iterator[list[int | None]]:
    """Continues all prompts as one batch; yields, per round, the next token of each prompt.

    A prompt that has drawn one of `stop_ids`, or filled the model's context, is finished: None from then on.
    The loop ends when all are finished or after `max_new_tokens` rounds.

    Args:
        prompts: token ids, not empty; lengths may differ.
        cache: for these prompts, with room for `max_new_tokens`; its first `used` slots hold the beginnings of all of
            them, but not one as a whole. None: a new one.

    Raises:
        UserError: a prompt is empty or fills the model's context.
    """
    limit, weight = model.config.block_size, model.wte.weight
    lengths = check_prompts(prompts, limit)
    rounds = min(max_new_tokens, limit - min(lengths))
    if cache is None:
        cache = cache_for(model, len(prompts), max(lengths) + max_new_tokens)
    cache.expect([length + max_new_tokens for length in lengths])
    rows, arriving = Rows(model, cache, prompts, sampling or Sampling(), generator), deque()
    ahead = 1 if weight.is_cuda else 0  # the GPU computes the next token while the host looks at the last
    open_rows = set(range(len(prompts)))
    for round_ in range(rounds + ahead):
        if round_ < rounds:
            if round_ > 0:
                rows.step()
            arriving.append((round_, rows.read()))
        if round_ < ahead:
            continue
        number, tokens_when_there = arriving.popleft()
        tokens = tokens_when_there()
        open_rows -= {row for row in open_rows if tokens[row] in stop_ids or lengths[row] + number >= limit}
        if not open_rows:
            return
        yield [token if row in open_rows else None for row, token in enumerate(tokens)]


def cache_for(model: GPT, rows: int, length: int) -> KVCache:
    """A cache for so many rows of so many tokens, at most the model's context."""
    weight = model.wte.weight
    slots = min(length, model.config.block_size)
    if weight.is_cuda:  # its attention kernels like multiples of 8, and a text does not end there
        slots = -(-slots // 64) * 64
    return KVCache(model.config, rows, slots, weight.device, weight.dtype)


def check_prompts(prompts: Sequence[Sequence[int]], limit: int) -> list[int]:
    """The prompts' lengths in tokens; `limit` is the model's context.

    Raises:
        UserError: a prompt is empty or fills the model's context.
    """
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise UserError("the prompt is empty; give the model at least one token to start from")
    if max(lengths) >= limit:
        raise UserError(
            f"the prompt has {max(lengths):,} tokens, the model's context is {limit:,}; shorten it, or take its end "
            "with --truncate_prompt left"
        )
    return lengths


def complete(model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: object) -> list[list[int]]:
    """All new tokens of every prompt at once; takes what `decode` takes."""
    out: list[list[int]] = [[] for _ in prompts]
    for tokens in decode(model, prompts, max_new_tokens, **options):
        for row, token in enumerate(tokens):
            if token is not None:
                out[row].append(token)
    return out
