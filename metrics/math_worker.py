"""Comparison of mathematical expressions by math-verify, in a process of its own.

The library stops what takes too long by a signal, which only a main thread may receive, and powers
such as 9^{9^{9^9}} heed no signal at all. Here any thread may ask, and the operating system ends
what does not end: such a pair counts as different.

Run as a program, the module answers lines [wanted, found] with true or false.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

CPU_S = 3  # of processor time a comparison may take, parsing included
HARD_CPU_S = 6  # after these the process is ended
MEMORY_BYTES = 4 << 30
PARSED = 1 << 16  # expressions remembered


class _Worker:
    """The process, started when first asked and again when it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, wanted: str, found: str) -> bool:
        with self._lock:
            try:
                return self._ask(wanted, found)
            except BaseException:  # an answer may be under way that belongs to this question
                self._end()
                raise

    def _ask(self, wanted: str, found: str) -> bool:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "metrics.math_worker"],
                cwd=Path(__file__).resolve().parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the one who asks
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps([wanted, found]) + "\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            self._end()
        return line == "true\n"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@functools.cache
def _worker_of(process_id: int) -> _Worker:
    """One worker a process: a forked child must not read its parent's answers."""
    return _Worker()


def compare(wanted: str, found: str) -> bool:
    """Whether two expressions in LaTeX mean the same; False where that cannot be found out in
    time.
    """
    return _worker_of(os.getpid()).ask(wanted, found)


class _OutOfTime(BaseException):
    """Passes through handlers of Exception inside the libraries."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime


@functools.lru_cache(maxsize=PARSED)
def _parse(expression: str) -> list[Any]:
    from math_verify import parse

    return parse(f"${expression}$", parsing_timeout=None)


def _is_equal(wanted: str, found: str) -> bool:
    from math_verify import verify

    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    try:
        return verify(_parse(wanted), _parse(found), timeout_seconds=None)
    except (_OutOfTime, RecursionError, MemoryError):
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):  # not every system knows this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_time() -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + HARD_CPU_S, most))


def main() -> None:
    """Answer lines until there are no more."""
    signal.signal(signal.SIGVTALRM, _stop)
    _limit_memory()
    for line in sys.stdin:
        _limit_time()
        wanted, found = json.loads(line)
        print(json.dumps(bool(_is_equal(wanted, found))), flush=True)


if __name__ == "__main__":
    main()
