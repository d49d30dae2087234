"""The log of served routes: a line for each route, and a line for each judgement of one.

It holds no text unless asked to. Learning from it needs the texts.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import DataError
from runtime.files import parse_json, read_lines

log = logging.getLogger(__name__)
Record = dict[str, Any]


class RouteLog:
    """Appends to a file of JSON lines. Safe to use from several threads.

    Raises DataError for a file that cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self.num_lost = 0  # lines that could not be written
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.ids = {record["id"] for record in read_records(path) if _is_route(record)}
            self._file = path.open("ab")
        except OSError as error:
            raise DataError(f"{path}: the log cannot be opened ({error.strerror})") from error
        if not _ends_in_newline(path):  # a process was killed within its last line
            self._append(b"\n")

    def add_route(self, record: Record) -> None:
        self._append(_line({"kind": "route", "time": time.time(), **record}))
        self.ids.add(record["id"])

    def add_feedback(self, route_id: str, quality: float) -> None:
        line = {"kind": "feedback", "time": time.time(), "id": route_id, "quality": quality}
        self._append(_line(line))

    def _append(self, data: bytes) -> None:
        """Write a line. A full disk costs the line, not the answer."""
        with self._lock:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self.num_lost += 1
                log.error("%s: a line of the log is lost (%s)", self.path, error)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _is_route(record: Record) -> bool:
    return record.get("kind") == "route" and isinstance(record.get("id"), str)


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


def read_records(path: Path) -> Iterator[Record]:
    """The lines of a log. A line that was cut off, as by a full disk, is passed over.

    Nothing where there is no file. Raises DataError for one that cannot be read.
    """
    if not path.exists():
        return
    for line in read_lines(path, DataError):
        try:
            record = parse_json(line.data, line.place, DataError)
        except DataError as error:
            log.warning("%s; the line is passed over", error)
            continue
        if isinstance(record, dict):
            yield record
