"""One thread owns the agent and the pool, and takes all open requests a step further together.

A request that comes late joins at the next step, so requests share the agent's passes and the
experts' batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from backends.dispatch import OnText
from rollout import Route
from runtime.errors import DERError
from serving.requests import Asked, RequestError
from serving.served_run import ServedRun

log = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody waits."""


@dataclass(eq=False)
class Ticket:
    """A request on its way. Its future gets the played route, or a RequestError."""

    id: str
    asked: Asked
    future: Future[Route] = field(default_factory=Future)
    is_given_up: bool = False  # the client has gone, or nothing may take longer
    created: float = field(default_factory=time.time)
    received: float = field(default_factory=time.perf_counter)
    finished: float = 0.0
    call_began: float = 0.0
    experts_s: float = 0.0  # wall time in which experts were waited for
    answer_so_far: str = ""  # of a last call under way
    on_change: Callable[[], None] = _nothing  # called in any thread when the above or `future` is

    def hear(self, text: str) -> None:
        """Take in how far the answer has grown."""
        if text and not self.is_given_up:
            self.answer_so_far = text
            self.on_change()

    @property
    def total_s(self) -> float:
        return self.finished - self.received


def unavailable(reason: str, code: str = "unavailable") -> RequestError:
    return RequestError(503, reason, code=code)


class Worker:
    """Plays what is submitted. `on_served(ticket, route)` is called in its thread for each route.

    `load` makes the run in the worker's own thread.
    """

    def __init__(self, load: Callable[[], ServedRun], on_served: Callable[[Ticket, Route], None]):
        self.run: ServedRun
        self._load = load
        self._on_served = on_served
        self._lock = threading.Lock()
        self._arrived: deque[Ticket] = deque()
        self._wake: Future[None] = Future()
        self._open: dict[str, Ticket] = {}
        self._is_closing = False
        self._loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        """Load the run. Raises what loading raises."""
        self._thread.start()
        self._loaded.result()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closing

    @property
    def num_open(self) -> int:
        return len(self._open) + len(self._arrived)

    def submit(self, ticket: Ticket) -> None:
        """Take a request in. Raises RequestError where the server is ending."""
        if self._is_closing:
            raise unavailable("the server is shutting down", "shutting_down")
        with self._lock:
            self._arrived.append(ticket)
        self._rouse()

    def give_up(self, ticket: Ticket) -> None:
        """Ask no more experts for a request. A call that is under way is still stored."""
        if not ticket.future.done():
            ticket.is_given_up = True
            self._rouse()

    def fail_all(self, reason: str) -> None:
        """End every open request with status 503, from any thread."""
        error = unavailable(reason, "shutting_down")
        with self._lock:
            waiting = [*self._arrived, *self._open.values()]
        for ticket in waiting:
            ticket.is_given_up = True
            _fail(ticket, error)

    def close(self, timeout_s: float) -> None:
        """Stop working, and wait so long for the step under way."""
        self._is_closing = True
        self._rouse()
        self._thread.join(timeout_s)

    def _rouse(self) -> None:
        with self._lock:
            if not self._wake.done():
                self._wake.set_result(None)

    def _work(self) -> None:
        try:
            self.run = self._load()
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self.flight = self.run.new_flight(self._listener)
        self._loaded.set_result(None)
        while not self._is_closing:
            try:
                self._step()
            except Exception as error:
                self._fail_step(error)
        self.run.pool.store.close()

    def _step(self) -> None:
        """Admit what has come, and take every open route one step further."""
        pool = self.run.pool
        if not self.flight and pool.is_idle:
            self._wake.result()  # nothing to do until something comes
        for ticket in self._take_arrived():
            self._admit(ticket)
        self._drop_given_up()
        moving = self.flight.to_move
        stopped = self.flight.move()
        began = time.perf_counter()
        for route in moving:
            self._ticket_of(route).call_began = began
        if not pool.is_idle:  # also for what nobody waits for any more: it is paid for
            has_answer = any(call.answer or call.error for call in self.flight.asked)
            pool.advance(_DONE if has_answer else self._wake)
        self._note_answers()
        self._drop_failed()
        for route in [*stopped, *self.flight.take()]:
            if route.episode.is_over:
                self._finish(route)
        self.run.forget()

    def _take_arrived(self) -> list[Ticket]:
        with self._lock:
            self._wake = Future()
            arrived = list(self._arrived)
            for ticket in arrived:
                self._open[ticket.id] = ticket
            self._arrived.clear()
        return arrived

    def _admit(self, ticket: Ticket) -> None:
        try:
            self.flight.join(self.run.begin(ticket.id, ticket.asked))
        except RequestError as error:
            self._end(ticket)
            _fail(ticket, error)

    def _ticket_of(self, route: Route) -> Ticket:
        return self._open[route.episode.question.id]

    def _listener(self, route: Route) -> OnText | None:
        """Who is told the answer of a route's next call while it grows."""
        ticket = self._ticket_of(route)
        is_live = ticket.asked.is_streamed and self.run.submits_next(route)
        return ticket.hear if is_live else None

    def _note_answers(self) -> None:
        """Count the time until each answer that has come as spent by experts."""
        now = time.perf_counter()
        for call, route in self.flight.asked.items():
            if call.answer is not None:
                ticket = self._ticket_of(route)
                ticket.experts_s += now - ticket.call_began

    def _drop_given_up(self) -> None:
        """Forget the routes that nobody waits for any more."""
        flight = self.flight
        flight.to_move = [route for route in flight.to_move if not self._is_given_up(route)]
        for call, route in list(flight.asked.items()):
            if self._is_given_up(route):
                del flight.asked[call]
        for ticket in list(self._open.values()):
            if ticket.is_given_up:
                self._end(ticket)
                _fail(ticket, unavailable("the request was given up"))

    def _is_given_up(self, route: Route) -> bool:
        return self._ticket_of(route).is_given_up

    def _drop_failed(self) -> None:
        """End the requests whose expert has failed; the others go on."""
        for call, route in list(self.flight.asked.items()):
            if call.error is not None:
                del self.flight.asked[call]
                ticket = self._ticket_of(route)
                self._end(ticket)
                _fail(ticket, unavailable(call.error, "expert_unavailable"))

    def _finish(self, route: Route) -> None:
        ticket = self._ticket_of(route)
        ticket.finished = time.perf_counter()
        try:
            self._on_served(ticket, route)
        except Exception:  # what cannot be counted or logged is answered all the same
            log.exception("request %s could not be noted", ticket.id)
        self._end(ticket)
        if not ticket.future.done():
            ticket.future.set_result(route)

    def _end(self, ticket: Ticket) -> None:
        with self._lock:
            self._open.pop(ticket.id, None)
        self.run.limits.pop(ticket.id, None)

    def _fail_step(self, error: Exception) -> None:
        """End all open requests after an error that belongs to none of them.

        New ones are taken all the same.
        """
        log.exception("a step failed")
        if isinstance(error, DERError):
            answer = unavailable(str(error))
        else:
            said = f"a defect of DER ({type(error).__name__})"
            answer = RequestError(500, said, code="internal_error")
        for ticket in list(self._open.values()):
            self._end(ticket)
            _fail(ticket, answer)
        self.flight = self.run.new_flight(self._listener)


_DONE: Future[None] = Future()  # for `advance`: do not wait
_DONE.set_result(None)


def _fail(ticket: Ticket, error: RequestError) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)
