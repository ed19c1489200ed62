"""The HTTP interface of the NeurIPS 2023 LLM Efficiency Challenge over a batching engine.

It takes the names of the challenge's sample server (`num_samples`, `top_k`, `seed`) and those that HELM really sends
(`num_return_sequences`, `top_p`, `top_k_per_token`, `stop_sequences`); names that it does not know are ignored. HELM
gives up a whole scenario for one reply with an error, so what can be answered is: a prompt that is too long loses its
beginning, and an empty stop string is no stop string.
"""

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lit_gpt.batching import Engine, Job, Refused, Token
from lit_gpt.decode import Sampling
from lit_gpt.prompts import Style, Turn
from lit_gpt.settings import UserError, one_line
from lit_gpt.streaming import Until
from lit_gpt.tokenizer import Tokenizer

BODY = 4 << 20
"""Bytes that a request may have: more than any prompt that fits, less than what could harm."""
ARRIVES = 60.0
"""Seconds in which all of a request's body must have come, and in which a connection's next request must have begun."""
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


class _Body(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: given for name, given in value.items() if given is not None}


class Process(_Body):
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


class Tokenize(_Body):
    """What /tokenize takes."""

    text: str
    truncation: bool = True
    max_length: int = Field(2048, ge=1)


class Decode(_Body):
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


B = TypeVar("B", bound=_Body)


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


def build_app(service: Service, timeout: float, about: dict[str, Any]) -> FastAPI:
    """The application.

    Args:
        timeout: seconds after which a request is given up.
        about: what /health says besides its numbers.
    """
    engine = service.engine

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="Lit-GPT", lifespan=lifespan)

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": one_line(str(error.detail))}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": one_line(f"{type(error).__name__}: {error}")}, 500)

    def taking(kind: type[_Body]) -> dict[str, Any]:
        """The description of what an endpoint reads by itself."""
        return {
            "requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}
        }

    @app.post("/process", response_model=ProcessOut, response_model_exclude_none=True, openapi_extra=taking(Process))
    async def process(request: Request) -> ProcessOut:
        """Continues a prompt."""
        began = time.perf_counter()
        asked = await _read(request, Process)
        jobs, writers, note = await _work(service.jobs, asked)
        try:
            engine.submit(*jobs)
        except Refused as error:
            raise HTTPException(503, service.ended or str(error), {"Retry-After": "5"}) from error
        await _done(request, jobs, timeout)
        texts = await _work(lambda: [service.completion(*pair) for pair in zip(jobs, writers, strict=True)])
        return ProcessOut(
            **dict(texts[0]),
            request_time=time.perf_counter() - began,
            completions=texts if len(texts) > 1 else None,
            note=note,
        )

    @app.post("/tokenize", openapi_extra=taking(Tokenize))
    async def tokenize(request: Request) -> dict[str, Any]:
        """The ids of a text."""
        began = time.perf_counter()
        tokens = await _work(service.tokenize, await _read(request, Tokenize))
        return {"tokens": tokens, "request_time": time.perf_counter() - began}

    @app.post("/decode", openapi_extra=taking(Decode))
    async def decode(request: Request) -> dict[str, Any]:
        """The text of ids."""
        began = time.perf_counter()
        text = await _work(service.decode, await _read(request, Decode))
        return {"text": text, "request_time": time.perf_counter() - began}

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether it serves, and what it has done."""
        ended = service.ended
        status = {"status": "failed", "error": ended} if ended else {"status": "ok"}
        return JSONResponse({**status, **about, **engine.state()}, 503 if ended else 200)

    return app


class Connection(H11Protocol):
    """A connection of uvicorn's, which by itself waits for ever for a request whose head does not come as a whole."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch = self.loop.call_later(ARRIVES, self._look, None)

    def _look(self, before: RequestResponseCycle | None) -> None:
        """Closes it if no request has begun since the last look, and none is under way."""
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self._watch = self.loop.call_later(ARRIVES, self._look, self.cycle)

    def shutdown(self) -> None:
        """At the server's end: requests are answered, but nobody waits for one that has not come as a whole."""
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)


async def _read(request: Request, kind: type[B]) -> B:
    """The body of a request.

    Raises:
        HTTPException: it is too long or too slow, no JSON, or not what it should be: says where.
    """
    body = bytearray()

    async def arrive() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > BODY:
                raise HTTPException(413, f"the request has more than {BODY:,} bytes")

    try:
        await asyncio.wait_for(arrive(), ARRIVES)
    except asyncio.TimeoutError as error:
        late = f"the request has not come within {ARRIVES:g} seconds"
        raise HTTPException(408, late, {"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise HTTPException(499, "the client has left") from error
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is not JSON in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise HTTPException(422, f"the request is no JSON object; it takes {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{place}: {first['msg']}") from error


async def _work(function: Callable, *args: Any) -> Any:
    """Calls a function in a thread beside the event loop; what the client can mend becomes a reply."""
    try:
        return await asyncio.to_thread(function, *args)
    except UserError as error:
        raise HTTPException(422, str(error)) from error


async def _done(request: Request, jobs: list[Job], timeout: float) -> None:
    """Waits for texts as long as their client does, and not longer than the timeout.

    Raises:
        HTTPException: it took too long, or could not be computed.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    texts = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
    texts.add_done_callback(lambda done: done.cancelled() or done.exception())  # also if nobody waits for it any more
    watch = asyncio.ensure_future(gone())
    try:
        done, _ = await asyncio.wait([texts, watch], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if texts in done:
            texts.result()
        elif watch in done:
            raise HTTPException(499, "the client has left")
        else:
            raise HTTPException(504, f"not done after {timeout:g} seconds; try again later")
    except (CancelledError, asyncio.CancelledError) as error:
        raise HTTPException(503, "the server is shutting down", {"Retry-After": "5"}) from error
    except HTTPException:
        raise
    except Exception as error:
        raise HTTPException(500, f"the model failed: {type(error).__name__}: {error}") from error
    finally:
        watch.cancel()
        for job in jobs:
            job.future.cancel()
