"""What was said to a model and by it, and the cache that goes with it."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lit_gpt.prompts import Conversation, Style, Turn
from lit_gpt.settings import UserError

if TYPE_CHECKING:
    import torch

    from lit_gpt.cache import KVCache
    from lit_gpt.decode import Sampling
    from lit_gpt.model import GPT
    from lit_gpt.tokenizer import Tokenizer


def tell(text: str) -> None:
    """Says what is not an answer: on stderr."""
    print(text, file=sys.stderr, flush=True)


def check_system(style: Style, system: str | None) -> None:
    """Raises UserError if the style cannot have this system prompt."""
    if system is not None and (reason := style.problem((Turn("system", system), Turn("user", "Hello")))):
        raise UserError(f"no system prompt here: {reason}")


@dataclass
class Spent:
    """What the last answer took."""

    prompt: int = 0
    """Tokens of the prompt."""
    reused: int = 0
    """Of these, tokens that the cache still had."""
    new: int = 0
    """Tokens of the answer."""
    first: float = 0.0
    """Seconds to the first token."""
    seconds: float = 0.0


@dataclass
class Talk:
    """A conversation with a model.

    The cache of keys and values is kept between the questions: as far as the new prompt begins with the same ids as all
    that was read and said before, nothing is computed again.

    Attributes:
        turns: what was said so far, without the system prompt.
        forgotten: how many of the oldest turns are left out, because they no longer fit into the context.
    """

    model: "GPT"
    tokenizer: "Tokenizer"
    style: Style
    sampling: "Sampling"
    max_new_tokens: int
    generator: "torch.Generator | None" = None
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0
    spent: Spent = field(default_factory=Spent)
    _cache: "KVCache | None" = None
    _ids: list[int] = field(default_factory=list)
    """What the cache holds."""

    def ask(self, question: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Asks and gives the answer in pieces as it comes; both become part of the conversation.

        An answer that is stopped, by `stopped` or by leaving the iterator, is kept as far as it went.

        Raises:
            UserError: the question is empty or does not fit into the context.
        """
        self.turns.append(Turn("user", question))
        text = ""
        try:
            prompt = self._prompt()
            stream, began = self.tokenizer.stream_decoder(), time.perf_counter()
            self.spent = Spent(prompt=len(prompt), reused=self._reusable(prompt))
            for token in self._decode(prompt):
                self.spent.new += 1
                self.spent.seconds = time.perf_counter() - began
                self.spent.first = self.spent.first or self.spent.seconds
                if piece := self._begun(text, stream.add(token)):
                    text += piece
                    yield piece
                if stopped():
                    break
            if piece := self._begun(text, stream.flush()):
                text += piece
                yield piece
        finally:
            if text.strip():
                self.turns.append(Turn("assistant", text.strip()))
            else:
                self.turns.pop()

    def _begun(self, before: str, piece: str) -> str:
        """The piece, without the blanks in front of an answer."""
        return piece if before else piece.lstrip()

    def _conversation(self) -> Conversation:
        system = () if self.system is None else (Turn("system", self.system),)
        return (*system, *self.turns[self.forgotten :])

    def _prompt(self) -> list[int]:
        """The ids of the conversation; forgets its oldest turns until there is room for an answer."""
        limit = self.model.config.block_size
        room = min(self.max_new_tokens, max(limit // 4, 1))
        before = self.forgotten
        while len(ids := self.style.encode_prompt(self.tokenizer, self._conversation())) + room > limit:
            later = (n for n in range(self.forgotten + 1, len(self.turns)) if self.turns[n].role == "user")
            following = next(later, None)
            if following is not None:
                self.forgotten = following
            elif len(ids) < limit:
                break
            else:
                self.forgotten = before
                raise UserError(f"this takes {len(ids):,} tokens, the model's context has {limit:,}; shorten it")
        if self.forgotten > before:
            tell(f"note: the oldest {self.forgotten} turns no longer fit into the context and are left out")
        return ids

    def _reusable(self, prompt: list[int]) -> int:
        """How many tokens of a prompt the cache has; at least one is left to be read."""
        same = 0
        for ours, asked in zip(self._ids, prompt[:-1], strict=False):
            if ours != asked:
                break
            same += 1
        return same

    def _decode(self, prompt: list[int]) -> Iterator[int]:
        """The tokens of an answer, without the one that ends it."""
        from lit_gpt.decode import decode

        known, stops = self._reusable(prompt), self.style.stop_ids(self.tokenizer)
        cache = self._room_for(len(prompt) + self.max_new_tokens)
        cache.used = known
        cache.expect([len(prompt) + self.max_new_tokens])
        self._ids, self.spent.reused = prompt[: cache.used], cache.used
        said: list[int] = []
        options = (self.max_new_tokens, self.sampling, stops, self.generator, cache)
        for (token,) in decode(self.model, [prompt], *options):
            self._ids = prompt + said  # the newest is not in the cache yet
            said.append(token)
            yield token

    def _room_for(self, length: int) -> "KVCache":
        """The cache, with so many slots at least, or as many as the context has."""
        import torch

        from lit_gpt.decode import cache_for

        length, old = min(length, self.model.config.block_size), self._cache
        if old is None or length > old.length:
            self._cache = cache_for(self.model, 1, max(length, 2 * old.length if old else 0))
            if old is not None:
                old.used = old.length
                self._cache.fill(old, torch.tensor([0]))
        return self._cache

    def reset(self) -> None:
        """Forgets what was said; the system prompt stays."""
        self.turns, self.forgotten, self.spent = [], 0, Spent()
