"""A real HTTP server on loopback that speaks as much of the OpenAI API as a test writes down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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


class SmallServer:
    """Answers a POST with what `behave(body, number of the request from 0)` returns.

    Where that is an iterator of bytes, they are sent as they come.

    A GET is answered with `models`, a list as of /v1/models; None: with status 404. Where it is a
    number, it comes so many seconds late. `num_gets` counts them.

    `requests` holds (path, body, headers in lower case, time of arrival), `num_held` is how many it
    holds, `most_at_once` the most it ever held.
    """

    def __init__(
        self,
        behave: Callable[[dict[str, Any], int], Reply],
        models: Any = None,
        *,
        port: int = 0,
    ):
        self.requests: list[tuple[str, dict[str, Any], dict[str, str], float]] = []
        self.most_at_once = self.num_held = self.num_gets = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler):  # noqa: N805
                body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
                with lock:
                    number = len(self.requests)
                    self.requests.append(
                        (
                            handler.path,
                            body,
                            {name.lower(): value for name, value in handler.headers.items()},
                            time.monotonic(),
                        )
                    )
                    self.num_held += 1
                    self.most_at_once = max(self.most_at_once, self.num_held)
                status, payload, *headers = behave(body, number)
                with lock:
                    self.num_held -= 1
                if isinstance(payload, Iterator):
                    handler.send_stream(payload)
                    return
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                handler.send_response(status)
                for name, value in (
                    {"content-type": "application/json", "content-length": str(len(data))}
                    | dict(*headers)
                ).items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(data)

            def send_stream(handler, parts):  # noqa: N805
                handler.send_response(200)
                handler.send_header("content-type", "text/event-stream")
                handler.send_header("connection", "close")
                handler.end_headers()
                for part in parts:
                    handler.wfile.write(part)
                    handler.wfile.flush()
                handler.close_connection = True

            def do_GET(handler):  # noqa: N805
                self.num_gets += 1
                if isinstance(models, float):
                    time.sleep(models)
                is_list = isinstance(models, list)
                data = json.dumps({"object": "list", "data": models}).encode() if is_list else b""
                handler.send_response(200 if is_list else 404)
                handler.send_header("content-type", "application/json")
                handler.send_header("content-length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(handler, *args):  # noqa: N805
                del args

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64  # a connection beyond it waits a second

            def handle_error(self, request, client_address):  # a client that hung up
                del request, client_address

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
