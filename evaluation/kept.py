"""What took long to find in texts, kept under runs/readings for the next command.

A file's name holds a hash of the code that reads, or of the texts, so a change of either is read
again. Nothing is lost when the folder is removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from belief.outcome_model import counted
from der_env import Episode, encode_states
from metrics.agreement import compared
from questions import Question
from runtime.files import write_atomically
from runtime.remembered import Remembered
from text_agent import Agent

READINGS = Path("runs/readings")
MEMORIES = {"compared": compared, "counted": counted}
WORTH_KEEPING = 200  # new answers or pairs; fewer are read in no time
WORTH_ENCODING = 200  # questions
CODE = ("metrics", "belief")  # rooms whose code decides what is read
ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def kept_readings() -> Iterator[None]:
    """Spare what earlier commands compared and counted, and keep what is read inside, whatever
    ends it.
    """
    known = {}
    for name, memory in MEMORIES.items():
        _recall(name, memory)
        known[name] = len(memory)
    try:
        yield
    finally:
        for name, memory in MEMORIES.items():
            if len(memory) - known[name] >= WORTH_KEEPING:
                _recall(name, memory)  # what others kept meanwhile
                digests, found = memory.lasting()
                if len(digests):
                    _write(_readings(name), digests=digests, found=found)


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
    path = READINGS / f"encodings-{_digest_of(parts)[:24]}.npz"
    arrays = _read(path, "found")
    if arrays is None or len(arrays[0]) != len(keys):
        found = agent.encoder.cached(rows).cpu().numpy()
        _write(path, found=found)
    else:
        (found,) = arrays
    agent.encoder.cache.update(zip(keys, found, strict=True))


@functools.cache
def _code_digest() -> str:
    """Hash of the code that reads answers."""
    digest = hashlib.sha256()
    for room in CODE:
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _digest_of(parts: Iterable[str | bytes]) -> str:
    """Hash of a sequence of texts or bytes; their boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _readings(name: str) -> Path:
    return READINGS / f"{name}-{_code_digest()[:24]}.npz"


def _recall(name: str, memory: Remembered) -> None:
    arrays = _read(_readings(name), "digests", "found")
    if arrays is not None:
        memory.recall(*arrays)


def _read(path: Path, *names: str) -> list[np.ndarray] | None:
    """Arrays of one length from a file; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [arrays[name] for name in names]
            lengths = {len(array) for array in found}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return found if len(lengths) == 1 else None


def _write(path: Path, **arrays: np.ndarray) -> None:
    """Keep arrays. A disk that is full loses no result by it: they are found again."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        print(f"{path} is not kept for the next command: {error}", file=sys.stderr)
