"""Keep what is written inside a folder: a damaged setting may name any path on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from runtime.errors import DERError

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEVICES = Path("/dev")
# Audit event -> positions of the paths that it would make, change or remove
CHANGES = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
    "sqlite3.connect": (0,),
}

_folders: list[Path] = []  # the folder that writing is confined to; empty: to none
_hooks: list[Any] = []  # Python cannot take an audit hook back, so there is one at most


class OutsideError(DERError):
    """Something would have been written outside the folder."""


@contextlib.contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Within, a write outside `folder` raises OutsideError before it happens."""
    if not _hooks:
        _hooks.append(_refuse_outside)
        sys.addaudithook(_refuse_outside)
    _folders.append(folder.resolve())
    try:
        yield
    finally:
        _folders.pop()


def _refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    if not _folders:
        return
    if event == "open":
        path, _, flags = arguments
        if flags & WRITING:
            _check(path)
        return
    for position in CHANGES.get(event, ()):
        _check(arguments[position])


def _check(path: Any) -> None:
    if not isinstance(path, str | bytes | os.PathLike):  # an open file's number
        return
    name = os.fsdecode(path)
    if name.startswith("file:"):  # SQLite's way to name a file with options
        name = unquote(urlsplit(name).path)
    if "\0" in name or name == ":memory:":
        return
    target = Path(os.path.realpath(name))
    if not target.is_relative_to(_folders[-1]) and not target.is_relative_to(DEVICES):
        raise OutsideError(f"{target}: outside of {_folders[-1]}, so it is not written")
