"""Where a model named in a configuration lies, and what its weights are."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Where scripts/get_small_llms.py puts models, by the last part of their hub id
LOCAL_MODELS = Path("models")
CHUNK_BYTES = 1 << 20


def resolve_source(source: str) -> str:
    """A local folder if there is one (as given, or under `models/`), else the hub id."""
    for folder in (Path(source), LOCAL_MODELS / Path(source).name):
        if folder.is_dir():
            return str(folder)
    return source


def hide_loading_bars() -> None:
    """Draw no bar while weights are read; downloads keep theirs."""
    from transformers.utils import logging

    def hidden(bar: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        return bar(*arguments, **(options | {"disable": True}))

    logging.set_tqdm_hook(hidden)


@functools.cache
def weights_fingerprint(folder: str) -> str:
    """Hash of a model folder: its small files whole; of each weight file the size and a MiB from
    its start, middle and end.

    Reading all of a 14 GB model would take longer than loading it; retrained or requantised weights
    differ everywhere.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        size = path.stat().st_size
        if (
            path.suffix
            not in (
                ".json",
                ".safetensors",
                ".bin",
                ".gguf",
                ".txt",
                ".model",
                ".jinja",
            )
            or path.name == "PROVENANCE.json"
        ):
            continue
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in sorted({0, max(0, size // 2), max(0, size - CHUNK_BYTES)}):
                file.seek(start)
                digest.update(file.read(CHUNK_BYTES))
    return digest.hexdigest()[:16]
