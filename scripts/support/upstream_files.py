"""Files as their publisher wrote them: fetched once, opened, and their fields read.

Every problem is a DataError that names the file, the place in it and what to do.
"""

from __future__ import annotations

import gzip
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import DataError
from runtime.files import write_atomically

GITHUB_FILES = "https://raw.githubusercontent.com"
TIMEOUT_S = 30.0
BROKEN = (  # what a cut, altered or too deeply nested file raises, gzip's OSError included
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
)


def fetch(repository: str, commit: str, path: str, folder: Path) -> Path:
    """The place of one file of a GitHub repository (owner/name) under `folder`.

    A file that lies there is not fetched again. Raises DataError where it cannot be had.
    """
    target = folder / path
    if target.is_file():
        return target
    url = f"{GITHUB_FILES}/{repository}/{commit}/{urllib.parse.quote(path)}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            data = response.read()
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{url}: the server refused ({error}); does the repository have this file at that"
            " commit?"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url}: cannot be fetched from this machine ({error}). Files fetched before are kept"
            f" in {folder}. Where there is a network, run\n"
            f"    git clone https://github.com/{repository} FOLDER\n"
            f"    git -C FOLDER checkout {commit}\n"
            "then copy FOLDER to this machine and give it with --source FOLDER"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)
    return target


def _content(path: Path) -> bytes:
    """The text of a file: plain, gzipped, or the one JSON file of a zip archive."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        if len(names) != 1:
            raise DataError(f"{path}: expected one .json file in it, found {len(names)}")
        return archive.read(names[0])


def read_json(path: Path) -> Any:
    """The value that a .json, .json.gz or .zip file holds.

    Raises DataError for a file that is absent or broken.
    """
    try:
        return json.loads(_content(path))
    except BROKEN as error:
        raise DataError(
            f"{path}: not whole, or no JSON ({error}); delete it and fetch it again"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: {reason}; is --source the right folder?") from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not blank. Raises DataError for a broken line."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not valid JSON ({error}); write it again") from error


def expect(value: Any, kind: type | tuple[type, ...], place: str, what: str) -> Any:
    """The value, if it is of that type. Raises DataError otherwise."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds):
        names = " or ".join(one.__name__ for one in kinds)
        raise DataError(
            f"{place}: expected {what} to be {names}, found {type(value).__name__};"
            " is this file of the format that was named?"
        )
    return value


def number(value: Any, place: str, what: str) -> float:
    """A number. Raises DataError for anything else, and for one beyond any float."""
    try:
        return float(expect(value, (int, float), place, what))
    except OverflowError as error:
        raise DataError(f"{place}: {what} is too large for a number") from error


def take(row: Any, field: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A field of an object. Raises DataError where it is absent or of another type."""
    expect(row, dict, place, "the row")
    if field not in row:
        raise DataError(
            f"{place}: no field {field!r}; its fields are {', '.join(map(str, row))}."
            " Is this file of the format that was named?"
        )
    return expect(row[field], kind, place, f"field {field!r}")
