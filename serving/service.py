"""What the server does with a request, between HTTP and the worker."""

from __future__ import annotations

import hmac
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prompts import Message
from rollout import Route
from serving import GRACE_S
from serving.figures import Figures
from serving.replies import Record, route_record
from serving.requests import Asked, RequestError
from serving.route_log import RouteLog
from serving.served_run import ServedRun
from serving.worker import Ticket, Worker


@dataclass(frozen=True)
class ServiceOptions:
    """What scripts/serve.py was told."""

    key: str | None = None
    max_characters: int = 100_000
    timeout_s: float = 300.0  # of a request
    logs_texts: bool = False
    grace_s: float = GRACE_S


@dataclass(frozen=True)
class Served:
    """The answer to a request, and what is told of its route."""

    answer: str
    record: Record


class Service:
    """A run, its worker, its log and its figures.

    Raises what loading a run raises, and DataError for a log that cannot be opened.
    """

    def __init__(self, load: Callable[[], ServedRun], log_path: Path, options: ServiceOptions):
        self.options = options
        self.log = RouteLog(log_path)
        self.served: dict[str, Served] = {}  # until its handler takes it
        self.worker = Worker(load, self._on_served)
        self.worker.start()
        self.figures = Figures(self.worker)
        self.is_draining = False

    @property
    def run(self) -> ServedRun:
        return self.worker.run

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether a request's Authorization header has the key, where there is one.

        Compared in constant time.
        """
        if self.options.key is None:
            return True
        given = (authorization or "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.options.key.encode())

    def submit(self, asked: Asked, on_change: Callable[[], None]) -> Ticket:
        """Hand a request to the worker.

        `on_change` is called, in any thread, when its answer has grown or it has ended. Raises
        RequestError where the server is ending.
        """
        ticket = Ticket(f"chatcmpl-{uuid.uuid4().hex}", asked, on_change=on_change)
        ticket.future.add_done_callback(lambda _: on_change())
        self.worker.submit(ticket)
        return ticket

    def _on_served(self, ticket: Ticket, route: Route) -> None:
        """Keep a finished route's answer for the handler and log it; in the worker's thread."""
        record = route_record(ticket, route, self.run)
        if not ticket.is_given_up:
            self.served[ticket.id] = Served(route.episode.submitted.answer.text, record)
        self.figures.note_route(record)
        line = {**record, "has_texts": self.options.logs_texts}
        if self.options.logs_texts:
            said = [*ticket.asked.context, Message("user", ticket.asked.text)]
            line["messages"] = [message._asdict() for message in said]
            line["answers"] = route.episode.answers
        self.log.add_route(line)

    def take(self, ticket: Ticket) -> Served:
        """The answer to a finished request. Raises the RequestError that ended it."""
        ticket.future.result()
        return self.served.pop(ticket.id)

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this request any more."""
        self.worker.give_up(ticket)
        self.served.pop(ticket.id, None)

    def judge(self, route_id: str, quality: float) -> None:
        """Add a judgement to the log. Raises RequestError for a route that is not in it."""
        if route_id not in self.log.ids:
            said = f"no route {route_id!r} in {self.log.path}"
            raise RequestError(404, said, code="route_not_found", param="id")
        self.log.add_feedback(route_id, quality)
        self.figures.feedback.inc()

    def drain(self) -> None:
        """Give open requests a while to end, then end them; called on SIGTERM."""
        if self.is_draining:
            return
        self.is_draining = True
        grace_s = self.options.grace_s
        timer = threading.Timer(grace_s, self.worker.fail_all, ["the server is shutting down"])
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        self.worker.close(timeout_s=1.0)
        self.log.close()
