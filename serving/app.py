"""The HTTP side: OpenAI's chat completions over a run, feedback, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from serving.replies import Chunks, completion, headers_of
from serving.requests import (
    MAX_BYTES_PER_CHARACTER,
    MODEL,
    NAMED_ALPHA,
    RequestError,
    read_request,
    too_long,
    unknown_model,
)
from serving.service import Served, Service
from serving.worker import Ticket

KEEP_ALIVE_S = 5.0  # between two comment lines of a stream whose answer is not there yet
LOOK_S = 0.5  # between two looks whether the client is still there
OVERHEAD_BYTES = 100_000  # of a body, beside its texts


class Feedback(BaseModel):
    """A judgement of a served answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str
    quality: Annotated[float, Field(ge=0, le=1)]


def build_app(service: Service) -> FastAPI:
    """The application over a service."""
    app = FastAPI(title="DER", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    _answer_errors(app, service)
    guarded = [Depends(_check_key)]
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], dependencies=guarded)
    app.add_api_route("/v1/models", _models, dependencies=guarded)
    app.add_api_route("/v1/models/{name}", _model, dependencies=guarded)
    app.add_api_route("/v1/feedback", _feedback, methods=["POST"], dependencies=guarded)
    app.add_api_route("/health", _health)
    app.add_api_route("/metrics", _metrics)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _check_key(request: Request) -> None:
    if not _service(request).is_allowed(request.headers.get("authorization")):
        raise RequestError(401, "the API key is missing or wrong", code="invalid_api_key")


def _answer_errors(app: FastAPI, service: Service) -> None:
    """Answer every error with OpenAI's error object."""

    def told(request: Request, error: RequestError) -> JSONResponse:
        if request.url.path == "/v1/chat/completions":
            service.figures.requests.labels(error.status).inc()
        return JSONResponse(error.body(), error.status)

    async def on_request_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return told(request, error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path}: {error.detail}"
        return told(request, RequestError(error.status_code, said, code="not_found"))

    async def on_defect(request: Request, error: Exception) -> JSONResponse:
        said = f"a defect of DER ({type(error).__name__})"
        return told(request, RequestError(500, said, code="internal_error"))

    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises RequestError as soon as it is longer than it may be."""
    parts = []
    size = 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise too_long(_service(request).options.max_characters)
    return b"".join(parts)


class Notice:
    """Wakes a coroutine from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_given = asyncio.Event()

    def give(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._is_given.set)

    async def wait(self, timeout_s: float) -> None:
        """Wait until notice is given, and no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_given.wait()
        self._is_given.clear()


async def _chat(request: Request) -> Response:
    """One chat completion, whole or streamed."""
    service = _service(request)
    max_characters = service.options.max_characters
    data = await _body(request, MAX_BYTES_PER_CHARACTER * max_characters + OVERHEAD_BYTES)
    asked = read_request(data, request.headers, max_characters)
    notice = Notice()
    ticket = service.submit(asked, notice.give)
    try:
        # A stream begins once there is an answer or the client may lose patience: until then an
        # error has its own status
        is_done = await _wait(notice, request, service, ticket)
    except BaseException:
        service.leave(ticket)
        raise
    if not is_done:
        service.figures.requests.labels(200).inc()
        return _streamed(_live_events(notice, service, ticket))
    served = service.take(ticket)
    service.figures.requests.labels(200).inc()
    headers = headers_of(served.record)
    if asked.is_streamed:
        return _streamed(_last_events(Chunks(ticket), served), headers)
    return JSONResponse(completion(ticket, served.answer, served.record), headers=headers)


async def _wait(notice: Notice, request: Request, service: Service, ticket: Ticket) -> bool:
    """Wait for the answer; False where a stream has to begin without it.

    Raises RequestError when it takes too long, or the client has gone.
    """
    deadline = time.monotonic() + service.options.timeout_s
    begin_stream = time.monotonic() + KEEP_ALIVE_S
    while True:
        await notice.wait(LOOK_S)
        if ticket.future.done():
            return True
        now = time.monotonic()
        if ticket.asked.is_streamed and (ticket.answer_so_far or now >= begin_stream):
            return False
        if now >= deadline:
            raise _timed_out(service)
        if await request.is_disconnected():
            raise RequestError(499, "the client has gone", code="client_gone")


def _timed_out(service: Service) -> RequestError:
    said = f"no answer within {service.options.timeout_s:g} s"
    return RequestError(503, said, code="timeout")


def _streamed(
    events: AsyncIterator[str], headers: dict[str, str] | None = None
) -> StreamingResponse:
    told = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
    return StreamingResponse(events, media_type="text/event-stream", headers=told)


async def _last_events(chunks: Chunks, served: Served) -> AsyncIterator[str]:
    """The events of a finished answer, of which a part may have been sent."""
    if not served.answer.startswith(chunks.sent):  # an expert was asked again, and said otherwise
        said = "the answer is not the one that was begun; it is stored: ask again"
        yield _event(RequestError(503, said, code="answer_changed").body())
        return
    for chunk in chunks.finish(served.answer, served.record):
        yield _event(chunk)
    yield "data: [DONE]\n\n"


async def _live_events(notice: Notice, service: Service, ticket: Ticket) -> AsyncIterator[str]:
    """The answer as it grows, with comment lines while there is nothing new.

    An error is an event, too.
    """
    chunks = Chunks(ticket)
    try:
        while not ticket.future.done():
            if time.perf_counter() - ticket.received > service.options.timeout_s:
                yield _event(_timed_out(service).body())
                return
            grown = list(chunks.grow(ticket.answer_so_far)) if ticket.answer_so_far else []
            for chunk in grown:
                yield _event(chunk)
            if not grown:
                yield ": waiting for experts\n\n"
            await notice.wait(KEEP_ALIVE_S)
        try:
            served = service.take(ticket)
        except RequestError as error:
            yield _event(error.body())
            return
        async for event in _last_events(chunks, served):
            yield event
    finally:  # also where the client has gone
        service.leave(ticket)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _models(request: Request) -> JSONResponse:
    models = [_model_card(name) for name in _service(request).run.models]
    return JSONResponse({"object": "list", "data": models})


async def _model(request: Request, name: str) -> JSONResponse:
    if name != MODEL and not NAMED_ALPHA.fullmatch(name):
        raise unknown_model(name)
    return JSONResponse(_model_card(name))


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "der"}


async def _feedback(request: Request) -> JSONResponse:
    data = await _body(request, OVERHEAD_BYTES)
    try:
        feedback = Feedback.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or None
        said = f"{field or 'the body'}: {problem['msg']}"
        raise RequestError(400, said, code="invalid_value", param=field) from error
    service = _service(request)
    service.judge(feedback.id, feedback.quality)
    told = {"id": feedback.id, "quality": feedback.quality}
    return JSONResponse({**told, "can_be_learned_from": service.options.logs_texts})


async def _health(request: Request) -> JSONResponse:
    service = _service(request)
    is_well = service.worker.is_alive and not service.is_draining
    told = {
        "status": "ok" if is_well else "ending",
        "run": service.run.name,
        "open_requests": service.worker.num_open,
    }
    return JSONResponse(told, 200 if is_well else 503)


async def _metrics(request: Request) -> PlainTextResponse:
    return PlainTextResponse(
        _service(request).figures.text(), media_type="text/plain; version=0.0.4"
    )
