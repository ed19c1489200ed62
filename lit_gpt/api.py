"""Requests and replies of the NeurIPS 2023 LLM Efficiency Challenge, and what is done for them by a batching engine.

It takes the names of the challenge's sample server (`num_samples`, `top_k`, `seed`) and those that HELM really sends
(`num_return_sequences`, `top_p`, `top_k_per_token`, `stop_sequences`); names that it does not know are ignored. HELM
gives up a whole scenario for one reply with an error, so what can be answered is: a prompt that is too long loses its
beginning, and an empty stop string is no stop string.
"""

import random
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, Field, model_validator

from lit_gpt.batching import Engine, Job, Token
from lit_gpt.decode import Sampling
from lit_gpt.prompts import Style, Turn
from lit_gpt.settings import UserError
from lit_gpt.streaming import Until
from lit_gpt.tokenizer import Tokenizer

MOST_SAMPLES = 64
MOST_STOPS = 1000
MOST_LIKELIEST = 100
MOST_NUMBERS = 250_000
"""Log-probabilities in a reply, one for each likeliest token in each place of each text; some 250 bytes each while the
reply is made. A text that fills the challenge's window has 204,800 at most."""
STYLE_TOKEN = (1 << 31) - 1
"""In a reply of /tokenize: a token that the prompt style puts around a prompt. HELM fits prompts into the window by
that count. It is beyond every vocabulary, so /decode leaves it out."""
GREEDY = 1e-6
"""Temperatures up to it take the likeliest token: HELM sends 1e-7 for 0."""
TOP_K = 200
"""Where a request names neither `top_k` nor `top_p`: as in the challenge's sample server."""


class Body(BaseModel):
    """What a request holds; a null is as good as nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: given for name, given in value.items() if given is not None}


class Process(Body):
    """What /process takes."""

    prompt: str
    max_new_tokens: int = Field(50, ge=0)
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, ge=0, le=1)
    stop_sequences: list[str] = Field([], max_length=MOST_STOPS)
    top_k_per_token: int = Field(1, ge=0)
    num_samples: int = Field(1, ge=1, le=MOST_SAMPLES)
    num_return_sequences: int = Field(1, ge=1, le=MOST_SAMPLES)
    seed: int | None = None
    echo_prompt: bool = False

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        if self.temperature <= GREEDY:
            return Sampling()
        top_k = TOP_K if self.top_k is None and self.top_p is None else self.top_k
        top_p = 1.0 if self.top_p is None else max(self.top_p, 1e-9)  # 0: none but the likeliest
        return Sampling(self.temperature, top_k, top_p)


class Tokenize(Body):
    """What /tokenize takes."""

    text: str
    truncation: bool = True
    max_length: int = Field(2048, ge=1)


class Decode(Body):
    """What /decode takes."""

    tokens: list[int]


class TokenOut(BaseModel):
    """A token of a reply."""

    text: str
    logprob: float
    top_logprob: dict[str, float]


class Completion(BaseModel):
    """A text."""

    text: str
    tokens: list[TokenOut]
    logprob: float


class ProcessOut(Completion):
    """What /process gives: the first text."""

    request_time: float
    completions: list[Completion] | None = None
    """All texts, if several were asked for."""
    note: str | None = None
    """What was done to the request so that it could be answered."""


class Writer:
    """One text on its way: token by token from the engine's thread, whole in the end.

    Args:
        continues: the text goes on with its prompt, so a space before its first word belongs to it.
        stops: strings that end it and are left out.
        cut: one more, but only behind the first character that is no blank.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool, stops: Sequence[str], cut: str | None) -> None:
        self._stream = tokenizer.stream_decoder(continues)
        self._until, self._cut = Until(stops), cut and Until([cut])
        self._begun = False
        self.text, self.tokens, self.parts = "", [], []

    def add(self, token: Token) -> bool:
        """Takes a token; True if the text has ended."""
        self.tokens.append(token)
        self.parts.append(self._stream.add(token.id))
        self._let(self._until.add(self.parts[-1]))
        return self._until.done or bool(self._cut and self._cut.done)

    def _let(self, part: str) -> None:
        if self._cut:
            blank = 0 if self._begun else len(part) - len(part.lstrip())
            self._begun = self._begun or blank < len(part)
            part = part[:blank] + self._cut.add(part[blank:])
        self.text += part

    def end(self) -> None:
        """There are no more tokens: what was held back comes, tokens behind the text's end go."""
        rest = self._stream.flush()
        if rest:
            self.parts[-1] += rest
        self._let(self._until.add(rest) + self._until.flush())
        if self._cut:
            self.text += self._cut.flush()
        start, left = 0, len(self.text)
        while start < len(self.parts) and left:
            self.parts[start] = self.parts[start][:left]
            left -= len(self.parts[start])
            start += 1
        del self.parts[start:], self.tokens[start:]


class Service:
    """What the endpoints do, without HTTP.

    Args:
        style: how a prompt becomes the question that the model was finetuned on; None: it is taken as it is.
        cut: what ends the answer to a multiple-choice question, besides the request's own stop strings.
    """

    def __init__(self, engine: Engine, folder: str, style: Style | None = None, cut: str | None = None) -> None:
        self.engine, self.style, self.cut = engine, style, cut
        self.tokenizer = Tokenizer(folder)
        self._asker, self._asking = Tokenizer(folder), threading.Lock()  # a style encodes alone with its tokenizer
        self.stop_ids = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        if style is not None:
            self.stop_ids = style.stop_ids(self.tokenizer)
        self._word = self.tokenizer.encode("a", bos=False)
        self.shown = lru_cache(100_000)(self._shown)

    @property
    def ended(self) -> str | None:
        """Why no text will come any more; None while they do."""
        if not self.engine.ended:
            return None
        return "the thread that runs the model has ended; what it wrote says why: start the server anew"

    def _shown(self, i: int) -> str:
        """The text of a token by itself, in the middle of a text."""
        if self.tokenizer.is_special(i):
            return self.tokenizer.token(i)
        return self.tokenizer.decode([*self._word, i])[len(self.tokenizer.decode(self._word)) :]

    def prompt(self, text: str, new: int) -> tuple[list[int], int]:
        """The ids of a prompt, and how many it lost at its beginning so that `new` tokens, or half as many as fit, fit.

        Raises:
            UserError: it cannot be encoded, or is empty and the tokenizer has no token to begin with.
        """
        room = self.engine.length - min(max(new, 1), self.engine.length // 2)
        if self.style is None:
            ids = self.tokenizer.encode(text)
            if not ids:
                first = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
                if first is None:
                    raise UserError("prompt: it is empty, and the tokenizer has no token to begin with")
                ids = [first]
            head, lost = (1 if self.tokenizer.use_bos else 0), max(0, len(ids) - room)
            return (ids[:head] + ids[head + lost :] if lost else ids), lost
        with self._asking:
            plain, lost = self._asker.encode(text, bos=False), 0
            while len(ids := self.style.encode_prompt(self._asker, (Turn("user", text),))) > room:
                if lost >= len(plain) - 1:
                    raise UserError(f"prompt: style {self.style.title} has {len(ids)} tokens without it, {room} fit")
                lost = min(lost + len(ids) - room, len(plain) - 1)
                text = self._asker.decode(plain[lost:])
        return ids, lost

    def jobs(self, asked: Process) -> tuple[list[Job], list[Writer], str | None]:
        """What is to be computed for a request, and a note on what was changed in it."""
        ids, lost = self.prompt(asked.prompt, asked.max_new_tokens)
        new = min(asked.max_new_tokens, self.engine.length - len(ids))
        samples, top = max(asked.num_samples, asked.num_return_sequences), min(asked.top_k_per_token, MOST_LIKELIEST)
        places = new + len(ids) * asked.echo_prompt
        if samples * places * top > MOST_NUMBERS:
            raise UserError(
                f"the reply would have {samples:,} texts x {places:,} tokens x {top} likeliest (top_k_per_token); ask "
                f"for fewer: their product may be {MOST_NUMBERS:,}"
            )
        note = None
        if lost:
            note = f"the prompt lost its first {lost} tokens: {self.engine.length} fit, {new} of them for the text"
        cut = self.cut if self.cut and is_choice(asked.prompt) else None
        stops = [stop for stop in asked.stop_sequences if stop]
        seed = random.getrandbits(32) if asked.seed is None else asked.seed
        jobs, writers, cuts = [], [], self._blank_lines(ids)
        for number in range(samples):
            writer = Writer(self.tokenizer, self.style is None, stops, cut)
            job = Job(
                ids,
                new,
                writer.add,
                asked.sampling(),
                (seed + number) % (1 << 63),
                top,
                asked.echo_prompt,
                self.stop_ids,
                cuts,
            )
            jobs.append(job)
            writers.append(writer)
        return jobs, writers, note

    def _blank_lines(self, ids: list[int]) -> list[int]:
        """Places behind blank lines: up to there prompts with the same examples are the same."""
        ends, before = [], ""
        for place, text in enumerate(map(self.shown, ids), 1):
            if "\n" in text and "\n\n" in before[-1:] + text:
                ends.append(place)
            before = text
        return ends

    def completion(self, job: Job, writer: Writer) -> Completion:
        """The reply's form of a text that is done."""
        writer.end()
        tokens, texts = [*job.read, *writer.tokens], [*self._texts(job), *writer.parts]
        out = []
        for token, text in zip(tokens, texts, strict=True):
            top: dict[str, float] = {}
            for i, logprob in token.top:  # of tokens that look alike, such as halves of characters, the likeliest
                top.setdefault(self.shown(i), logprob)
            out.append(TokenOut(text=text, logprob=token.logprob, top_logprob=top))
        return Completion(text="".join(texts), tokens=out, logprob=sum(token.logprob for token in tokens))

    def _texts(self, job: Job) -> list[str]:
        """Of the prompt's tokens: joined, they are the prompt as the model read it, but for its BOS."""
        stream, texts = self.tokenizer.stream_decoder(), []
        for place, token in enumerate(job.read):
            if self.tokenizer.is_special(token.id):
                own = "" if place == 0 and self.tokenizer.use_bos else self.tokenizer.token(token.id)
                texts.append(stream.flush() + own)
            else:
                texts.append(stream.add(token.id))
        if texts:
            texts[-1] += stream.flush()
        return texts

    def tokenize(self, asked: Tokenize) -> list[int]:
        """The ids of a text, as many as it takes as a prompt; cut at their end, they also fit decoded and encoded."""
        ids = self._counted(asked.text)
        if asked.truncation and len(ids) > asked.max_length:
            del ids[asked.max_length :]
            while ids and len(self._counted(self.tokenizer.decode(ids))) > asked.max_length:
                ids.pop()
        return ids

    def _counted(self, text: str) -> list[int]:
        """The ids of a text: with BOS where prompts have it, or behind as many `STYLE_TOKEN` as its style adds."""
        if self.style is None:
            return self.tokenizer.encode(text)
        with self._asking:
            plain = self._asker.encode(text, bos=False)
            try:
                asked = len(self.style.encode_prompt(self._asker, (Turn("user", text),)))
            except UserError:  # it is no question, such as an empty text
                asked = 0
        return [STYLE_TOKEN] * (asked - len(plain)) + plain

    def decode(self, asked: Decode) -> str:
        """The text of ids."""
        if wrong := [i for i in asked.tokens if not 0 <= i < 1 << 31]:
            raise UserError(f"tokens: {wrong[0]} is no token id")
        return self.tokenizer.decode(asked.tokens)


def is_choice(prompt: str) -> bool:
    """Whether a prompt asks for one of several answers, as HELM writes it: "A. ...", "B. ..." and a last "Answer:"."""
    last, first = prompt.rstrip().rsplit("\n", 1)[-1], re.search(r"^A\. .*\n", prompt, re.M)
    options = first and re.compile(r"^B\. ", re.M).search(prompt, first.end())
    return bool(options) and len(last) <= 40 and last.endswith(":")
