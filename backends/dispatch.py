"""Who is asked when: prompts go to the experts' inboxes, and answers come back as each expert
finishes them.

Of the experts of this process the one with most to do gets the next round of tokens; remote ones
work at the same time. Nobody waits for all: what is asked while an expert is at work joins that
work where there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Thread
from typing import Any, Protocol

from backends.answer_store import Answer
from config import ExpertConfig
from runtime.errors import DERError

Batch = Sequence[tuple[int, Answer | None]]
Keep = Callable[[int, list[tuple[bytes, str, Answer | None]]], None]


class Inbox:
    """Prompts for one expert, numbered as they come.

    Safe to fill from one thread and empty from another.
    """

    def __init__(self, prompts: Sequence[str] = ()):
        self._waiting, self._num_put = deque(enumerate(prompts)), len(prompts)

    @classmethod
    def of(cls, prompts: Sequence[str] | Inbox) -> Inbox:
        return prompts if isinstance(prompts, Inbox) else cls(prompts)

    def put(self, prompt: str) -> int:
        """The prompt's number."""
        self._waiting.append((self._num_put, prompt))
        self._num_put += 1
        return self._num_put - 1

    def take(self, most: int | None = None) -> list[tuple[int, str]]:
        """Up to `most` numbers and prompts, the oldest first; none: all there are."""
        count = len(self._waiting)
        return [self._waiting.popleft() for _ in range(count if most is None else min(count, most))]

    def __len__(self) -> int:
        return len(self._waiting)


class Expert(Protocol):
    """What the pool asks of an expert kind.

    `answer` takes rendered prompts out of the inbox as it has room, until the inbox is empty and
    all are answered, and yields what is finished, numbered as in the inbox. It yields now and then
    without anything finished, to be given more. An answer None: this request failed for good, and
    the run is to go on.
    """

    @property
    def config(self) -> ExpertConfig: ...

    @property
    def is_remote(self) -> bool:
        """Whether it works elsewhere: a thread then asks it at the same time as others."""

    def identity(self) -> dict[str, Any]: ...
    def decoding(self) -> dict[str, Any]: ...
    def render(self, question: str, previous_answer: str | None, ktp: str) -> str: ...
    def answer(self, prompts: Sequence[str] | Inbox) -> Iterator[Batch]: ...
    def load(self) -> None: ...
    def unload(self) -> None: ...

    @property
    def memory_gb(self) -> float: ...


class Line:
    """The way to one expert: what waits, what is under way, and its open stream of answers."""

    def __init__(self, expert: Expert):
        self.expert, self.inbox = expert, Inbox()
        self.asked: dict[int, tuple[bytes, str]] = {}  # number -> key and prompt
        self.stream: Iterator[Batch] | None = None
        self.arriving: Future[Batch | None] | None = None  # of a remote expert's stream

    def ask(self, key: bytes, prompt: str) -> None:
        self.asked[self.inbox.put(prompt)] = (key, prompt)

    def next_batch(self) -> Batch | None:
        """The next batch of the open stream; None at its end."""
        return None if self.stream is None else next(self.stream, None)


class Dispatcher:
    """Lines to all experts, and which of them are loaded.

    `memory_gb` bounds the weights loaded in this process: the least recently used expert that is
    not at work leaves first.
    """

    def __init__(self, experts: Sequence[Expert], memory_gb: float | None):
        self.experts, self.memory_gb = experts, memory_gb
        self.num_loads = 0
        self.loaded: dict[int, None] = {}  # experts of this process, in order of use
        self._reset()

    def _reset(self) -> None:
        self._lines = [Line(expert) for expert in self.experts]
        self._waiting: dict[
            int, None
        ] = {}  # experts without a stream that have been asked, who was asked first in front
        self._errors: list[Exception] = []

    def ask(self, expert_idx: int, key: bytes, prompt: str) -> None:
        line = self._lines[expert_idx]
        line.ask(key, prompt)
        if line.stream is None:
            self._waiting.setdefault(expert_idx)

    @property
    def is_idle(self) -> bool:
        return not any(line.asked for line in self._lines)

    def advance(self, keep: Keep) -> None:
        """A round of the local expert that has most to do, and what has arrived from remote ones;
        waits for these where there is nothing else.

        `keep(expert_idx, rows)` is handed every batch, as rows (key, prompt, answer).

        Raises what an expert raised, after the others have finished: what they were asked is needed
        all the same.
        """
        try:
            self._advance(keep)
            while self._errors and not self.is_idle:
                self._advance(keep)
            if self._errors:
                raise self._errors[0]
        except BaseException:
            self._reset()
            raise

    def _advance(self, keep: Keep) -> None:
        self._open_streams()
        local = [
            idx
            for idx, line in enumerate(self._lines)
            if line.stream is not None and line.arriving is None
        ]
        # A full batch costs little more than a small one, and those of the others grow meanwhile
        if local:
            idx = max(local, key=lambda idx: len(self._lines[idx].asked))
            self._receive(idx, self._lines[idx].next_batch, keep)
        arriving = {
            line.arriving: idx for idx, line in enumerate(self._lines) if line.arriving is not None
        }
        if arriving:
            for arrived in wait(
                arriving, timeout=0 if local else None, return_when=FIRST_COMPLETED
            ).done:
                self._receive(arriving[arrived], arrived.result, keep)

    def _open_streams(self) -> None:
        """Start every expert that waits and has room; those already there first, so that none is
        loaded twice for what it could do at once.
        """
        for idx in sorted(self._waiting, key=lambda idx: idx not in self.loaded):
            line = self._lines[idx]
            try:
                if not self._make_room(idx):
                    continue
            except DERError as error:
                self._give_up(idx, error)
            else:
                line.stream = iter(line.expert.answer(line.inbox))
                self._await(line)
            del self._waiting[idx]

    def _await(self, line: Line) -> None:
        """Let a thread wait for a remote expert's next batch."""
        if line.expert.is_remote:
            line.arriving = _in_background(next, line.stream, None)

    def _receive(self, idx: int, batch_of: Callable[[], Batch | None], keep: Keep) -> None:
        """Take a batch in; None is the end of a stream."""
        line = self._lines[idx]
        try:
            batch = batch_of()
        except Exception as error:  # whatever it is, the others' answers are wanted
            self._give_up(idx, error)
            return
        if batch is None:
            line.stream = line.arriving = None
            if line.inbox:  # it came as the stream was ending
                self._waiting.setdefault(idx)
            return
        self._await(line)  # the next, while this one is stored
        if batch:
            keep(idx, [(*line.asked.pop(number), answer) for number, answer in batch])
        if not line.asked and line.arriving is None:
            line.stream = None  # it would say so itself, a turn later

    def _give_up(self, idx: int, error: Exception) -> None:
        self._errors.append(error)
        self._lines[idx] = Line(self.experts[idx])

    def _make_room(self, idx: int) -> bool:
        """Load an expert, after evicting others where the memory limit asks for it.

        False: those at work leave no room yet.
        """
        expert = self.experts[idx]
        if expert.is_remote:  # takes none of this process's memory
            expert.load()
            return True
        if idx in self.loaded:
            self.loaded.pop(idx)
        else:
            idle = [other for other in self.loaded if self._lines[other].stream is None]
            short = (
                0.0
                if self.memory_gb is None
                else self._used_gb() + expert.memory_gb - self.memory_gb
            )
            if short > sum(self.experts[other].memory_gb for other in idle) and len(idle) < len(
                self.loaded
            ):
                return False
            while (
                idle
                and self.memory_gb is not None
                and self._used_gb() + expert.memory_gb > self.memory_gb
            ):
                self.experts[idle[0]].unload()
                self.loaded.pop(idle.pop(0))
            expert.load()
            self.num_loads += 1
        self.loaded[idx] = None
        return True

    def _used_gb(self) -> float:
        return sum(self.experts[idx].memory_gb for idx in self.loaded)


def _in_background(run: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run in a thread that the end of the process does not wait for: after an interrupt a request
    may be open for minutes.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(run(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True, name="expert").start()
    return future
