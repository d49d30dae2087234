"""What the answer store costs at a given size."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from backends.answer_store import Answer, AnswerStore, StoredAnswer

BATCH = 128
PROMPT = (
    "Spell this word backward (example: sun -> nus): planet\n\nThere is an answer from another"
    " student: {}\nAnswer:"
)
RESIDENT = """
import sys, time
sys.path.insert(0, {root!r})
import psutil
from backends.answer_store import AnswerStore
before = psutil.Process().memory_info().rss
start = time.perf_counter()
store = AnswerStore({path!r})
store.get_many([bytes(16)])
seconds = time.perf_counter() - start
keys = [key for key, in store._run("SELECT key FROM answers LIMIT 20000")]
for at in range(0, len(keys), {batch}):
    store.get_many(keys[at : at + {batch}])
print(seconds, (psutil.Process().memory_info().rss - before) / 2**20)
"""


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def fill(path: Path, size: int) -> float:
    """Write `size` answers in batches of 128, one transaction each; answers per second."""
    store, start = AnswerStore(path), time.perf_counter()
    for first in range(0, size, BATCH):
        rows = [
            StoredAnswer(
                key_of(n), "llama-0.2m", PROMPT.format(n), Answer(f"answer {n}", 30, 12, 0.01)
            )
            for n in range(first, min(first + BATCH, size))
        ]
        store.put_many(rows)
    store.close()
    return size / (time.perf_counter() - start)


def lookups_per_s(path: Path, size: int, num_lookups: int = 50_000) -> float:
    """Random look-ups of stored answers in batches of 128."""
    store = AnswerStore(path)
    keys = [key_of(int(n)) for n in np.random.default_rng(0).integers(size, size=num_lookups)]
    start = time.perf_counter()
    for first in range(0, num_lookups, BATCH):
        store.get_many(keys[first : first + BATCH])
    seconds = time.perf_counter() - start
    store.close()
    return num_lookups / seconds


def open_and_resident(path: Path) -> tuple[float, float]:
    """Seconds to open the store and look up a key, and the MB that opening it and 20,000 look-ups
    add to a fresh process.
    """
    root = str(Path(__file__).resolve().parents[2])
    script = RESIDENT.format(root=root, path=str(path), batch=BATCH)
    seconds, megabytes = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(seconds), float(megabytes)


def measure(folder: Path, size: int) -> dict[str, float]:
    path = folder / f"store{size}.sqlite"
    writes = fill(path, size)
    seconds, megabytes = open_and_resident(path)
    return {
        f"store/{size}/writes_per_s": writes,
        f"store/{size}/lookups_per_s": lookups_per_s(path, size),
        f"store/{size}/open_s": seconds,
        f"store/{size}/resident_mb": megabytes,
        f"store/{size}/file_mb": path.stat().st_size / 1e6,
    }
