"""Files and texts as they reach the disk: atomic writes and whole Unicode."""

from __future__ import annotations

from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def whole_text(text: str) -> str:
    """The text without half characters (lone surrogates, as in truncated JSON), which neither UTF-8
    nor a tokenizer takes.

    Raises TypeError for what is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text, found {type(text).__name__}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
