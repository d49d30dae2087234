"""Prompts go to the experts' inboxes, and answers come back as each expert finishes them.

Of the experts of this process, the one with most to do generates next. Remote experts work at the
same time. No expert waits for all others: a prompt that comes while an expert is at work joins
that work where there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Thread
from typing import Any, Protocol

from backends.answer_store import Answer
from config import ExpertConfig
from prompts import Message
from runtime.errors import DERError

# Answers that an expert has finished, each with the id that the inbox gave its request
Finished = Sequence[tuple[int, Answer | None]]
OnBatch = Callable[[int, list[tuple[bytes, str, Answer | None]]], None]
# Told an expert's index, its error and the keys of its requests
OnFailure = Callable[[int, Exception, list[bytes]], None]
# Told a completion as far as it has grown, in any thread
OnText = Callable[[str], None]


class Inbox:
    """Prompts for one expert. Each gets a request id, counted from 0.

    Safe to fill from one thread and empty from another. `listeners` holds, by request id, who wants
    to be told a completion while it grows. Experts that cannot tell pass over it.
    """

    def __init__(self, prompts: Sequence[str] = ()):
        self.listeners: dict[int, OnText] = {}
        self._waiting = deque(enumerate(prompts))
        self._num_put = len(prompts)

    @classmethod
    def of(cls, prompts: Sequence[str] | Inbox) -> Inbox:
        """The inbox itself, or a new one that holds the prompts."""
        return prompts if isinstance(prompts, Inbox) else cls(prompts)

    def put(self, prompt: str, on_text: OnText | None = None) -> int:
        """Add a prompt; returns its request id."""
        request_id = self._num_put
        if on_text is not None:
            self.listeners[request_id] = on_text
        self._waiting.append((request_id, prompt))
        self._num_put += 1
        return request_id

    def take(self, max_prompts: int | None = None) -> list[tuple[int, str]]:
        """Remove up to `max_prompts` prompts, the oldest first; None removes all.

        Returns them as (request id, prompt).
        """
        count = len(self._waiting)
        if max_prompts is not None:
            count = min(count, max_prompts)
        taken = []
        for _ in range(count):
            taken.append(self._waiting.popleft())
        return taken

    def __len__(self) -> int:
        return len(self._waiting)


class Expert(Protocol):
    """What the pool asks of an expert kind.

    `answer` takes rendered prompts out of the inbox as it has room, and ends when the inbox is
    empty and all prompts are answered. It yields finished answers under the inbox's request ids.
    It also yields empty batches now and then, so that more can be asked meanwhile. An answer of
    None means that this request failed for good and that the run is to go on.
    """

    @property
    def config(self) -> ExpertConfig: ...

    @property
    def is_remote(self) -> bool:
        """Whether it works elsewhere: a thread then asks it at the same time as others."""

    def identity(self) -> dict[str, Any]: ...
    def decoding(self) -> dict[str, Any]: ...
    def render(
        self,
        question: str,
        previous_answer: str | None,
        ktp: str,
        context: Sequence[Message] = (),
    ) -> str: ...
    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[Finished]: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...

    @property
    def memory_gb(self) -> float: ...


class ExpertQueue:
    """One expert's requests: those that wait, those under way, and its open stream of answers."""

    def __init__(self, expert: Expert):
        self.expert = expert
        self.inbox = Inbox()
        self.asked: dict[int, tuple[bytes, str]] = {}  # request id -> answer key and prompt
        self.stream: Iterator[Finished] | None = None
        # The next batch of a remote expert's stream, while a thread waits for it
        self.arriving: Future[Finished | None] | None = None

    def submit(self, key: bytes, prompt: str, on_text: OnText | None) -> None:
        """Put a prompt into the inbox."""
        request_id = self.inbox.put(prompt, on_text)
        self.asked[request_id] = (key, prompt)

    def next_batch(self) -> Finished | None:
        """The next batch of the open stream; None at its end."""
        return None if self.stream is None else next(self.stream, None)


class Dispatcher:
    """Queues of all experts, and which experts are loaded.

    `memory_gb` bounds the weights loaded in this process. Where they do not fit, the least
    recently used expert that is not at work is unloaded first.
    """

    def __init__(self, experts: Sequence[Expert], memory_gb: float | None):
        self.experts = experts
        self.memory_gb = memory_gb
        self.num_loads = 0
        # Where set, an expert's error ends its own requests alone, and is not raised
        self.on_failure: OnFailure | None = None
        # Indices of the loaded experts of this process, the least recently used first
        self.loaded: list[int] = []
        self._reset()

    def _reset(self) -> None:
        self._queues = [ExpertQueue(expert) for expert in self.experts]
        # Experts with requests but without a stream, in the order in which they were asked
        self._waiting: list[int] = []
        self._errors: list[Exception] = []

    def submit(
        self, expert_idx: int, key: bytes, prompt: str, on_text: OnText | None = None
    ) -> None:
        """Queue a prompt for an expert; `on_text` is told the completion while it grows."""
        queue = self._queues[expert_idx]
        queue.submit(key, prompt, on_text)
        if queue.stream is None:
            self._wait_for_stream(expert_idx)

    def _wait_for_stream(self, expert_idx: int) -> None:
        if expert_idx not in self._waiting:
            self._waiting.append(expert_idx)

    @property
    def is_idle(self) -> bool:
        return not any(queue.asked for queue in self._queues)

    def advance(self, on_batch: OnBatch, wake: Future[None] | None = None) -> None:
        """Let the local expert with most to do generate, and take in what remote ones have sent.

        Waits for remote experts where no local one has anything to do, but no longer than until
        `wake` is done.
        `on_batch(expert_idx, rows)` is handed every batch, as rows (key, prompt, answer).

        Raises what an expert raised, after the others have finished: their answers are needed all
        the same.
        """
        try:
            self._advance(on_batch, wake)
            while self._errors and not self.is_idle:
                self._advance(on_batch)
            if self._errors:
                raise self._errors[0]
        except BaseException:
            self._reset()
            raise

    def _advance(self, on_batch: OnBatch, wake: Future[None] | None = None) -> None:
        self._open_streams()
        local = []
        for idx, queue in enumerate(self._queues):
            if queue.stream is not None and queue.arriving is None:
                local.append(idx)
        if local:
            # A full batch costs little more than a small one, and the other queues grow meanwhile
            busiest = max(local, key=lambda idx: len(self._queues[idx].asked))
            self._receive(busiest, self._queues[busiest].next_batch, on_batch)

        arriving: dict[Future[Any], int] = {}
        for idx, queue in enumerate(self._queues):
            if queue.arriving is not None:
                arriving[queue.arriving] = idx
        if not arriving:
            return
        timeout = 0 if local else None
        awaited: list[Future[Any]] = [*arriving] if wake is None else [*arriving, wake]
        for arrived in wait(awaited, timeout=timeout, return_when=FIRST_COMPLETED).done:
            if arrived is not wake:
                self._receive(arriving[arrived], arrived.result, on_batch)

    def _open_streams(self) -> None:
        """Start every expert that waits and for which there is memory.

        Loaded experts start first. Otherwise a loaded one could be evicted for another, and then
        be loaded again for requests that it could have answered at once.
        """
        for idx in sorted(self._waiting, key=lambda idx: idx not in self.loaded):
            queue = self._queues[idx]
            try:
                if not self._make_room(idx):
                    continue
            except DERError as error:
                self._fail(idx, error)
            else:
                queue.stream = iter(queue.expert.answer(queue.inbox))
                self._await(queue)
            self._waiting.remove(idx)

    def _await(self, queue: ExpertQueue) -> None:
        """Let a thread wait for a remote expert's next batch."""
        if queue.expert.is_remote:
            queue.arriving = _in_background(next, queue.stream, None)

    def _receive(
        self, idx: int, get_batch: Callable[[], Finished | None], on_batch: OnBatch
    ) -> None:
        """Take a batch in; None is the end of a stream."""
        queue = self._queues[idx]
        try:
            batch = get_batch()
        except Exception as error:  # of any type: the other experts' answers are still needed
            self._fail(idx, error)
            return
        if batch is None:
            queue.stream = None
            queue.arriving = None
            if queue.inbox:  # a prompt came as the stream was ending
                self._wait_for_stream(idx)
            return
        self._await(queue)  # for the next batch, while this one is stored
        rows = []
        for request_id, answer in batch:
            queue.inbox.listeners.pop(request_id, None)
            key, prompt = queue.asked.pop(request_id)
            rows.append((key, prompt, answer))
        if rows:
            on_batch(idx, rows)
        if not queue.asked and queue.arriving is None:
            queue.stream = None  # the stream itself would end only at the next call

    def _fail(self, idx: int, error: Exception) -> None:
        """Note an expert's error, and forget its requests."""
        asked = self._queues[idx].asked
        self._queues[idx] = ExpertQueue(self.experts[idx])
        if self.on_failure is None:
            self._errors.append(error)
        else:
            self.on_failure(idx, error, [key for key, _ in asked.values()])

    def _make_room(self, idx: int) -> bool:
        """Load an expert, after evicting others where the memory limit asks for it.

        Returns False where those at work leave no room yet.
        """
        expert = self.experts[idx]
        if expert.is_remote:  # takes none of this process's memory
            expert.load()
            return True
        if idx in self.loaded:
            self.loaded.remove(idx)
        else:
            if not self._evict_for(expert):
                return False
            expert.load()
            self.num_loads += 1
        self.loaded.append(idx)
        return True

    def _evict_for(self, expert: Expert) -> bool:
        """Unload idle experts until this one fits; returns False where that is not enough yet.

        An expert larger than the limit is loaded all the same, once no other is at work.
        """
        if self.memory_gb is None:
            return True
        idle = [other for other in self.loaded if self._queues[other].stream is None]
        some_are_at_work = len(idle) < len(self.loaded)
        missing_gb = self._used_gb() + expert.memory_gb - self.memory_gb
        idle_gb = sum(self.experts[other].memory_gb for other in idle)
        if missing_gb > idle_gb and some_are_at_work:
            return False
        for other in idle:
            if self._used_gb() + expert.memory_gb <= self.memory_gb:
                break
            self.experts[other].unload()
            self.loaded.remove(other)
        return True

    def _used_gb(self) -> float:
        return sum(self.experts[idx].memory_gb for idx in self.loaded)


def _in_background(run: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run in a thread that the end of the process does not wait for.

    After an interrupt a request may be open for minutes.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(run(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True, name="expert").start()
    return future
