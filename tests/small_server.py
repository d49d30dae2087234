"""A real HTTP server on loopback that speaks as much of the OpenAI API as a test writes down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]  # status, JSON or raw bytes, headers


def completion(
    text: str | None, *, usage: bool = True, finish_reason: str = "stop", is_chat: bool = False
) -> Reply:
    """A well-formed reply; every text takes 7 and 3 tokens."""
    choice = {"index": 0, "finish_reason": finish_reason} | (
        {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    )
    counts = (
        {"usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}} if usage else {}
    )
    return 200, {
        "id": "1",
        "object": "completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        **counts,
    }


def streamed(
    deltas: Sequence[dict[str, Any]], *, gate: threading.Event | None = None, is_whole: bool = True
) -> Reply:
    """A chat completion in chunks, a delta each. After the first one `gate` is waited for.

    One that is not whole breaks off without a word why.
    """

    def events() -> Iterator[bytes]:
        choices: list[dict[str, Any]] = []
        for delta in deltas:
            choices.append({"index": 0, "delta": delta, "finish_reason": None})
        if is_whole:
            choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        for place, choice in enumerate(choices):
            if place == 1 and gate is not None:
                assert gate.wait(20), "nobody opened the gate"
            yield _event({"choices": [choice]})
        if is_whole:
            counts = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            yield _event({"choices": [], "usage": counts})
            yield b"data: [DONE]\n\n"

    return 200, events()


def _event(fields: dict[str, Any]) -> bytes:
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **fields}
    return f"data: {json.dumps(chunk)}\n\n".encode()


class SmallServer(ThreadingHTTPServer):
    """Answers a POST with what `behave(body, number of the request from 0)` returns.

    Where that is an iterator of bytes, they are sent as they come.

    A GET is answered with `models`, a list as of /v1/models; None: with status 404. Where it is a
    number, it comes so many seconds late. `num_gets` counts them.

    `requests` holds (path, body, headers in lower case, time of arrival), `num_held` is how many it
    holds, `most_at_once` the most it ever held.
    """

    daemon_threads = True
    request_queue_size = 64  # a connection beyond it waits a second

    def __init__(
        self,
        behave: Callable[[dict[str, Any], int], Reply],
        models: Any = None,
        *,
        port: int = 0,
    ):
        super().__init__(("127.0.0.1", port), Handler)
        self.behave = behave
        self.models = models
        self.requests: list[tuple[str, dict[str, Any], dict[str, str], float]] = []
        self.most_at_once = self.num_held = self.num_gets = 0
        self.lock = threading.Lock()
        self.port = self.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        serving = {"poll_interval": 0.05}
        threading.Thread(target=self.serve_forever, kwargs=serving, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address  # a client that hung up

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request to a SmallServer."""

    protocol_version = "HTTP/1.1"
    server: SmallServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append((self.path, body, headers, time.monotonic()))
            server.num_held += 1
            server.most_at_once = max(server.most_at_once, server.num_held)
        status, payload, *more_headers = server.behave(body, number)
        with server.lock:
            server.num_held -= 1
        if isinstance(payload, Iterator):
            self.send_stream(payload)
            return
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_whole(status, data, dict(*more_headers))

    def do_GET(self) -> None:
        models = self.server.models
        self.server.num_gets += 1
        if isinstance(models, float):
            time.sleep(models)
        if isinstance(models, list):
            self.send_whole(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self.send_whole(404, b"")

    def send_whole(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        sent = {"content-type": "application/json", "content-length": str(len(data))}
        self.send_response(status)
        for name, value in (sent | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_stream(self, parts: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for part in parts:
            self.wfile.write(part)
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        del args
