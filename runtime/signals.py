"""Ctrl-C and SIGTERM: a command ends within two seconds and says so in one line.

A training finishes its update and saves first when it is sent SIGTERM.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

GRACE_S = 1.5  # for what has to be closed after Ctrl-C
INTERRUPTED, TERMINATED = 130, 143  # exit status: 128 + number of the signal
WORDS = {
    INTERRUPTED: (
        "interrupted; what was generated is stored; --resume continues a training from its last"
        " checkpoint"
    ),
    TERMINATED: (
        "terminated; what was generated is stored; --resume continues a training from its last"
        " checkpoint"
    ),
}
_said = threading.Event()  # that the command ends


class Terminated(BaseException):
    """SIGTERM came; the message says what was saved. As KeyboardInterrupt, it is no error."""


def watch_signals() -> None:
    """Make Ctrl-C and SIGTERM end this process as the module says; a second call does nothing.

    Before the imports that take seconds, so that they end quietly, too.
    """
    if signal.getsignal(signal.SIGTERM) is _terminate:
        return
    signal.signal(signal.SIGTERM, _terminate)
    sys.excepthook = _end_quietly
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    threading.Thread(target=_enforce, args=(receiver,), daemon=True).start()


def end(status: int, words: str) -> None:
    """Say why the command ends, once, on a line of its own; nothing interrupts it any more."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if not _said.is_set():
        _said.set()
        say(words)
    gc.freeze()  # else the end looks through all libraries for garbage, which takes a second
    raise SystemExit(status)


def say(words: str) -> None:
    """A message on a line of its own, below any progress bars."""
    for bar in list(getattr(_tqdm(), "_instances", ())):
        bar.close()
    print(words, file=sys.stderr, flush=True)


@contextmanager
def finishing_first(words: str) -> Iterator[threading.Event]:
    """SIGTERM sets the event, and `words` are said; a second one ends the process at once."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            raise Terminated(WORDS[TERMINATED])
        asked.set()
        bars = _tqdm()
        (bars.write if bars else print)(words, file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _tqdm() -> Any:
    """The class of progress bars, if there can be one."""
    return getattr(sys.modules.get("tqdm"), "tqdm", None)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise Terminated(WORDS[TERMINATED])


def _enforce(receiver: int) -> None:
    """End the process where Ctrl-C has not done so in time: in a long computation, or while others
    are waited for.
    """
    while os.read(receiver, 1) != bytes([signal.SIGINT]):
        pass
    time.sleep(GRACE_S)
    if not _said.is_set():
        print(f"\n{WORDS[INTERRUPTED]}", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def _end_quietly(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """What shows an exception that nothing has caught: an interrupted import."""
    if issubclass(kind, KeyboardInterrupt | Terminated):
        status = INTERRUPTED if issubclass(kind, KeyboardInterrupt) else TERMINATED
        print(WORDS[status], file=sys.stderr, flush=True)
        os._exit(status)
    sys.__excepthook__(kind, error, traceback)
