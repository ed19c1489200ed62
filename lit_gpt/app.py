"""The challenge's interface (`lit_gpt.api`) over HTTP: paths, bodies that come late or broken, clients that leave."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from lit_gpt.api import Body, Decode, Process, ProcessOut, Service, Tokenize
from lit_gpt.batching import Job, Refused
from lit_gpt.settings import UserError, one_line

BODY = 4 << 20
"""Bytes that a request may have: more than any prompt that fits, less than what could harm."""
ARRIVES = 60.0
"""Seconds in which all of a request's body must have come, and in which a connection's next request must have begun."""

B = TypeVar("B", bound=Body)


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

    def taking(kind: type[Body]) -> dict[str, Any]:
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
