"""Arrays that took long to read out of texts, kept under runs/readings for the next evaluation.

A file's name is a hash of the texts and of the code that reads them, so a change of either is read
again. Nothing is lost when the folder is removed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from der_env import Episode, encode_states
from questions import Question
from runtime.files import write_atomically
from text_agent import Agent

READINGS = Path("runs/readings")
WORTH_KEEPING = 2_000  # answers; fewer are read in no time
WORTH_ENCODING = 200  # questions
CODE = ("metrics", "belief")  # rooms whose code decides what is read
ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def code_digest() -> str:
    """Hash of the code that reads answers."""
    digest = hashlib.sha256()
    for room in CODE:
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def digest_of(parts: Iterable[str | bytes]) -> str:
    """Hash of a sequence of texts or bytes; their boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def kept(name: str, parts: Iterable[str | bytes], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that `compute` finds in the texts `parts`, from the disk where it was found before.

    `name` says what is computed. A damaged file is computed again.
    """
    path = READINGS / f"{name}-{digest_of([code_digest(), *parts])[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["found"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = compute()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return found


def keep_encodings(agent: Agent, questions: Sequence[Question]) -> None:
    """Put a frozen encoder's vectors of bare questions into its cache, from the disk where they
    were found before. A trainable encoder has none to keep.
    """
    if not agent.config.freeze_encoder or len(questions) < WORTH_ENCODING:
        return
    episodes = [Episode(question.sealed(), agent.t_max) for question in questions]
    rows = encode_states(episodes, agent.state_tokenizer)
    keys = agent.encoder.keys_of(rows)
    device = agent.encoder.device.type
    parts: list[str | bytes] = [agent.encoder_hash(), agent.config.pooling, device, *keys]
    found = kept("encodings", parts, lambda: agent.encoder.cached(rows).cpu().numpy())
    agent.encoder.cache.update(zip(keys, found, strict=True))
