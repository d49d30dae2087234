"""Files and texts as they reach the disk and come from it: atomic writes, whole Unicode, JSON that
is checked, symbolic links that are not followed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import DERError

MAX_NESTING = 100  # lists and objects in one another
ERRORS_SHOWN = 3  # broken lines of one file that a message names


class Line(NamedTuple):
    """A line of a file that is not blank."""

    place: str  # file:number, for messages
    number: int  # from 1
    offset: int  # of its first byte
    data: bytes


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step. Two processes may: the file is then the one's or the other's."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_links(folder: Path, error: type[DERError]) -> None:
    """Raise `error` where a folder, or anything in it, is a symbolic link.

    What is written there would land elsewhere.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise error(f"{path}: a symbolic link, which is not written through; remove it")


def whole_text(text: str) -> str:
    """The text without half characters (lone surrogates, as in truncated JSON), which neither UTF-8
    nor a tokenizer takes.

    Raises TypeError for what is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text, found {type(text).__name__}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(value: Any, max_characters: int = 80) -> str:
    """A value as a message shows it: `max_characters` characters, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, endless nesting
        return f"({type(value).__name__})"
    return text if len(text) <= max_characters else f"{text[:max_characters]}..."


def parse_json(text: str | bytes, where: str, error: type[DERError]) -> Any:
    """A JSON value of at most `MAX_NESTING` levels.

    Raises `error` naming `where` for anything else.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8 text ({problem})") from problem
    except json.JSONDecodeError as problem:
        raise error(f"{where}: not valid JSON ({problem})") from problem
    except ValueError as problem:
        raise error(f"{where}: a number of more than 4,300 digits") from problem
    except RecursionError as problem:
        raise error(f"{where}: nested more than {MAX_NESTING} levels deep") from problem
    if _is_deeper(value, MAX_NESTING):
        raise error(f"{where}: nested more than {MAX_NESTING} levels deep")
    return value


def _is_deeper(value: Any, max_levels: int) -> bool:
    """Whether more than `max_levels` lists and objects are in one another."""
    level = [value]
    for _ in range(max_levels + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not any(isinstance(item, dict | list) for item in level):
            return False
        level = inner
    return True


def read_json(path: Path, error: type[DERError]) -> dict[str, Any]:
    """The object in a JSON file. Raises `error` naming the file."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}") from problem
    value = parse_json(data, str(path), error)
    if not isinstance(value, dict):
        raise error(f"{path}: expected an object, found {type(value).__name__}")
    return value


def read_lines(
    path: Path, error: type[DERError], on_bytes: Callable[[bytes], None] = lambda data: None
) -> Iterator[Line]:
    """The lines of a file that are not blank; `on_bytes` is handed all of them.

    Raises `error` for a file that cannot be read.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                on_bytes(data)
                if data.strip():
                    yield Line(f"{path}:{number}", number, offset, data)
                offset += len(data)
    except FileNotFoundError as problem:
        raise error(f"{path}: no such file") from problem
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}") from problem


def read_jsonl(path: Path, error: type[DERError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line of a file; blank lines are passed over.

    Lines that hold no object are named together, the first three, in an `error` after the last.
    """
    broken: list[str] = []
    for line in read_lines(path, error):
        try:
            value = parse_json(line.data, line.place, error)
        except error as problem:
            broken.append(str(problem))
            continue
        if isinstance(value, dict):
            yield line.place, value
        else:
            broken.append(f"{line.place}: expected an object, found {type(value).__name__}")
    if broken:
        more = len(broken) - ERRORS_SHOWN
        named = broken[:ERRORS_SHOWN]
        raise error("\n".join([*named, f"and {more} more lines"] if more > 0 else named))
